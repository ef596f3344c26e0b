"""The end of a launch before MPI has started: the other ranks would wait for this one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from netdsl.ranks.launcher import find_launch

COMMAND_OF_RANKS = "train"
"""The command whose ranks make one run. Any other that a launcher starts runs as if alone."""
DELIVERY = 0.3
"""Seconds for a launcher to pass on what was printed: an abort may drop what it has not."""
_has_begun = False


def is_rank(arguments: list[str]) -> bool:
    """Whether this process is one of several ranks, given its command line."""
    launch = find_launch()
    return launch is not None and launch.size > 1 and arguments[1:2] == [COMMAND_OF_RANKS]


@contextmanager
def limit_start(seconds: float) -> Iterator[None]:
    """The block starts MPI, which waits for all ranks and cannot be interrupted: after this time
    the system ends the process, and with it the launcher ends the others. Once MPI has started, it
    takes every process that ends without leaving for a dead one."""
    global _has_begun
    has_alarm = sys.platform != "win32"
    if has_alarm:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    _has_begun = True
    try:
        yield
    finally:
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)


def abandon_launch(code: int) -> None:
    """Ends the other ranks if this one ends before MPI has started. Open MPI's launcher does that
    by itself at an exit code that is not 0; MPICH's is asked to, in its protocol PMI-1."""
    descriptor = os.environ.get("PMI_FD", "")
    if code == 0 or _has_begun or not is_rank(sys.argv) or not descriptor.isdecimal():
        return
    time.sleep(DELIVERY)
    with suppress(OSError):
        os.write(int(descriptor), b"cmd=abort exitcode=%d\n" % code)
