"""Numbers on their way back from the GPU, which goes on meanwhile."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netdsl.backends.array_backend import address
from netdsl.backends.cuda.upload import pinned
from netdsl.types import Array

_CELL = 8
"""Bytes for each number."""


@dataclass
class _Cells:
    """Pinned memory, and the event that numbers have come to it."""

    host: Array
    arrived: Any


@dataclass(frozen=True)
class Asked:
    """Numbers by name that were asked for. They are to be looked at once."""

    kinds: Mapping[str, Any]
    cells: _Cells
    free: deque[_Cells]

    def is_ready(self) -> bool:
        return bool(self.cells.arrived.done)

    def result(self) -> dict[str, float]:
        """The numbers, waited for."""
        self.cells.arrived.synchronize()
        at = (self.cells.host[i * _CELL :] for i in range(len(self.kinds)))
        found = {
            name: float(cell[: kind.itemsize].view(kind)[0])
            for (name, kind), cell in zip(self.kinds.items(), at, strict=True)
        }
        self.free.append(self.cells)
        return found


@dataclass
class Readings:
    """Asks for numbers; the memory that they come to is used again."""

    cuda: Any
    """CuPy's module `cuda`, or what stands for it."""
    _all: list[_Cells] = field(default_factory=list)
    """What is on its way must not lose its memory, though nobody waits for it."""
    _free: dict[int, deque[_Cells]] = field(default_factory=lambda: defaultdict(deque))

    def begin(self, numbers: Mapping[str, Array], stream: Any) -> Asked:
        """What they are when the stream comes to this point."""
        free = self._free[len(numbers)]
        cells = free.popleft() if free else self._cells(len(numbers))
        first = address(cells.host)
        for i, number in enumerate(numbers.values()):
            number.data.copy_to_host_async(first + i * _CELL, number.dtype.itemsize, stream)
        cells.arrived.record(stream)
        return Asked({name: n.dtype for name, n in numbers.items()}, cells, free)

    def _cells(self, count: int) -> _Cells:
        self._all.append(_Cells(*pinned(self.cuda, (count * _CELL,), np.uint8)))
        return self._all[-1]
