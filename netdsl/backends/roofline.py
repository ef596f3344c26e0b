"""What a device can do at most: the limits that kernels are held against."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ceilings:
    """The most that a device was seen to do: floating-point operations and bytes a second; and
    operations on 16-bit numbers, where it has units for them. `cached` are bytes a second where so
    many bytes are moved in all, which caches may hold."""

    flops: float
    bytes: float
    narrow: float | None = None
    cached: tuple[tuple[int, float], ...] = ()

    def flops_on(self, itemsize: int) -> float:
        """The operations a second on numbers of so many bytes."""
        return self.narrow if self.narrow and itemsize == 2 else self.flops

    def bytes_on(self, size: int) -> float:
        """The bytes a second where so many are moved: what was seen for as many, or for more."""
        return max([self.bytes, *(rate for most, rate in self.cached if most >= size)])

    def least(self, flops: int, size: int, itemsize: int) -> float:
        """Seconds for operations on numbers of `itemsize` bytes and for `size` bytes moved."""
        return max(flops / self.flops_on(itemsize), size / self.bytes_on(size))

    def with_flops(self, rate: float, itemsize: int) -> Ceilings:
        """The same, where so many operations a second have been seen."""
        if self.narrow and itemsize == 2:
            return replace(self, narrow=max(self.narrow, rate))
        return replace(self, flops=max(self.flops, rate))

    def with_bytes(self, rate: float, size: int) -> Ceilings:
        """The same, where `size` bytes have been moved at that rate."""
        faster = rate > self.bytes_on(size)
        return replace(self, cached=(*self.cached, (size, rate))) if faster else self
