"""What a call may be given: kinds of values, parameters, and the binding of arguments to them.

One mechanism serves layers, operators' attributes, section keys, optimizers and sources, so that
every unknown name, missing argument and value out of range is told in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

from netdsl.errors import Diagnostic, NetError, Span, nearest
from netdsl.values import Argument, Call, Size, Symbol, Value, show


class Mismatch(Exception):
    """A value is not of the kind that a parameter wants; the text says what is wanted."""


class Kind(Protocol):
    """A set of acceptable values. `accept` returns the plain Python value or raises Mismatch."""

    def accept(self, value: Value) -> Any: ...


LARGEST = 10**9


@dataclass(frozen=True)
class Whole:
    """A whole number in [low, high]."""

    low: int = 1
    high: int = LARGEST

    def accept(self, value: Value) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Mismatch("a whole number")
        if not self.low <= value <= self.high:
            raise Mismatch(f"a whole number {_range(self.low, self.high)}")
        return value


@dataclass(frozen=True)
class Number:
    """A real number in [low, high]; `above` and `below` exclude their ends."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def accept(self, value: Value) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Mismatch("a number")
        if not (self.low <= value <= self.high and self.above < value < self.below):
            raise Mismatch(f"a number {self._wanted()}")
        return float(value)

    def _wanted(self) -> str:
        parts = []
        if self.low > -math.inf or self.high < math.inf:
            parts.append(_range(self.low, self.high))
        if self.above > -math.inf:
            parts.append(f"above {self.above:g}")
        if self.below < math.inf:
            parts.append(f"below {self.below:g}")
        return " and ".join(parts)


def _range(low: float, high: float) -> str:
    if high in (math.inf, LARGEST):
        return f"of at least {_figure(low)}"
    if low == -math.inf:
        return f"of at most {_figure(high)}"
    return f"from {_figure(low)} to {_figure(high)}"


def _figure(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:g}"


@dataclass(frozen=True)
class Flag:
    """`yes` or `no`."""

    def accept(self, value: Value) -> bool:
        if not isinstance(value, bool):
            raise Mismatch("`yes` or `no`")
        return value


@dataclass(frozen=True)
class Text:
    """A quoted string."""

    def accept(self, value: Value) -> str:
        if not isinstance(value, str):
            raise Mismatch("a quoted text")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few bare names."""

    names: tuple[str, ...]

    def accept(self, value: Value) -> str:
        if not isinstance(value, Symbol) or value.name not in self.names:
            raise Mismatch("one of " + ", ".join(f"`{n}`" for n in self.names))
        return value.name


@dataclass(frozen=True)
class Extent:
    """Height and width: `3x3`, or a bare `3` for a square; each at least `low`."""

    low: int = 1

    def accept(self, value: Value) -> tuple[int, int]:
        dims = value.dims if isinstance(value, Size) else value
        if isinstance(dims, tuple) and len(dims) == 2:
            pair = tuple(Whole(self.low, 65536).accept(d) for d in dims)
            return pair[0], pair[1]
        if isinstance(dims, int | float) and not isinstance(dims, bool):
            side = Whole(self.low, 65536).accept(dims)
            return side, side
        raise Mismatch("a height and width such as `3x3`, or one whole number for a square")


@dataclass(frozen=True)
class Shape:
    """The shape of one image or vector: `224x224x3`, `[h, w, c]` or a bare length."""

    def accept(self, value: Value) -> tuple[int, ...]:
        dims = value.dims if isinstance(value, Size) else value
        if isinstance(dims, int | float) and not isinstance(dims, bool):
            dims = (dims,)
        if not isinstance(dims, tuple) or not 1 <= len(dims) <= 4:
            raise Mismatch("a shape such as `224x224x3`")
        return tuple(Whole(1, LARGEST).accept(d) for d in dims)


@dataclass(frozen=True)
class Many:
    """A list whose entries are all of one kind; a single value is a list of one."""

    item: Kind
    length: int | None = None

    def accept(self, value: Value) -> tuple[Any, ...]:
        entries = value if isinstance(value, tuple) else (value,)
        accepted = tuple(self.item.accept(e) for e in entries)
        if self.length is not None and len(accepted) != self.length:
            raise Mismatch(f"a list of {self.length}")
        return accepted


@dataclass(frozen=True)
class OneOf:
    """Whatever the first fitting kind accepts."""

    kinds: tuple[Kind, ...]

    def accept(self, value: Value) -> Any:
        wanted = []
        for kind in self.kinds:
            try:
                return kind.accept(value)
            except Mismatch as m:
                wanted.append(str(m))
        raise Mismatch(", or ".join(wanted))


@dataclass(frozen=True)
class Nothing:
    """The bare name `none`."""

    def accept(self, value: Value) -> None:
        if value is not None:
            raise Mismatch("`none`")


@dataclass(frozen=True)
class Anything:
    """Any value whatever: parameters of a user's block, attributes that only passes write."""

    def accept(self, value: Value) -> Any:
        return value


@dataclass(frozen=True)
class Chosen:
    """An entry of a table, with its arguments bound: what `sgd(lr=0.1)` becomes."""

    name: str
    record: Any
    arguments: Mapping[str, Any]
    span: Span | None = field(default=None, compare=False)

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={show(v)}" for k, v in self.arguments.items())
        return f"{self.name}({inside})" if inside else self.name


