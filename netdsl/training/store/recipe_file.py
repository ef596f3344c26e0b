"""The recipe.net of a run directory: the resolved recipe below notes on how the run began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netdsl.file_io import write_atomically
from netdsl.language.upgrade import Heading, read_heading


def write_recipe(path: Path, name: str | None, text: str, notes: Sequence[str] = ()) -> None:
    """Writes a run's recipe.net: a heading with the recipe's name and the changes made to the run
    so far, then the text. The recipe has no name in the text, so without `name` the heading keeps
    the one already in the file."""
    begun = read_heading(_first_line(path))
    called = name or (begun.recipe if begun else "section")
    lines = [str(Heading(called)), *(f"# {n}" for n in notes)]
    write_atomically(path, ("\n".join(lines) + f"\n{text}").encode())


def _first_line(path: Path) -> str:
    """The first line of a file; empty if the file does not exist."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as f:
        return f.readline(1000)
