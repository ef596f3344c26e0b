"""The lightweight entry point: sets up output streams and signal handling before importing the
rest."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from netdsl.environment import can_allocate
from netdsl.interrupt import ignore_signals, interrupt_on_signals
from netdsl.ranks.abandoned_launch import abandon_launch
from netdsl.standard_streams import open_standard_streams

INTERRUPTED_EXIT_CODE = 130
_MIN_ADDRESS_SPACE = 160 * 10**6
"""Bytes of address space that NumPy needs to load and to multiply matrices in a few threads. With
less, its OpenBLAS ends the process."""


def main() -> None:
    """Runs the command line and exits with its exit code, or with 130 if interrupted, even while
    still loading."""
    open_standard_streams()
    code = INTERRUPTED_EXIT_CODE
    with suppress(KeyboardInterrupt):
        with suppress(KeyboardInterrupt):
            interrupt_on_signals()
            code = _run()
        ignore_signals()  # the work is done, and Python's own shutdown takes a while
    ignore_signals()
    abandon_launch(code)
    if code == INTERRUPTED_EXIT_CODE:
        # exit immediately: an interrupt within `exec`, which creates dataclasses, would make Python
        # exit by SIGINT instead, and Python would wait for running threads
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    try:
        if not can_allocate(_MIN_ADDRESS_SPACE):
            raise MemoryError
        from netdsl import cli
    except (ImportError, MemoryError, OSError) as e:
        reason = str(e) or "there is too little memory (`ulimit -v`)"
        print(f"error: netdsl cannot be loaded: {reason}", file=sys.stderr)
        return 2
    try:
        cli.main()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 0
    return 0


if __name__ == "__main__":
    main()
