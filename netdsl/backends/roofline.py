"""Roofline: a device's peak performance, against which kernels are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ceilings:
    """The peak rates measured on a device: floating-point operations and bytes per second, and
    operations on 16-bit numbers if it has units for them. `cache_bandwidths` are pairs of the total
    bytes moved and the bytes per second, since caches may hold small amounts."""

    flops: float
    bandwidth: float
    flops_16bit: float | None = None
    cache_bandwidths: tuple[tuple[int, float], ...] = ()

    def flops_for(self, itemsize: int) -> float:
        """Returns the operations per second on numbers of this many bytes."""
        return self.flops_16bit if self.flops_16bit and itemsize == 2 else self.flops

    def bandwidth_for(self, size: int) -> float:
        """Returns the bytes per second when moving `size` bytes: the peak measured for as many or
        more."""
        return max(
            [
                self.bandwidth,
                *(rate for max_size, rate in self.cache_bandwidths if max_size >= size),
            ]
        )

    def min_seconds(self, flops: int, size: int, itemsize: int) -> float:
        """Returns the minimum seconds for operations on numbers of `itemsize` bytes and for moving
        `size` bytes."""
        return max(flops / self.flops_for(itemsize), size / self.bandwidth_for(size))

    def with_flops(self, rate: float, itemsize: int) -> Ceilings:
        """Returns the ceilings raised to this measured rate of operations per second."""
        if self.flops_16bit and itemsize == 2:
            return replace(self, flops_16bit=max(self.flops_16bit, rate))
        return replace(self, flops=max(self.flops, rate))

    def with_bandwidth(self, rate: float, size: int) -> Ceilings:
        """Returns the ceilings raised to this measured rate of moving `size` bytes."""
        is_faster = rate > self.bandwidth_for(size)
        return (
            replace(self, cache_bandwidths=(*self.cache_bandwidths, (size, rate)))
            if is_faster
            else self
        )
