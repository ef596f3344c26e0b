"""The values of the language's expressions: the plain values that sections and calls receive."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

from netdsl.errors import Span


@dataclass(frozen=True, slots=True)
class Size:
    """A size literal such as `3x3` or `224x224x3`."""

    dims: tuple[int, ...]

    def __str__(self) -> str:
        return "x".join(map(str, self.dims))


class Text(str):
    """A quoted text and where it is written: a path is looked up beside the file that names it."""

    __slots__ = ("span",)
    span: Span | None

    def __new__(cls, value: str, span: Span | None = None) -> Self:
        text = super().__new__(cls, value)
        text.span = span
        return text


@dataclass(frozen=True, slots=True)
class Symbol:
    """A bare name that is not a variable: `same`, `he`, `imagenet`.

    `variables` are the names that could have been meant, and `labels` those of the chains before
    it, for messages.
    """

    name: str
    span: Span | None = field(default=None, compare=False, repr=False)
    variables: Collection[str] = field(default=(), compare=False, repr=False)
    labels: Collection[str] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call; `name` is None for a positional one."""

    name: str | None
    value: Value
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call kept as a value: `sgd(lr=0.1)`, `folder("imagenet")`.

    `variables` are the names that are visible, `functions` the built-in functions, for messages.
    """

    name: str
    arguments: tuple[Argument, ...]
    span: Span | None = None
    variables: Collection[str] = field(default=(), compare=False, repr=False)
    functions: Collection[str] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        inside = ", ".join(
            f"{a.name}={format_value(a.value)}" if a.name else format_value(a.value)
            for a in self.arguments
        )
        return f"{self.name}({inside})"


Value = int | float | bool | str | None | Size | Symbol | Call | tuple["Value", ...]


def format_value(value: object) -> str:
    """Formats a value as it would be written in a .net file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_format_entry, value)) + "]"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)


def _format_entry(entry: object) -> str:
    """An entry of a list. A name, a text or a call with a number is written as a pair: `("8", 5)`;
    the language has one value for pairs and lists of two."""
    if isinstance(entry, tuple) and len(entry) == 2:
        first, second = entry
        is_number = second is None or isinstance(second, int | float)
        if is_number and first is not None and not isinstance(first, int | float | tuple | Size):
            return f"({format_value(first)}, {format_value(second)})"
    return format_value(entry)
