"""Collectives on arrays in the memory of the host, which the communicator reduces in place."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from netdsl.backends.base import AsyncThunk, Backend
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan
from netdsl.ranks.communicator import Communicator
from netdsl.types import Array


def bind_host_collective(
    backend: Backend, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
) -> AsyncThunk:
    """Binds a collective of a backend whose arrays are NumPy's."""

    def view(name: str) -> Array:
        place = plan.placements[name]
        return backend.view(memory[place.buffer], place.dtype, place.layout)

    pairs = [(plan.graph[name].args[0], name) for name in kernel.outputs]
    values = tuple(_make_value(view(source), view(target)) for source, target in pairs)
    reduction = _HostReduction(backend.communicator, values)
    return AsyncThunk(reduction.start, reduction.wait)


@dataclass(frozen=True)
class _ReducedValue:
    """The operand and the result of a reduction, and the contiguous array that is reduced: the
    result itself, unless it has gaps. In place, the operand is the result."""

    source: Array
    target: Array
    buffer: Array

    def load(self) -> None:
        if not _is_same_memory(self.source, self.buffer):
            self.buffer[...] = self.source

    def store(self) -> None:
        if self.buffer is not self.target:
            self.target[...] = self.buffer


def _make_value(source: Array, target: Array) -> _ReducedValue:
    buffer = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
    return _ReducedValue(source, target, buffer)


def _is_same_memory(a: Array, b: Array) -> bool:
    return bool(a.__array_interface__["data"] == b.__array_interface__["data"])


@dataclass
class _HostReduction:
    """A collective of one bucket, and what is pending of it."""

    communicator: Communicator
    values: tuple[_ReducedValue, ...]
    pending: Future[None] | None = field(default=None)

    def start(self) -> None:
        for value in self.values:
            value.load()
        self.pending = self.communicator.start_all_reduce([v.buffer for v in self.values])

    def wait(self) -> None:
        assert self.pending is not None
        self.pending.result()
        for value in self.values:
            value.store()
