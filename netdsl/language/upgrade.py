"""Texts that runs keep: the format in their heading, and what words meant in earlier formats."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from netdsl import __version__
from netdsl.errors import fail
from netdsl.language import syntax as s
from netdsl.language.parse import parse

FORMAT = 2
"""Of checkpoints and of the texts that runs keep; docs/compatibility.md has the list of formats.
Raise it when a version that reads only the formats before would misread a file."""
_HEADING = re.compile(r"# netdsl \S+, (?:format (\d{1,9}), )?train (\w+)")


@dataclass(frozen=True)
class Heading:
    """The first line of a recipe.net: the format of the text and the name of the recipe."""

    recipe: str
    format: int = FORMAT

    def __str__(self) -> str:
        return f"# netdsl {__version__}, format {self.format}, train {self.recipe}"


def read_heading(text: str) -> Heading | None:
    """Returns the heading of a text that a run wrote; None if it has none. A heading without a
    format is of format 1."""
    found = _HEADING.match(text)
    return Heading(found[2], int(found[1] or 1)) if found else None


def parse_any_format(text: str, name: str, folder: str | None = None) -> s.File:
    """Parses a text of the format that its heading says; without a heading, of the current one.
    Raises NetError as `parse` and `upgrade` do."""
    heading = read_heading(text)
    file = parse(text, name, folder)
    return upgrade(file, heading.format) if heading else file


def upgrade(file: s.File, written: int) -> s.File:
    """Returns a text of format `written` with what it meant then. Raises NetError if the format is
    a later one."""
    if written > FORMAT:
        name = file.span.source.name
        message = f"{name} has format {written:,}; this netdsl reads formats up to {FORMAT}"
        raise fail(message, help="install a newer netdsl")
    return file if written > 1 else _spell_out_gelu(file)


def _spell_out_gelu(file: s.File) -> s.File:
    """In format 1, `gelu` is what `gelu(tanh)` is now."""
    if any(isinstance(i, s.Block) and i.name == "gelu" for i in file.items):
        return file
    return replace(file, items=tuple(_GeluSpelling().visit(i) for i in file.items))


class _GeluSpelling:
    """Gives each step `gelu` of a block or net its argument. A label or shared chain of that name
    hides the layer from there on."""

    def __init__(self) -> None:
        self.is_hidden = False

    def visit(self, part: Any) -> Any:
        match part:
            case tuple():
                return tuple(map(self.visit, part))
            case s.Step(name="gelu", args=None | ()) if not self.is_hidden:
                return replace(part, args=(s.Arg(part.span, None, s.Name(part.span, "tanh")),))
            case s.SyntaxNode() if not isinstance(part, s.Expression):
                values = {f.name: self.visit(getattr(part, f.name)) for f in fields(part)}
                self.is_hidden |= isinstance(part, s.Chain) and part.label == "gelu"
                self.is_hidden |= isinstance(part, s.Shared) and part.name == "gelu"
                return replace(part, **values)
        return part
