"""What a backend promises: arrays at planned places, and kernels bound to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from netdsl.plan.fusion import Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.plan import Plan
from netdsl.types import Array


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

    def bind(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> Callable[[], None]: ...
