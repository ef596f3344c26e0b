"""The recipe.net of a run directory: the resolved recipe below notes on how the run began."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from netdsl import __version__
from netdsl.file_io import write_atomically

_HEADING = re.compile(r"# netdsl \S+, train (\w+)")


def write_recipe(path: Path, name: str | None, text: str, notes: Sequence[str] = ()) -> None:
    """Writes the recipe.net of a run: its text, and above it what it was called where it began and
    what was changed on the way. In the text it has no name: one that is there already stays."""
    begun = _HEADING.match(_first_line(path))
    called = name or (begun[1] if begun else "section")
    lines = [f"# netdsl {__version__}, train {called}", *(f"# {n}" for n in notes)]
    write_atomically(path, ("\n".join(lines) + f"\n{text}").encode())


def _first_line(path: Path) -> str:
    """What a file begins with; nothing where there is none."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as f:
        return f.readline(1000)
