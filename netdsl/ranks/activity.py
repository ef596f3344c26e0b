"""What a rank does: its phase, and the collectives that it has entered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Activity:
    """What the watchdog tells of a rank. All ranks enter the same collectives, so that the one that
    has entered fewer than another is what the others wait for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase = "starting"
        self.entered = 0
        self._clock, self._lock = clock, threading.Lock()
        self._pending: dict[int, float] = {}

    @contextmanager
    def collective(self) -> Iterator[None]:
        """The block is a collective: it ends when all ranks have joined."""
        with self._lock:
            self.entered += 1
            number = self.entered
            self._pending[number] = self._clock()
        try:
            yield
        finally:
            del self._pending[number]

    def waited(self) -> float:
        """Returns for how many seconds the oldest collective has been waiting; 0 if none is."""
        pending = list(self._pending.values())
        return self._clock() - min(pending) if pending else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no collective is waiting."""
        return not self._pending
