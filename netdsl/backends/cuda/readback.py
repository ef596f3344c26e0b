"""Copies numbers back from the GPU asynchronously."""

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
"""Bytes reserved for each number."""


@dataclass
class _PinnedScalars:
    """Pinned memory for numbers, and the event of their arrival."""

    host: Array
    arrival: Any


@dataclass(frozen=True)
class PendingReadback:
    """Requested numbers by name. `result` may be called once."""

    dtypes: Mapping[str, Any]
    buffer: _PinnedScalars
    free: deque[_PinnedScalars]

    def is_ready(self) -> bool:
        return bool(self.buffer.arrival.done)

    def result(self) -> dict[str, float]:
        """Waits for the numbers and returns them."""
        self.buffer.arrival.synchronize()
        cells = (self.buffer.host[i * _CELL_BYTES :] for i in range(len(self.dtypes)))
        found = {
            name: float(cell[: kind.itemsize].view(kind)[0])
            for (name, kind), cell in zip(self.dtypes.items(), cells, strict=True)
        }
        self.free.append(self.buffer)
        return found


@dataclass
class ReadbackPool:
    """Starts readbacks, and reuses their pinned memory."""

    cuda: Any
    """CuPy's module `cuda`, or a mock."""
    _buffers: list[_PinnedScalars] = field(default_factory=list)
    """All buffers: keeps their memory alive during a copy that nobody waits for."""
    _free: dict[int, deque[_PinnedScalars]] = field(default_factory=lambda: defaultdict(deque))

    def start(self, numbers: Mapping[str, Array], stream: Any) -> PendingReadback:
        """Requests the values that the numbers have at this point of the stream."""
        free = self._free[len(numbers)]
        buffer = free.popleft() if free else self._allocate(len(numbers))
        first = address(buffer.host)
        for i, number in enumerate(numbers.values()):
            number.data.copy_to_host_async(first + i * _CELL_BYTES, number.dtype.itemsize, stream)
        buffer.arrival.record(stream)
        return PendingReadback({name: n.dtype for name, n in numbers.items()}, buffer, free)

    def _allocate(self, count: int) -> _PinnedScalars:
        self._buffers.append(
            _PinnedScalars(*allocate_pinned(self.cuda, (count * _CELL_BYTES,), np.uint8))
        )
        return self._buffers[-1]
