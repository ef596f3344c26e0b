"""The light entry point: output and signals are seen to before anything else is imported."""

from __future__ import annotations

import sys

from netdsl.environment import has_room
from netdsl.interrupt import interrupt_on_signals
from netdsl.output import open_standard_streams

_ROOM = 160 * 10**6
"""Bytes of addresses that NumPy takes to load and to multiply matrices in a few threads. With less
its OpenBLAS ends the process."""


def main() -> None:
    """Runs the command line; exit code 130 where it is interrupted while it is still loading."""
    open_standard_streams()
    try:
        interrupt_on_signals()
        if not has_room(_ROOM):
            raise MemoryError
        from netdsl import cli
    except KeyboardInterrupt:
        sys.exit(130)
    except (ImportError, MemoryError, OSError) as e:
        why = str(e) or "there is too little memory (`ulimit -v`)"
        print(f"error: netdsl cannot be loaded: {why}", file=sys.stderr)
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
