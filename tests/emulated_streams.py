"""Streams, events and graphs of an emulated GPU, strict about what a capture forbids.

Work outside of a capture runs at once. A graph runs what it captured in a random order, as far as
streams and events allow it: where a wait is missing, values are read before they are there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

Operation = Callable[[], None]


@dataclass(frozen=True)
class CapturedOperation:
    """An operation of a graph, with the numbers of those that it follows."""

    run: Operation
    label: str
    stream: int
    after: frozenset[int]


@dataclass
class Capture:
    """What the stream `origin`, and those that have joined it, have captured so far."""

    origin: EmulatedStream
    operations: list[CapturedOperation] = field(default_factory=list)
    joined: list[EmulatedStream] = field(default_factory=list)
    is_open: bool = True


class EmulatedStream:
    """Runs all work at once, unless it is capturing."""

    _numbers = count(1)

    def __init__(self, gpu: Any, non_blocking: bool, priority: int) -> None:
        assert non_blocking
        self.gpu, self.priority = gpu, priority
        self.capture: Capture | None = None
        self.tail: frozenset[int] = frozenset()
        """The operations of the capture that the next one here follows."""
        self.ptr = next(EmulatedStream._numbers)

    @property
    def is_capturing(self) -> bool:
        return self.capture is not None

    def use(self) -> None:
        self.gpu.current = self

    def synchronize(self) -> None:
        assert not self.is_capturing, "nothing may be waited for while a stream captures"

    def wait_event(self, event: EmulatedEvent) -> None:
        assert event.is_recorded
        if event.capture is None:
            assert not self.is_capturing, "an event from outside of the capture"
            return
        assert event.capture.is_open, "an event of a capture that has ended"
        assert self.capture in (None, event.capture)
        if self.capture is None:
            self.capture = event.capture
            self.capture.joined.append(self)
        self.tail |= event.tail

    def begin_capture(self) -> None:
        assert not self.is_capturing
        self.capture, self.tail = Capture(self), frozenset()

    def end_capture(self) -> EmulatedGraph:
        capture = self.capture
        assert capture is not None
        assert capture.origin is self
        graph = EmulatedGraph(capture.operations)
        past = self.tail | graph.ancestors(self.tail)
        for stream in (self, *capture.joined):
            assert stream.tail <= past, "work of another stream that this one does not wait for"
            stream.capture, stream.tail = None, frozenset()
        capture.is_open = False
        self.gpu.graphs.append(graph)
        return graph

    def do(self, run: Operation, label: str = "") -> None:
        if self.capture is None:
            run()
        else:
            operations = self.capture.operations
            operations.append(CapturedOperation(run, label, self.ptr, self.tail))
            self.tail = frozenset((len(operations) - 1,))


class EmulatedEvent:
    """Is done at a random time, at the latest when it is waited for."""

    def __init__(self, disable_timing: bool = False) -> None:
        self.timed, self.waited, self.is_recorded = not disable_timing, False, False
        self.capture: Capture | None = None
        self.tail: frozenset[int] = frozenset()

    def record(self, stream: EmulatedStream | None = None) -> None:
        self.waited, self.is_recorded = False, True
        self.capture = stream.capture if stream else None
        self.tail = stream.tail if stream else frozenset()

    def synchronize(self) -> None:
        assert self.capture is None
        self.waited = True

    @property
    def done(self) -> bool:
        return self.waited or random.random() < 0.3


class EmulatedGraph:
    """What a stream has captured."""

    def __init__(self, operations: list[CapturedOperation]) -> None:
        self.operations = operations
        assert operations, "a graph of nothing"

    def ancestors(self, numbers: frozenset[int]) -> frozenset[int]:
        """What must have run before these can."""
        found, todo = set[int](), list(numbers)
        while todo:
            for number in self.operations[todo.pop()].after - found:
                found.add(number)
                todo.append(number)
        return frozenset(found)

    def launch(self, stream: EmulatedStream) -> None:
        assert not stream.is_capturing
        followers: dict[int, list[int]] = {}
        missing = [len(o.after) for o in self.operations]
        for number, operation in enumerate(self.operations):
            for before in operation.after:
                followers.setdefault(before, []).append(number)
        ready = [number for number, n in enumerate(missing) if not n]
        while ready:
            number = ready.pop(random.randrange(len(ready)))
            self.operations[number].run()
            for follower in followers.get(number, ()):
                missing[follower] -= 1
                if not missing[follower]:
                    ready.append(follower)
