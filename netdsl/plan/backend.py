"""What a backend promises: arrays at planned places, and kernels bound to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
class Ceilings:
    """The most that a device was seen to do: floating-point operations and bytes a second; and
    operations on 16-bit numbers, where it has units for them."""

    flops: float
    bytes: float
    narrow: float | None = None

    def flops_on(self, itemsize: int) -> float:
        """The operations a second on numbers of so many bytes."""
        return self.narrow if self.narrow and itemsize == 2 else self.flops


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
