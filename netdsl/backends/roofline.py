"""What a device can do at most: the limits that kernels are held against."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ceilings:
    """The most that a device was seen to do: floating-point operations and bytes a second; and
    operations on 16-bit numbers, where it has units for them. `cache_bandwidths` are bytes a second
    where so many bytes are moved in all, which caches may hold."""

    flops: float
    bandwidth: float
    flops_16bit: float | None = None
    cache_bandwidths: tuple[tuple[int, float], ...] = ()

    def flops_for(self, itemsize: int) -> float:
        """The operations a second on numbers of so many bytes."""
        return self.flops_16bit if self.flops_16bit and itemsize == 2 else self.flops

    def bandwidth_for(self, size: int) -> float:
        """The bytes a second where so many are moved: what was seen for as many, or for more."""
        return max(
            [
                self.bandwidth,
                *(rate for max_size, rate in self.cache_bandwidths if max_size >= size),
            ]
        )

    def min_seconds(self, flops: int, size: int, itemsize: int) -> float:
        """Seconds for operations on numbers of `itemsize` bytes and for `size` bytes moved."""
        return max(flops / self.flops_for(itemsize), size / self.bandwidth_for(size))

    def with_flops(self, rate: float, itemsize: int) -> Ceilings:
        """The same, where so many operations a second have been seen."""
        if self.flops_16bit and itemsize == 2:
            return replace(self, flops_16bit=max(self.flops_16bit, rate))
        return replace(self, flops=max(self.flops, rate))

    def with_bandwidth(self, rate: float, size: int) -> Ceilings:
        """The same, where `size` bytes have been moved at that rate."""
        is_faster = rate > self.bandwidth_for(size)
        return (
            replace(self, cache_bandwidths=(*self.cache_bandwidths, (size, rate)))
            if is_faster
            else self
        )
