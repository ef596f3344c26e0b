"""What a backend promises, whole: arrays at planned places, and kernels bound to them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from netdsl.backends.lazy_batch import DeviceImages
from netdsl.backends.roofline import Ceilings
from netdsl.errors import fail
from netdsl.plan.fusion import NO_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.plan import Plan
from netdsl.types import Array

Thunk = Callable[[], None]


class Backend(ABC):
    """Arrays and kernels of one kind of machine.

    An array is whatever the machine calls one: it has `shape` and `dtype`, a buffer can be sliced,
    and `float` reads what holds one number. Seven methods are required; every other one has a
    default that is right for a machine whose work is done when a call returns.
    """

    name: str
    """What messages and reports call it."""
    fusion: FusionOptions = NO_FUSION
    """Which nodes may share a kernel; every node has its own unless it says more."""

    # arrays

    @abstractmethod
    def upload(self, array: Array) -> Array:
        """A new array of its own with these values."""

    @abstractmethod
    def download(self, array: Array) -> Array:
        """The values, as a NumPy array of its own."""

    @abstractmethod
    def write(self, target: Array, values: Array) -> None:
        """Puts values from the host, or what `start_upload` gave for them, into an array."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Array:
        """A buffer of zeros; a plan cuts arrays out of it by `view`."""

    @abstractmethod
    def view(self, buffer: Array, dtype: str, layout: Layout) -> Array:
        """The elements of a layout in a buffer."""

    def free_bytes(self) -> int | None:
        """The bytes that can still be allocated, where that is known."""
        return None

    # kernels

    @abstractmethod
    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        """Decides everything about a kernel once. What is returned runs it, as often as it is
        called: it reads the kernel's inputs and writes its outputs where `plan.placements` puts
        them in the buffers of `memory`. A kernel without nodes copies its input; of a `concat`
        only `plan.pieces` are copied. What is returned may be one of the classes below."""

    def capture(self, thunks: Sequence[Thunk]) -> Thunk:
        """All kernels of a step as one function: by default, one after the other."""
        return SequentialThunk(tuple(thunks))

    def as_deterministic(self) -> Backend:
        """The backend restricted to what gives the same bits on every run."""
        return self

    def with_tuning(self, seconds: float) -> Backend:
        """The backend with that long to time what could compute the same. Raises NetError where it
        has no such choice."""
        help = "leave it out, or use `--device cuda`"
        raise fail(f"`--tune` times plans on a GPU; `{self.name}` has none to choose", help=help)

    def generate_source(self, plan: Plan) -> str:
        """The code that is generated for each kernel of a plan, as text; empty where none is."""
        return ""

    # numbers in and out of a step, while others may be under way

    def start_upload(self, values: Array) -> Array:
        """What may be written in place of `values`: where the backend can, they are on their
        way."""
        return values

    def cache_images(self, images: Array) -> DeviceImages | None:
        """A set of images that lies on the device as well, where batches can be picked from it
        there and there is room."""
        return None

    def start_readback(self, numbers: Mapping[str, Array]) -> Readback:
        """Asks for what a step gave out, before the next one writes it over. A device may go on
        meanwhile."""
        return _CompletedReadback({k: float(v) for k, v in numbers.items()})

    # measuring

    def measure_seconds(self, thunks: Sequence[Thunk]) -> list[float]:
        """How long each takes on the device, run one after the other."""
        return [time_thunk(thunk) for thunk in thunks]

    @abstractmethod
    def measure_ceilings(self) -> Ceilings:
        """What the device can do at most, measured here and now in under a second or two."""


@dataclass(frozen=True)
class ReferenceThunk:
    """A bound kernel that an engine has no code for: the reference computes it."""

    run: Thunk

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class RefreshableThunk:
    """A bound kernel that keeps something of settled states in a form of its own; `refresh` makes
    that again."""

    run: Thunk
    refresh: Thunk

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class WinogradThunk(RefreshableThunk):
    """A bound kernel that computes a convolution by minimal filtering, with fewer multiplications
    than its definition has."""


MAX_STEPS_IN_FLIGHT = 4
"""Steps that may be under way before the numbers of the first one are waited for."""


class Readback(Protocol):
    """Numbers that were asked for."""

    def is_ready(self) -> bool:
        """Whether they can be had without waiting."""
        ...

    def result(self) -> Mapping[str, float]:
        """The numbers by name; to be called once."""
        ...


@dataclass(frozen=True)
class _CompletedReadback:
    """Numbers that are there."""

    scalars: Mapping[str, float]

    def is_ready(self) -> bool:
        return True

    def result(self) -> Mapping[str, float]:
        return self.scalars


@dataclass(frozen=True)
class SequentialThunk:
    """Thunks one after the other."""

    thunks: tuple[Thunk, ...]

    def __call__(self) -> None:
        for thunk in self.thunks:
            thunk()


def time_thunk(thunk: Thunk) -> float:
    """Seconds by this machine's clock."""
    start = time.perf_counter()
    thunk()
    return time.perf_counter() - start
