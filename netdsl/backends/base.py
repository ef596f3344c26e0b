"""The backend interface: arrays at planned locations, and kernels bound to them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from netdsl.backends.lazy_batch import DeviceImages
from netdsl.backends.roofline import Ceilings
from netdsl.errors import fail
from netdsl.lower.candidates import CandidateChoice
from netdsl.plan.fusion import NO_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.plan import Plan
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.types import Array

Thunk = Callable[[], None]


class Backend(ABC):
    """Arrays and kernels of one kind of machine.

    An array is whatever the machine calls one: it has `shape` and `dtype`, a buffer can be sliced,
    and `float` reads an array of one number. Seven methods are required; the others have defaults
    that suit a machine whose work is done when a call returns.
    """

    name: str
    """The name used in messages and reports."""
    fusion: FusionOptions = NO_FUSION
    """Which nodes may share a kernel; by default, none."""
    communicator: Communicator = ONE_RANK
    """The ranks that run the same plans, each on a device of its own."""
    steps_in_flight: int = 0
    """Steps that may still be running when the next one is launched. Ranks collect the results of
    a step this many steps later, so that all of them see a result after the same update."""

    # arrays

    @abstractmethod
    def upload(self, array: Array) -> Array:
        """Returns a new array with these values."""

    @abstractmethod
    def download(self, array: Array) -> Array:
        """Returns the values as a new NumPy array."""

    @abstractmethod
    def write(self, target: Array, values: Array) -> None:
        """Writes values from the host, or what `start_upload` returned for them, into an array."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Array:
        """Returns a zero-filled buffer, from which a plan takes arrays by `view`."""

    @abstractmethod
    def view(self, buffer: Array, dtype: str, layout: Layout) -> Array:
        """Returns the elements of a layout in a buffer."""

    def free_bytes(self) -> int | None:
        """Returns the bytes that can still be allocated, if known."""
        return None

    # kernels

    @abstractmethod
    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        """Makes all decisions about a kernel once. The result runs it whenever called: it reads the
        kernel's inputs and writes its outputs where `plan.placements` puts them in the buffers of
        `memory`. A kernel without nodes copies its input; a `concat` copies only
        `plan.find_concat_copies`. The result may be one of the classes below."""

    def capture(self, thunks: Sequence[Thunk]) -> Thunk:
        """Returns all kernels of a step as one function; by default, it calls them one after the
        other."""
        return SequentialThunk(tuple(thunks))

    def with_communicator(self, communicator: Communicator) -> Backend:
        """Returns the backend as that of one of several ranks. Raises NetError if it cannot be."""
        raise fail(f"`{self.name}` runs on one rank only", help="start it without a launcher")

    def bind_collective(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> AsyncThunk:
        """Binds a kernel of kind `collective`, as `bind` does the others. A backend that runs on
        one rank only needs none."""
        raise fail(f"`{self.name}` has no collectives", help="plan the step of a single rank")

    def as_deterministic(self) -> Backend:
        """Returns the backend restricted to kernels that give the same bits on every run."""
        return self

    def with_tuning(self, seconds: float) -> Backend:
        """Returns the backend with this many seconds to time alternatives for the same computation.
        Raises NetError if it has no alternatives."""
        help = "leave it out, or use `--device cuda`"
        raise fail(
            f"`--tune` times plans on a GPU; there is nothing to tune on `{self.name}`", help=help
        )

    def explain_choices(self, plan: Plan) -> tuple[CandidateChoice[Any, Any], ...]:
        """Returns for each kernel of a plan which candidates there are to compute it, and which one
        would be taken, without running anything. Raises NetError if the backend cannot say."""
        raise fail(
            f"`{self.name}` cannot explain how it chooses kernels", help="use another device"
        )

    def generate_source(self, plan: Plan) -> str:
        """Returns the code generated for each kernel of a plan, as text; empty if there is none."""
        return ""

    # transfers to and from a step, while others may be in flight

    def start_upload(self, values: Array) -> Array:
        """Returns what may be written in place of `values`; the transfer has started if the backend
        supports that."""
        return values

    def cache_images(self, images: Array) -> DeviceImages | None:
        """Returns a set of images that is also on the device, if batches can be picked from it
        there and it fits."""
        return None

    def start_readback(self, outputs: Mapping[str, Array]) -> Readback:
        """Requests outputs of a step before the next one overwrites them. A device may continue
        meanwhile."""
        return _CompletedReadback({k: self.download(v) for k, v in outputs.items()})

    # measuring

    def measure_seconds(self, thunks: Sequence[Thunk]) -> list[float]:
        """Returns how long each takes on the device, run one after the other."""
        return [time_thunk(thunk) for thunk in thunks]

    @abstractmethod
    def measure_ceilings(self) -> Ceilings:
        """Measures the device's peak performance, within a second or two."""


@dataclass(frozen=True)
class ReferenceThunk:
    """A bound kernel that an engine has no code for and runs by the reference."""

    run: Thunk

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class RefreshableThunk:
    """A bound kernel that holds data derived from frozen states; `refresh` recomputes it."""

    run: Thunk
    refresh: Thunk

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class WinogradThunk(RefreshableThunk):
    """A bound kernel that computes a convolution by minimal filtering, with fewer multiplications
    than the direct algorithm."""


@dataclass(frozen=True)
class AsyncThunk:
    """A bound collective: `start` begins it when its operands are there, and after `wait` its
    results are. Others run in between, which must not touch either."""

    start: Thunk
    wait: Thunk

    def __call__(self) -> None:
        self.start()
        self.wait()


MAX_STEPS_IN_FLIGHT = 4
"""Steps that may be in flight before the results of the first one are awaited."""


class Readback(Protocol):
    """Requested outputs."""

    def is_ready(self) -> bool:
        """Returns whether they are available without waiting."""
        ...

    def result(self) -> Mapping[str, Array]:
        """Returns the outputs by name, as NumPy arrays; call it only once."""
        ...


@dataclass(frozen=True)
class _CompletedReadback:
    """Outputs that are already available."""

    arrays: Mapping[str, Array]

    def is_ready(self) -> bool:
        return True

    def result(self) -> Mapping[str, Array]:
        return self.arrays


@dataclass(frozen=True)
class SequentialThunk:
    """Runs thunks one after the other."""

    thunks: tuple[Thunk, ...]

    def __call__(self) -> None:
        for thunk in self.thunks:
            thunk()


def time_thunk(thunk: Thunk) -> float:
    """Returns the seconds that a thunk takes by this machine's clock."""
    start = time.perf_counter()
    thunk()
    return time.perf_counter() - start
