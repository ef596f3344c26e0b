"""Files named on the command line: reading programs, finding .net files, making run directories."""

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

    program = build_program(file := _parse(path))
    if not settings:
        return program
    return build_program(override(file, settings, net, program.net_table.used))


def load_recipe(path: str, settings: list[str] | None, recipe: str | None) -> Program:
    """The program of a file for training; a bare name in `--set` is a parameter of the recipe's
    net."""
    from netdsl.language.override import override
    from netdsl.language.program import build_program
    from netdsl.training.recipe.recipe import net_name

    program = build_program(file := _parse(path))
    if not settings:
        return program
    net = net_name(program, recipe)
    return build_program(override(file, settings, net, program.net_table.used))


def _parse(path: str) -> File:
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


def create_run_directory(path: str, out: Path | None) -> Path:
    """The directory for a new run, created immediately so that no other run takes it.

    Raises NetError if the requested one already holds files of a run, or if one of its
    subdirectories does, which may have the name of a stage.
    """
    from netdsl.training.store.run_directory import RUN_FILES

    if out is not None:
        paths = [p for name in RUN_FILES for place in (name, f"*/{name}") for p in out.glob(place)]
        existing_files = [str(p.relative_to(out)) for p in paths]
        if existing_files:
            message = f"{out} already holds {', '.join(existing_files)}"
            raise fail(message, help="give another `--out`; no file is ever overwritten")
        out.mkdir(parents=True, exist_ok=True)
        return out
    stem = Path(path).stem if path != "-" else "stdin"
    number = 1
    while True:
        directory = Path("runs") / f"{stem}-{number}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return directory
