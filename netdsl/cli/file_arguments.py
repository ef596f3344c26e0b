"""Files named on the command line: reading programs and finding .net files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from netdsl.errors import NetError, fail
from netdsl.file_io import split_file_and_name
from netdsl.limits import MAX_KNOWN_NAMES

if TYPE_CHECKING:
    from netdsl.language.elaborate import ShrinkSettings
    from netdsl.language.network import Network
    from netdsl.language.program import Program
    from netdsl.language.syntax import File


def read_source(path: str) -> str:
    from netdsl.language.program import decode_text, read_text
    from netdsl.limits import MAX_FILE_BYTES

    if path != "-":
        with _suggest_missing_file(path):
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
    from netdsl.training.recipe.settings import SECTION_KEYS

    program = build_program(file := parse_argument(path))
    if not settings:
        return program
    return build_program(override(file, settings, net, program.net_table.used, SECTION_KEYS))


@dataclass(frozen=True)
class ChosenNet:
    """One net of a program (by default the one that it elaborates without a name)."""

    program: Program
    name: str | None
    shrink: ShrinkSettings | None

    def elaborate(self) -> Network:
        from netdsl.language.elaborate import Settings, elaborate

        return elaborate(self.program, self.name, Settings(shrink=self.shrink))


def load_net(place: str, settings: list[str] | None = None, shrink: int | None = None) -> ChosenNet:
    """The net of that name in a file, or the one that a checkpoint or a run was trained with."""
    from netdsl.file_kinds import CHECKPOINT, FOLDER, RUN, recognise
    from netdsl.language.elaborate import shrink_settings
    from netdsl.training.recipe.recipe import recipe_of_weights
    from netdsl.training.store import checkpoint

    path, name = split_file_and_name(place)
    if recognise(Path(path)) not in (CHECKPOINT, RUN, FOLDER):
        return ChosenNet(load_program(path, settings, name), name, shrink_settings(shrink))
    if settings:
        message = f"`--set` applies only to a .net file; {path} contains weights"
        raise fail(message, help="leave it out")
    program = checkpoint.load_best(Path(path)).program()
    recipe = recipe_of_weights(program)
    return ChosenNet(program, name or recipe.net, shrink_settings(shrink) or recipe.small)


def load_recipe(path: str, settings: list[str] | None, recipe: str | None) -> Program:
    """The program of a file for training; a bare name in `--set` is a parameter of the recipe's
    net."""
    from netdsl.training.recipe.settings import override_recipe

    return override_recipe(parse_argument(path), settings or (), recipe)


def parse_argument(path: str) -> File:
    """The syntax tree of a file, or of standard input (`-`)."""
    from netdsl.language.program import parse_file
    from netdsl.language.upgrade import parse_any_format

    if path == "-":
        return parse_any_format(read_source(path), "<stdin>")
    with _suggest_missing_file(path):
        return parse_file(path)


@contextmanager
def _suggest_missing_file(path: str) -> Iterator[None]:
    """Adds to the error of a file that does not exist the name of a .net file like it."""
    try:
        yield
    except NetError as e:
        place = Path(path)
        if os.path.lexists(path) or not place.parent.is_dir():
            raise
        names = [p.name for p in islice(place.parent.glob("*.net"), MAX_KNOWN_NAMES)]
        close = [n for n in (f"{place.name}.net", f"{place.stem}.net") if n in names]
        close += get_close_matches(place.name, names, n=1, cutoff=0.8)
        help = f"did you mean {place.with_name(close[0])}?" if close else None
        raise fail(e.message, help=help) from None


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
