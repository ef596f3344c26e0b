"""The command line of the lecture's page.

    python -m docs.tools.lecture measure [ROW.toml ...]   # run the commands, write ROW.json
    python -m docs.tools.lecture page > docs/lecture.md   # from all rows

`measure` runs the commands of each row (all rows if none is named), prints seconds and figures, and
writes what was measured even if a figure is out of its bounds; then the exit code is 1. `--missing`
leaves out rows whose record has all commands and figures, within their bounds. `--folder DIR` runs
the commands there and keeps what they write, such as pictures. Run it twice on a new machine: the
first time, the seconds include compiling.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docs.tools.lecture_page import write_page
from docs.tools.lecture_records import check_measurement, read_measurement, write_measurement
from docs.tools.lecture_rows import ROWS, read_row, read_rows
from docs.tools.lecture_runs import measure
from netdsl.errors import NetError


def main(arguments: list[str] | None = None) -> int:
    options = _read_options(arguments)
    try:
        if options.command == "page":
            sys.stdout.write(write_page(read_rows()))
            return 0
        rows = options.rows or sorted(ROWS.glob("*.toml"))
        if options.missing:
            rows = [path for path in rows if not _is_measured(path)]
        return max([_measure(path, options.folder) for path in rows], default=0)
    except NetError as e:
        print(e.render(), file=sys.stderr)
        return 2


def _read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m docs.tools.lecture")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="Print docs/lecture.md.")
    measuring = commands.add_parser("measure", help="Run the commands of rows.")
    measuring.add_argument("rows", nargs="*", type=Path, metavar="ROW.toml")
    measuring.add_argument("--folder", type=Path, help="Run the commands here, and keep it.")
    measuring.add_argument("--missing", action="store_true", help="Only rows that need it.")
    return parser.parse_args(arguments)


def _is_measured(path: Path) -> bool:
    row = read_row(path)
    try:
        return not row.commands or not check_measurement(row, read_measurement(row))
    except NetError:
        return False


def _measure(path: Path, folder: Path | None) -> int:
    row = read_row(path)
    _report(row.name)
    measurement = measure(row, folder, _report)
    write_measurement(row, measurement)
    problems = check_measurement(row, measurement)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
