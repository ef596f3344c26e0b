"""The light entry point: an interrupt counts from the first moment, before anything is imported."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Runs the command line; exit code 130 where it is interrupted while it is still loading."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from netdsl import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
