"""The light entry point: output and signals are seen to before anything else is imported."""

from __future__ import annotations

import sys

from netdsl.interrupt import interrupt_on_signals
from netdsl.output import open_standard_streams


def main() -> None:
    """Runs the command line; exit code 130 where it is interrupted while it is still loading."""
    open_standard_streams()
    try:
        interrupt_on_signals()
        from netdsl import cli
    except KeyboardInterrupt:
        sys.exit(130)
    except (ImportError, MemoryError, OSError) as e:
        print(
            f"error: netdsl cannot be loaded: {e or 'there is too little memory'}", file=sys.stderr
        )
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
