"""Files named on the command line: reading programs and finding .net files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from netdsl.errors import fail

if TYPE_CHECKING:
    from netdsl.language.program import Program
    from netdsl.language.syntax import File


def read_source(path: str) -> str:
    from netdsl.language.program import decode_text, read_text
    from netdsl.limits import MAX_FILE_BYTES

    if path != "-":
        return read_text(path)
    if sys.stdin is None:
        raise fail("there is no standard input")
    try:
        return decode_text(sys.stdin.buffer.read(MAX_FILE_BYTES + 1), "standard input")
    except OSError as e:
        raise fail(f"cannot read standard input: {e.strerror or e}") from None


def load_program(path: str, settings: list[str] | None = None, net: str | None = None) -> Program:
    """The program of a file, with `--set` applied; a bare name there is a parameter of `net`."""
    from netdsl.language.override import override
    from netdsl.language.program import build_program
    from netdsl.training.recipe.recipe import HOMES

    program = build_program(file := parse_argument(path))
    if not settings:
        return program
    return build_program(override(file, settings, net, program.net_table.used, HOMES))


def load_recipe(path: str, settings: list[str] | None, recipe: str | None) -> Program:
    """The program of a file for training; a bare name in `--set` is a parameter of the recipe's
    net."""
    from netdsl.training.recipe.recipe import override_recipe

    return override_recipe(parse_argument(path), settings or (), recipe)


def parse_argument(path: str) -> File:
    """The syntax tree of a file, or of standard input (`-`)."""
    from netdsl.language.program import parse_file
    from netdsl.language.upgrade import parse_any_format

    return parse_any_format(read_source(path), "<stdin>") if path == "-" else parse_file(path)


def find_net_files(places: list[str]) -> list[str]:
    found: list[str] = []
    for place in places:
        if Path(place).is_dir():
            found += sorted(str(p) for p in Path(place).rglob("*.net") if p.is_file())
        else:
            found.append(place)
    if not found:
        raise fail(f"there are no .net files in {', '.join(places)}")
    return found
