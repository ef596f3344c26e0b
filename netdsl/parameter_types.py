"""The types of values that a parameter can take; each describes in words what it accepts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from netdsl.errors import Diagnostic, NetError
from netdsl.limits import MAX_ERRORS, MAX_GLOBS, MAX_LIST_LENGTH
from netdsl.values import Size, Symbol, Value


class TypeMismatch(Exception):
    """A value is not of a parameter's type; the message says what is expected."""


class ParameterType(Protocol):
    """A set of acceptable values. `accept` returns the plain Python value or raises
    TypeMismatch."""

    def accept(self, value: Value) -> Any: ...


class WordType(ABC):
    """A type that accepts some bare names, which help suggests for one that is misspelt."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]: ...

    @abstractmethod
    def accept(self, value: Value) -> Any: ...


MAX_INTEGER = 10**9
MAX_FLOAT32 = (2 - 2**-23) * 2.0**127
"""The largest finite number of float32, in which networks compute."""


@dataclass(frozen=True)
class Integer:
    """An integer in [low, high]."""

    low: int = 1
    high: int = MAX_INTEGER

    def accept(self, value: Value) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeMismatch("an integer")
        if not self.low <= value <= self.high:
            raise TypeMismatch(f"an integer {_format_range(self.low, self.high)}")
        return value


@dataclass(frozen=True)
class Float:
    """A real number in [low, high]; `above` and `below` are exclusive bounds."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def accept(self, value: Value) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeMismatch("a number")
        if not (self.low <= value <= self.high and self.above < value < self.below):
            raise TypeMismatch(f"a number {self._describe_range()}")
        if abs(value) > MAX_FLOAT32:
            raise TypeMismatch("a number that float32 can hold")
        return float(value)

    def _describe_range(self) -> str:
        parts = []
        if self.low > -math.inf or self.high < math.inf:
            parts.append(_format_range(self.low, self.high))
        if self.above > -math.inf:
            parts.append(f"above {self.above:g}")
        if self.below < math.inf:
            parts.append(f"below {self.below:g}")
        return " and ".join(parts)


def _format_range(low: float, high: float) -> str:
    if high in (math.inf, MAX_INTEGER):
        return f"of at least {_format_number(low)}"
    if low == -math.inf:
        return f"of at most {_format_number(high)}"
    return f"from {_format_number(low)} to {_format_number(high)}"


def _format_number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:g}"


@dataclass(frozen=True)
class Boolean:
    """`yes` or `no`."""

    def accept(self, value: Value) -> bool:
        if not isinstance(value, bool):
            raise TypeMismatch("`yes` or `no`")
        return value


@dataclass(frozen=True)
class QuotedText:
    """A quoted string."""

    def accept(self, value: Value) -> str:
        if not isinstance(value, str):
            raise TypeMismatch("a quoted string")
        return value


@dataclass(frozen=True)
class Choice(WordType):
    """One of a few bare names."""

    names: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return self.names

    def accept(self, value: Value) -> str:
        if not isinstance(value, Symbol) or value.name not in self.names:
            names = ", ".join(f"`{n}`" for n in self.names)
            raise TypeMismatch(f"one of {names}" if len(self.names) > 1 else names)
        return value.name


@dataclass(frozen=True)
class Extent:
    """Height and width: `3x3`, or a bare `3` for a square; each is at least `low`."""

    low: int = 1

    def accept(self, value: Value) -> tuple[int, int]:
        dims = value.dims if isinstance(value, Size) else value
        if isinstance(dims, tuple) and len(dims) == 2:
            pair = tuple(Integer(self.low, 65536).accept(d) for d in dims)
            return pair[0], pair[1]
        if isinstance(dims, int | float) and not isinstance(dims, bool):
            side = Integer(self.low, 65536).accept(dims)
            return side, side
        raise TypeMismatch("a height and width such as `3x3`, or one integer for a square")


@dataclass(frozen=True)
class Shape:
    """The shape of one image or vector: `224x224x3`, `[h, w, c]` or a bare length."""

    def accept(self, value: Value) -> tuple[int, ...]:
        dims = value.dims if isinstance(value, Size) else value
        if isinstance(dims, int | float) and not isinstance(dims, bool):
            dims = (dims,)
        if not isinstance(dims, tuple) or not 1 <= len(dims) <= 4:
            raise TypeMismatch("a shape such as `224x224x3`")
        return tuple(Integer(1, MAX_INTEGER).accept(d) for d in dims)


