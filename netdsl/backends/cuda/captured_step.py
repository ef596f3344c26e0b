"""A step as CUDA graphs: which thunks a graph can capture, and when that happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from netdsl.backends.base import SequentialThunk
from netdsl.backends.cuda.device import Device, Thunk


@dataclass(frozen=True)
class CapturableThunk:
    """A thunk that only launches kernels, so that a CUDA graph can capture it. It keeps `buffers`,
    which its addresses point into, alive."""

    run: Thunk
    buffers: object

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class CollectiveThunk(CapturableThunk):
    """The start of a collective, or the wait for it. A graph that captures one of them must capture
    the other as well, since a stream that has joined a capture has to leave it again."""


class CapturedStep:
    """A sequence of thunks. Its first call runs them one by one; the second one captures them as a
    CUDA graph (as several, if others come between) and launches it. All ranks of a run capture in
    the same call, as NCCL requires."""

    def __init__(self, device: Device, thunks: Sequence[Thunk]) -> None:
        self.device = device
        self.thunks = list(thunks)
        self.runs = 0
        self.segments: list[Thunk] = []

    def __call__(self) -> None:
        self.device.stream.use()
        self.runs += 1
        if self.runs == 2:
            self.segments = list(self._capture_segments())
        for thunk in self.segments or self.thunks:
            thunk()

    def _capture_segments(self) -> Iterator[Thunk]:
        is_whole = all(isinstance(t, CapturableThunk) for t in self.thunks)

        def is_captured(thunk: Thunk) -> bool:
            is_capturable = isinstance(thunk, CapturableThunk)
            return is_capturable and (is_whole or not isinstance(thunk, CollectiveThunk))

        for captured, group in groupby(self.thunks, is_captured):
            if captured:
                graph = self.device.capture_graph(SequentialThunk(tuple(group)))
                yield partial(graph.launch, self.device.stream)
            else:
                yield from group
