"""Ctrl-C and SIGTERM as a question that a run answers between two steps, so that it can save."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asking() -> Iterator[Callable[[], bool]]:
    """While it lasts, the first signal only makes the answer true; the second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        with suppress(OSError):  # not by print, which may be what the signal interrupted
            os.write(2, b"\nsaving after this step; once more to stop at once\n")

    before = {s: signal.signal(s, handle) for s in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
