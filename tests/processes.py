"""Processes that tests start: none outlives its test, and none is waited for forever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

TIME_LIMIT = 120.0
"""Default timeout of a process or thread, in seconds: ample even on a busy machine."""
NETDSL = (sys.executable, "-m", "netdsl")
NO_OUTPUT: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

# Runs in the new process before the command. `preexec_fn` would run Python in a fork of a
# multithreaded process, which may deadlock.
_PREPARE = """
import os, signal, sys
ignored, closed, *command = sys.argv[1:]
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(s, signal.SIG_IGN if str(int(s)) in ignored.split() else signal.SIG_DFL)
if sys.platform == "linux":  # killed tests end what they have started
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
for number in closed.split():
    os.close(int(number))
os.execvp(command[0], command)
"""


@contextmanager
def start_process(
    *command: str,
    ignoring: Collection[signal.Signals] = (),
    closing: Collection[int] = (),
    **options: Any,
) -> Iterator[subprocess.Popen[Any]]:
    """Starts a process in its own session; kills it and all its children at the end of the block.
    It ignores the signals of `ignoring` and no others, whatever the tests run under, and starts
    without the descriptors of `closing`."""
    numbers = (" ".join(str(int(n)) for n in given) for given in (ignoring, closing))
    prepared = [sys.executable, "-I", "-S", "-c", _PREPARE, *numbers, *command]
    process = subprocess.Popen(prepared, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(TIME_LIMIT)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):  # data not yet written has no reader any more
                    stream.close()


def run_process(
    *command: str, limit: float | None = TIME_LIMIT, given: Any = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Runs a process to its end and returns its output, unless `options` redirect it. Raises
    TimeoutExpired after `limit` seconds."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if given is not None:
        streams["stdin"] = subprocess.PIPE
    with start_process(*command, **(streams | options)) as process:
        out, err = process.communicate(given, timeout=limit)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    """Waits until a process has created a file."""
    end = time.monotonic() + TIME_LIMIT
    while not path.exists():
        assert process.poll() is None, f"it has ended with {process.returncode} without {path}"
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.01)


def run_in_threads(*work: Callable[[], Any]) -> list[Any]:
    """Runs functions in threads and returns their results; raises the first exception of one of
    them, or TimeoutError."""
    ends: list[Any] = [TimeoutError("a thread has not ended")] * len(work)

    def run(i: int) -> None:
        try:
            ends[i] = (work[i](),)
        except BaseException as e:
            ends[i] = e

    threads = [Thread(target=run, args=(i,), daemon=True) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIME_LIMIT)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [value for (value,) in ends]