@dataclass(frozen=True)
class ListOf:
    """A list whose entries are all of one type; a single value counts as a list of one."""

    item_type: ParameterType
    length: int | None = None
    max_length: int = MAX_LIST_LENGTH

    def accept(self, value: Value) -> tuple[Any, ...]:
        entries = value if isinstance(value, tuple) else (value,)
        if len(entries) > self.max_length:
            raise TypeMismatch(f"a list of at most {self.max_length:,} entries")
        try:
            accepted = self._accept_entries(entries)
        except TypeMismatch as wanted:
            if isinstance(value, tuple):
                raise TypeMismatch(f"a list whose entries are each {wanted}") from None
            if self.length is None:
                raise TypeMismatch(f"{wanted}, or a list") from None
            if self.length > 1:
                raise TypeMismatch(f"a list of {self.length}") from None
            raise
        if self.length is not None and len(accepted) != self.length:
            raise TypeMismatch(f"a list of {self.length}")
        return accepted

    def _accept_entries(self, entries: tuple[Value, ...]) -> tuple[Any, ...]:
        """Raises NetError with what is wrong in each entry, not in the first alone."""
        accepted: list[Any] = []
        errors: list[Diagnostic] = []
        for entry in entries:
            try:
                accepted.append(self.item_type.accept(entry))
            except NetError as e:
                errors += e.diagnostics
        if errors:
            raise NetError(*errors[:MAX_ERRORS])
        return tuple(accepted)


@dataclass(frozen=True)
class ListOfPairs:
    """A list of pairs, such as `example`: `[("s3.*", 0.1), ("s4.*", 0.5)]`."""

    first: ParameterType
    second: ParameterType
    example: str
    max_length: int = MAX_LIST_LENGTH

    def accept(self, value: Value) -> tuple[tuple[Any, Any], ...]:
        entries = value if isinstance(value, tuple) else (value,)
        if len(entries) > self.max_length:
            raise TypeMismatch(f"a list of at most {self.max_length:,} pairs")
        return tuple(self._accept_pair(entry) for entry in entries)

    def _accept_pair(self, entry: Value) -> tuple[Any, Any]:
        if not isinstance(entry, tuple) or len(entry) != 2:
            raise TypeMismatch(f"a list of pairs, as in `{self.example}`")
        return self._accept_part("first", entry[0]), self._accept_part("second", entry[1])

    def _accept_part(self, which: str, value: Value) -> Any:
        try:
            return (self.first if which == "first" else self.second).accept(value)
        except TypeMismatch as wanted:
            message = f"a list of pairs, as in `{self.example}`, whose {which} value is {wanted}"
            raise TypeMismatch(message) from None


GLOB_LIST = ListOf(QuotedText(), max_length=MAX_GLOBS)
"""Globs over weights or locations, each of which is matched against all of them."""


@dataclass(frozen=True)
class OneOf:
    """Whatever the first matching type accepts."""

    alternatives: tuple[ParameterType, ...]

    def accept(self, value: Value) -> Any:
        expected = []
        for kind in self.alternatives:
            try:
                return kind.accept(value)
            except TypeMismatch as m:
                expected.append(str(m))
        raise TypeMismatch(", or ".join(expected))


@dataclass(frozen=True)
class NoneLiteral:
    """The bare name `none`."""

    def accept(self, value: Value) -> None:
        if value is not None:
            raise TypeMismatch("`none`")


OPTIONAL_EXTENT = OneOf((Extent(), NoneLiteral()))


def find_words(kind: ParameterType) -> tuple[str, ...]:
    """The bare names that a type accepts, if these are few."""
    if isinstance(kind, OneOf):
        return tuple(word for k in kind.alternatives for word in find_words(k))
    if isinstance(kind, ListOf):
        return find_words(kind.item_type)
    return kind.words if isinstance(kind, WordType) else ()


def accepts_words(kind: ParameterType) -> bool:
    """Whether a text of this type is a bare name."""
    if isinstance(kind, OneOf):
        return any(map(accepts_words, kind.alternatives))
    return isinstance(kind, Choice)


@dataclass(frozen=True)
class AnyValue:
    """Any value: parameters of a user's block, attributes that only passes set."""

    def accept(self, value: Value) -> Any:
        return value
