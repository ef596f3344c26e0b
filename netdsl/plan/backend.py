"""What a backend promises: arrays at planned places, and kernels bound to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from netdsl.plan.fusion import Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.plan import Plan
from netdsl.types import Array

Thunk = Callable[[], None]


@dataclass(frozen=True)
class ByReference:
    """A bound kernel that an engine has no code for: the reference computes it."""

    run: Thunk

    def __call__(self) -> None:
        self.run()


@runtime_checkable
class Refreshed(Protocol):
    """A bound kernel that keeps something of settled states in a form of its own."""

    def __call__(self) -> None: ...

    def refresh(self) -> None: ...


@dataclass(frozen=True)
class Filtered:
    """A bound kernel that computes a convolution by minimal filtering, with fewer multiplications
    than its definition has. It is a `Refreshed` one."""

    run: Thunk
    refresh: Thunk

    def __call__(self) -> None:
        self.run()


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


class Backend(Protocol):
    """Arrays and kernels of one kind of machine.

    `bind` decides everything about a kernel once and returns a function without arguments or
    result; `memory` holds the buffers of a plan by name.
    """

    @property
    def name(self) -> str: ...

    @property
    def fusion(self) -> Fusion: ...

    def upload(self, array: Array) -> Array:
        """A new array of its own with these values."""
        ...

    def download(self, array: Array) -> Array: ...

    def write(self, target: Array, values: Array) -> None:
        """Puts values from the host into an array that is there."""
        ...

    def allocate(self, nbytes: int) -> Array:
        """A buffer of zeros."""
        ...

    def view(self, buffer: Array, dtype: str, layout: Layout) -> Array:
        """The elements of a layout in a buffer."""
        ...

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk: ...

    def seconds(self, thunks: Sequence[Thunk]) -> list[float]:
        """How long each takes on the device, run one after the other."""
        ...

    def ceilings(self) -> Ceilings:
        """What the device can do at most, measured here and now in under a second or two."""
        ...
