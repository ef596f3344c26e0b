"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 as a flag that a run checks between two steps, so that it can
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
"""None on a system without SIGHUP."""
PREEMPTION = signal.Signals.__members__.get("SIGUSR1")
"""What Slurm can send before a time limit or a job of higher priority ends the process, and what
`mpirun` of Open MPI passes on."""
SIGNALS = tuple(s for s in (signal.SIGINT, signal.SIGTERM, HANGUP, PREEMPTION) if s is not None)
STOP_MESSAGE = "saving after this step; interrupt again to stop immediately"


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has saved."""


def find_handled_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that may end this process. Those that it was started to ignore stay
    ignored: SIGHUP under `nohup`, SIGINT after a shell's `&`."""
    return tuple(s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN)


def interrupt_on_signals() -> None:
    """Makes each signal raise KeyboardInterrupt. One raised inside a callback of Python itself,
    such as that of a weak reference, is lost there without a message."""
    sys.unraisablehook = _report_unraisable
    for s in find_handled_signals():
        signal.signal(s, signal.default_int_handler)


def _report_unraisable(unraisable: Any) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def ignore_signals() -> None:
    """Ignores the signals from now on. Blocks them first, since Python's shutdown restores their
    default action, which is to end the process. Raises KeyboardInterrupt if a signal arrived just
    before; call it again in that case."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for s in find_handled_signals():
        signal.signal(s, signal.SIG_IGN)


def find_plain_interrupt() -> tuple[signal.Signals, ...]:
    """Returns SIGINT if it raises KeyboardInterrupt, as Python makes it, else nothing: a program
    that uses netdsl as a library handles its other signals itself."""
    is_plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return (signal.SIGINT,) if is_plain else ()


@contextmanager
def defer_interrupts(
    find_signals: Callable[[], tuple[signal.Signals, ...]] = find_handled_signals,
) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal has arrived. Inside the block, the first
    signal only sets that flag; the same signal again interrupts. Except for SIGHUP, which both the
    shell and the system send when a terminal closes."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous_handlers = {s: signal.getsignal(s) for s in find_signals()}
    is_received = _set_handlers(tuple(previous_handlers), announce_stop)
    try:
        yield is_received
    finally:
        for s, handler in previous_handlers.items():
            signal.signal(s, handler)


def keep_interrupts(announce: Callable[[], None]) -> Callable[[], bool]:
    """Returns a function that returns whether a signal has arrived. From now on, signals are
    handled as in the block of `defer_interrupts`; the handler calls `announce`."""
    return _set_handlers(find_handled_signals(), announce)


def _set_handlers(
    signals: tuple[signal.Signals, ...], announce: Callable[[], None]
) -> Callable[[], bool]:
    received: set[int] = set()

    def handle(number: int, frame: Any) -> None:
        if number in received and number != HANGUP:
            raise KeyboardInterrupt
        received.add(number)
        announce()

    for s in signals:
        signal.signal(s, handle)
    return lambda: bool(received)


def announce_stop() -> None:
    """Says that a signal has arrived; safe to call from its handler."""
    with suppress(OSError):  # not print, which the signal may have interrupted
        os.write(2, f"\n{STOP_MESSAGE}\n".encode())