@dataclass(frozen=True)
class OneFrom:
    """A call of an entry of a table, whose records carry a `signature`; `what` names the table."""

    what: str
    table: Mapping[str, Any]

    def accept(self, value: Value) -> Chosen:
        if isinstance(value, Symbol):
            value = Call(value.name, (), value.span)
        if not isinstance(value, Call):
            quoted = " without quotes" if value in self.table else ""
            raise Mismatch(f"one of {', '.join(sorted(self.table))}{quoted}")
        record = self.table.get(value.name)
        if record is None:
            message = f"unknown {self.what} `{value.name}`"
            help = nearest(value.name, self.table, "known are")
            raise NetError(Diagnostic(message, value.span, help))
        bound = record.signature.bind(value.arguments, value.span)
        return Chosen(value.name, record, bound, value.span)


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Param:
    """One parameter: its name, the kind of value it takes, its default and a phrase on it.

    The default is written as in a file (`Symbol("he")`, 1) and goes through `kind` like any value.
    """

    name: str
    kind: Kind = field(default_factory=Anything)
    default: Any = REQUIRED
    doc: str = ""


@dataclass(frozen=True)
class Signature:
    """A name and its parameters, in the order that positional arguments fill them."""

    name: str
    params: tuple[Param, ...] = ()
    noun: str = "parameter"

    def bind(
        self,
        arguments: Sequence[Argument],
        span: Span | None,
        partial: bool = False,
    ) -> dict[str, Any]:
        """Every parameter's value; only the given ones' if `partial`.

        Raises NetError with a diagnostic for each wrong argument.
        """
        errors: list[Diagnostic] = []
        given = self._place(arguments, span, errors)
        misnamed = bool(errors)
        bound: dict[str, Any] = {}
        for param in self.params:
            if param.name in given:
                self._convert(param, given[param.name], span, bound, errors)
            elif partial or (misnamed and param.default is REQUIRED):
                continue
            elif param.default is REQUIRED:
                errors.append(self._missing(param, span))
            else:
                bound[param.name] = param.kind.accept(param.default)
        if errors:
            raise NetError(*errors)
        return bound

    def telling(self, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """The arguments that say more than the defaults do."""
        plain = {p.name: p.default for p in self.params}
        return tuple(
            a for a in arguments if a.name is None or a.value != plain.get(a.name, REQUIRED)
        )

    def _place(
        self, arguments: Sequence[Argument], span: Span | None, errors: list[Diagnostic]
    ) -> dict[str, Argument]:
        names = [p.name for p in self.params]
        given: dict[str, Argument] = {}
        for index, argument in enumerate(arguments):
            name, where = argument.name, argument.span or span
            if name is None and index >= len(names):
                errors.append(self._too_many(arguments, where))
                break
            name = name if name is not None else names[index]
            if name not in names:
                message = f"`{self.name}` has no {self.noun} `{name}`"
                errors.append(Diagnostic(message, where, nearest(name, names, "it has")))
            elif name in given:
                errors.append(Diagnostic(f"`{name}` is given twice", where))
            else:
                given[name] = argument
        return given

    def _convert(
        self,
        param: Param,
        argument: Argument,
        span: Span | None,
        bound: dict[str, Any],
        errors: list[Diagnostic],
    ) -> None:
        where = argument.span or span
        try:
            bound[param.name] = param.kind.accept(argument.value)
        except Mismatch as wanted:
            message = (
                f"`{param.name}` of `{self.name}` must be {wanted}, not {show(argument.value)}"
            )
            errors.append(Diagnostic(message, where, _hint(argument.value)))
        except NetError as e:
            errors.extend(e.located(where).diagnostics)

    def _too_many(self, arguments: Sequence[Argument], where: Span | None) -> Diagnostic:
        takes = f"`{self.name}` takes {_count(len(self.params), 'argument')}, here is one more"
        numbers = [a.value for a in arguments if isinstance(a.value, int)]
        if self.params and isinstance(self.params[0].kind, Shape | Extent) and len(numbers) > 1:
            return Diagnostic(takes, where, f"a size is one word: `{'x'.join(map(str, numbers))}`")
        return Diagnostic(takes, where, self._usage())

    def _missing(self, param: Param, span: Span | None) -> Diagnostic:
        return Diagnostic(f"`{self.name}` needs `{param.name}`", span, self._usage())

    def _usage(self) -> str:
        return f"`{self}`"

    def __str__(self) -> str:
        inside = ", ".join(
            p.name if p.default is REQUIRED else f"{p.name}={show(p.default)}" for p in self.params
        )
        return f"{self.name}({inside})"


def unknown_name(symbol: Symbol) -> str:
    """A help line for a bare name that stands where a value must."""
    if symbol.name in ("true", "True", "false", "False"):
        return "write `yes` or `no`"
    near = get_close_matches(symbol.name, symbol.variables, n=1)
    return f"no variable is called `{symbol.name}` here" + (
        f"; did you mean `{near[0]}`?" if near else ""
    )


def _hint(value: Value) -> str | None:
    return unknown_name(value) if isinstance(value, Symbol) else None


def _count(n: int, noun: str) -> str:
    return f"no {noun}s" if n == 0 else f"{n} {noun}" + ("s" if n > 1 else "")
