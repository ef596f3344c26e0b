"""Collectives on the GPU: a bucket is reduced on NCCL's stream while kernels run on the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.backends.array_backend import address
from netdsl.backends.base import AsyncThunk
from netdsl.backends.cuda.batched_launch import batch_launches
from netdsl.backends.cuda.captured_step import CollectiveThunk
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.nccl_communicator import NcclCommunicator, ReducedBuffer
from netdsl.lower.trace import trace_copy
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout, make_contiguous
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array

Copy = tuple[Placement, Placement]
LaunchBinder = Callable[[CudaLaunch, Mapping[str, Array]], Thunk]


@dataclass(frozen=True)
class ReducedValues:
    """How the values of a bucket are reduced in place: `load` copies operands that are elsewhere,
    `buffers` are the places that are reduced, and `store` copies results that have gaps."""

    load: tuple[Copy, ...]
    buffers: tuple[Placement, ...]
    store: tuple[Copy, ...]

    def staging_sizes(self) -> dict[str, int]:
        """The bytes of the buffers beside those of the plan."""
        return {
            source.buffer: math.prod(source.layout.shape) * source.itemsize
            for source, _ in self.store
        }


def place_values(plan: Plan, kernel: Kernel) -> ReducedValues:
    """Decides what is reduced where."""
    load, buffers, store = list[Copy](), list[Placement](), list[Copy]()
    for name in kernel.outputs:
        source, target = plan.placements[plan.graph[name].args[0]], plan.placements[name]
        buffer = target
        if not _is_dense(target.layout):
            buffer = Placement(
                f"reduced {name}", target.dtype, make_contiguous(source.layout.shape)
            )
            store.append((buffer, target))
        if not source.has_same_elements(buffer):
            load.append((source, buffer))
        buffers.append(buffer)
    return ReducedValues(tuple(load), tuple(buffers), tuple(store))


def _is_dense(layout: Layout) -> bool:
    """Returns whether the elements are consecutive, in whatever order."""
    step = 1
    for stride, size in sorted(zip(layout.strides, layout.shape, strict=True)):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def copy_launches(copies: Sequence[Copy], multiprocessors: int) -> tuple[CudaLaunch, ...]:
    """Returns the launches that make the copies before or after a reduction."""
    return batch_launches([trace_copy(*copy) for copy in copies], multiprocessors)


def bind_nccl_collective(
    device: Device,
    nccl: NcclCommunicator | None,
    values: ReducedValues,
    memory: Mapping[str, Array],
    bind_launch: LaunchBinder,
) -> AsyncThunk:
    """Binds the reduction of a bucket's values, over one rank only without `nccl`."""

    def bind_copies(copies: Sequence[Copy]) -> list[Thunk]:
        launches = copy_launches(copies, device.multiprocessors)
        return [bind_launch(launch, memory) for launch in launches]

    load, store = bind_copies(values.load), bind_copies(values.store)
    if nccl is None:
        start, wait = (lambda: _run(load)), (lambda: _run(store))
    else:
        buffers = tuple(_find_buffer(place, memory) for place in values.buffers)
        ready, done = (device.cupy.cuda.Event(disable_timing=True) for _ in range(2))
        reduction = _NcclReduction(device.stream, nccl, buffers, ready, done)

        def start() -> None:
            _run(load)
            reduction.start()

        def wait() -> None:
            reduction.wait()
            _run(store)

    return AsyncThunk(CollectiveThunk(start, memory), CollectiveThunk(wait, memory))


def _run(thunks: Sequence[Thunk]) -> None:
    for thunk in thunks:
        thunk()


def _find_buffer(place: Placement, memory: Mapping[str, Array]) -> ReducedBuffer:
    count = math.prod(place.layout.shape)
    return ReducedBuffer(address(memory[place.buffer]) + place.start, count, place.dtype)


@dataclass(frozen=True)
class _NcclReduction:
    """A reduction that begins when the kernels before its start are done, and that the kernels
    after its wait begin after. In a graph, the events become edges."""

    stream: Any
    """The stream of the kernels."""
    nccl: NcclCommunicator
    buffers: tuple[ReducedBuffer, ...]
    ready: Any
    done: Any

    def start(self) -> None:
        self.ready.record(self.stream)
        self.nccl.stream.wait_event(self.ready)
        self.nccl.all_reduce(self.buffers)
        self.done.record(self.nccl.stream)

    def wait(self) -> None:
        self.stream.wait_event(self.done)
