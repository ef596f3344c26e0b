"""Ctrl-C, SIGTERM and SIGHUP as a question that a run answers between two steps, so that it can
save."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

HANGUP = signal.Signals.__members__.get("SIGHUP")
"""None on a system without terminals that hang up."""
SIGNALS = tuple(s for s in (signal.SIGINT, signal.SIGTERM, HANGUP) if s is not None)


def find_handled_signals() -> tuple[signal.Signals, ...]:
    """Those of them that somebody may end this process by. What it was started to ignore it goes
    on ignoring: SIGHUP under `nohup`, SIGINT behind a shell's `&`."""
    return tuple(s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN)


def interrupt_on_signals() -> None:
    """Each of them raises KeyboardInterrupt. One that comes up in a callback of Python's own, as of
    a weak reference, is lost there, and nothing is printed of it."""
    sys.unraisablehook = _report_unraisable
    for s in find_handled_signals():
        signal.signal(s, signal.default_int_handler)


def _report_unraisable(unraisable: Any) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def ignore_signals() -> None:
    """Nothing interrupts from now on. Signals are blocked first, at once: Python's own end gives
    them their first meaning again, which is to end the process. Raises KeyboardInterrupt where one
    came just before; a second call then does it."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for s in find_handled_signals():
        signal.signal(s, signal.SIG_IGN)


@contextmanager
def defer_interrupts() -> Iterator[Callable[[], bool]]:
    """While it lasts, the first signal only makes the answer true; the same one once more
    interrupts. Not so SIGHUP, which the shell and the system both send when a terminal closes."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: set[int] = set()

    def handle(number: int, frame: Any) -> None:
        if number in received and number != HANGUP:
            raise KeyboardInterrupt
        received.add(number)
        with suppress(OSError):  # not by print, which may be what the signal interrupted
            os.write(2, b"\nsaving after this step; once more to stop at once\n")

    previous_handlers = {s: signal.signal(s, handle) for s in find_handled_signals()}
    try:
        yield lambda: bool(received)
    finally:
        for s, handler in previous_handlers.items():
            signal.signal(s, handler)
