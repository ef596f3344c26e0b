"""Uploads batches to the GPU while a step runs, through pinned memory and on a separate stream."""

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
class StagingBuffer:
    """A staging buffer for uploads: pinned memory, device memory of the same size, and two events:
    `arrival`, after the copy to the device, and `release`, after the step has read it there."""

    host: Array
    device_array: Array
    arrival: Any
    release: Any


@dataclass
class PendingUpload:
    """An upload in flight: of `values`, or of what the device computes them from. The host may read
    `values` in the meantime."""

    values: Any
    staging: StagingBuffer
    is_consumed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)


@dataclass
class Uploader:
    """Sends arrays ahead of the step that reads them. Any number may be in flight; the staging
    buffer of an upload is reused once it is consumed."""

    cuda: Any
    """CuPy's module `cuda`, or a mock."""
    empty: Callable[..., Array]
    """Allocates on the device: `empty(shape, dtype)`."""
    stream: Any = field(init=False)
    _buffers: list[StagingBuffer] = field(default_factory=list)
    """All staging buffers: keeps their memory alive during a copy that nobody waits for."""
    _free: dict[tuple[object, ...], deque[StagingBuffer]] = field(init=False)
    _copy_buffers: dict[tuple[object, ...], deque[tuple[Array, Any]]] = field(init=False)
    """Pinned memory of `copy`, each with the event after which it may be reused; oldest first."""

    def __post_init__(self) -> None:
        self.stream = self.cuda.Stream(non_blocking=True)
        self._free, self._copy_buffers = defaultdict(deque), defaultdict(deque)

    def send(self, values: Array, pending_values: Any = None) -> PendingUpload:
        """Starts an upload and returns before it completes. `PendingUpload.values` are
        `pending_values`, if given, else `values`."""
        free = self._free[_buffer_key(values)]
        staging = free.popleft() if free else self._allocate(values)
        staging.arrival.synchronize()  # the previous copy from this memory is done
        np.copyto(staging.host, values)
        self.stream.wait_event(staging.release)
        staging.device_array.set(staging.host, stream=self.stream)
        staging.arrival.record(self.stream)
        return PendingUpload(values if pending_values is None else pending_values, staging)

    def consume(self, pending: PendingUpload, read: Callable[[Array], None], stream: Any) -> None:
        """Calls `read` with the uploaded array, in the order of `stream`."""
        staging = pending.staging
        stream.wait_event(staging.arrival)
        read(staging.device_array)
        staging.release.record(stream)
        if not pending.is_consumed:
            pending.is_consumed = True
            self._free[_buffer_key(staging.host)].append(staging)

    def copy(self, values: Array, target: Array, stream: Any) -> None:
        """Copies into `target` in the order of `stream`; `values` may be modified right away."""
        free = self._copy_buffers[_buffer_key(values)]
        is_ready = free and free[0][1].done
        host, read = (
            free.popleft() if is_ready else allocate_pinned(self.cuda, values.shape, values.dtype)
        )
        np.copyto(host, values)
        target.data.copy_from_host_async(address(host), host.nbytes, stream)
        read.record(stream)
        free.append((host, read))

    def _allocate(self, values: Array) -> StagingBuffer:
        host, arrival = allocate_pinned(self.cuda, values.shape, values.dtype)
        device_array = self.empty(values.shape, values.dtype)
        release = self.cuda.Event(disable_timing=True)
        release.record()  # after the previous user of the memory
        self._buffers.append(StagingBuffer(host, device_array, arrival, release))
        return self._buffers[-1]


def allocate_pinned(cuda: Any, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Any]:
    """Returns pinned memory for asynchronous copies, and an event to record after one."""
    size, kind = math.prod(shape), np.dtype(dtype)
    host = np.frombuffer(cuda.alloc_pinned_memory(size * kind.itemsize), kind, size)
    return host.reshape(shape), cuda.Event(disable_timing=True)


def _buffer_key(values: Array) -> tuple[object, ...]:
    return (*values.shape, values.dtype.str)
