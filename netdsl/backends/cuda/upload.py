"""Batches on their way to the GPU while a step runs: pinned memory, and a stream of their own."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netdsl.backends.array_backend import address
from netdsl.types import Array


@dataclass
class Slot:
    """A place that batches pass through: pinned memory, the same on the device, and two events:
    that the device has it, and that the step has taken it from there."""

    host: Array
    there: Array
    arrived: Any
    taken: Any


@dataclass
class Coming:
    """Values that are on their way, or what `values` are to be made of there; what has not looked
    at them yet may read `values`."""

    values: Any
    slot: Slot
    passed_on: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)


@dataclass
class Uploads:
    """Sends arrays ahead of the step that reads them. As many are on their way at a time as were
    sent and not passed on; their places are used again."""

    cuda: Any
    """CuPy's module `cuda`, or what stands for it."""
    empty: Callable[..., Array]
    """Allocates on the device: `empty(shape, dtype)`."""
    stream: Any = field(init=False)
    _slots: list[Slot] = field(default_factory=list)
    """All there are: what is on its way must not lose its memory, though nobody waits for it."""
    _free: dict[tuple[object, ...], deque[Slot]] = field(init=False)
    _pinned: dict[tuple[object, ...], deque[tuple[Array, Any]]] = field(init=False)
    """Memory that copies were made through, and when it has been read; the oldest first."""

    def __post_init__(self) -> None:
        self.stream = self.cuda.Stream(non_blocking=True)
        self._free, self._pinned = defaultdict(deque), defaultdict(deque)

    def send(self, values: Array, shown: Any = None) -> Coming:
        """Begins an upload and comes back before it is over; `shown` stands for `values`."""
        free = self._free[_kind(values)]
        slot = free.popleft() if free else self._slot(values)
        slot.arrived.synchronize()  # what was sent from this memory before has left it
        np.copyto(slot.host, values)
        self.stream.wait_event(slot.taken)
        slot.there.set(slot.host, stream=self.stream)
        slot.arrived.record(self.stream)
        return Coming(values if shown is None else shown, slot)

    def pass_on(self, coming: Coming, take: Callable[[Array], None], stream: Any) -> None:
        """Lets `take` read what has come, in the order of `stream`."""
        slot = coming.slot
        stream.wait_event(slot.arrived)
        take(slot.there)
        slot.taken.record(stream)
        if not coming.passed_on:
            coming.passed_on = True
            self._free[_kind(slot.host)].append(slot)

    def copy(self, values: Array, target: Array, stream: Any) -> None:
        """Copies into `target` in the order of `stream`; `values` may change at once."""
        free = self._pinned[_kind(values)]
        ready = free and free[0][1].done
        host, read = free.popleft() if ready else pinned(self.cuda, values.shape, values.dtype)
        np.copyto(host, values)
        target.data.copy_from_host_async(address(host), host.nbytes, stream)
        read.record(stream)
        free.append((host, read))

    def _slot(self, values: Array) -> Slot:
        host, arrived = pinned(self.cuda, values.shape, values.dtype)
        there = self.empty(values.shape, values.dtype)
        taken = self.cuda.Event(disable_timing=True)
        taken.record()  # behind what has used the memory before
        self._slots.append(Slot(host, there, arrived, taken))
        return self._slots[-1]


def pinned(cuda: Any, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Any]:
    """Memory that a device reads and writes by itself, and an event for when it has."""
    size, kind = math.prod(shape), np.dtype(dtype)
    host = np.frombuffer(cuda.alloc_pinned_memory(size * kind.itemsize), kind, size)
    return host.reshape(shape), cuda.Event(disable_timing=True)


def _kind(values: Array) -> tuple[object, ...]:
    return (*values.shape, values.dtype.str)
