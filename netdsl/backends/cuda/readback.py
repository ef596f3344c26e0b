"""Copies outputs back from the GPU asynchronously."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netdsl.backends.array_backend import address
from netdsl.backends.cuda.async_upload import allocate_pinned
from netdsl.types import Array

_CELL_BYTES = 8
"""Each output begins at a multiple of it."""


@dataclass
class _PinnedBuffer:
    """Pinned memory for outputs, and the event of their arrival."""

    host: Array
    arrival: Any


@dataclass(frozen=True)
class PendingReadback:
    """Requested outputs by name, each an empty array of its shape and type in pinned memory until
    it arrives. `result` may be called once."""

    outputs: Mapping[str, Array]
    buffer: _PinnedBuffer
    free: deque[_PinnedBuffer]

    def is_ready(self) -> bool:
        return bool(self.buffer.arrival.done)

    def result(self) -> dict[str, Array]:
        """Waits for the outputs and returns them."""
        self.buffer.arrival.synchronize()
        found = {name: array.copy() for name, array in self.outputs.items()}
        self.free.append(self.buffer)
        return found


@dataclass
class ReadbackPool:
    """Starts readbacks, and reuses their pinned memory."""

    cuda: Any
    """CuPy's module `cuda`, or a mock."""
    _buffers: list[_PinnedBuffer] = field(default_factory=list)
    """All buffers: keeps their memory alive during a copy that nobody waits for."""
    _free: dict[int, deque[_PinnedBuffer]] = field(default_factory=lambda: defaultdict(deque))
    """Buffers that are not in use, by their size."""

    def start(self, outputs: Mapping[str, Array], stream: Any) -> PendingReadback:
        """Requests the values that the outputs, dense arrays, have at this point of the stream."""
        size = sum(map(_padded_bytes, outputs.values()))
        free = self._free[size]
        buffer = free.popleft() if free else self._allocate(size)
        arrays, start = {}, 0
        for name, output in outputs.items():
            cells = buffer.host[start : start + output.nbytes]
            output.data.copy_to_host_async(address(cells), output.nbytes, stream)
            arrays[name] = cells.view(output.dtype).reshape(output.shape)
            start += _padded_bytes(output)
        buffer.arrival.record(stream)
        return PendingReadback(arrays, buffer, free)

    def _allocate(self, size: int) -> _PinnedBuffer:
        self._buffers.append(_PinnedBuffer(*allocate_pinned(self.cuda, (size,), np.uint8)))
        return self._buffers[-1]


def _padded_bytes(output: Array) -> int:
    return -(-output.nbytes // _CELL_BYTES) * _CELL_BYTES
