"""What a call may be given: parameters, and the binding of arguments to them.

One mechanism serves layers, operators' attributes, section keys, optimizers and sources, so that
every unknown name, missing argument and value out of range is told in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netdsl.errors import Diagnostic, NetError, Span, close, nearest
from netdsl.kinds import Anything, Extent, Kind, Mismatch, Shape
from netdsl.limits import MOST_ERRORS
from netdsl.values import Argument, Call, Size, Symbol, Value, show


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
    One that is `named` is given by its name only, never by its place.
    """

    name: str
    kind: Kind = field(default_factory=Anything)
    default: Any = REQUIRED
    doc: str = ""
    named: bool = False


@dataclass(frozen=True)
class Signature:
    """A name and its parameters, in the order that positional arguments fill them; those that are
    only named come last."""

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
            if len(errors) >= MOST_ERRORS:
                break
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
        names = dict.fromkeys(p.name for p in self.params)
        places = [p.name for p in self.params if not p.named]
        given: dict[str, Argument] = {}
        for index, argument in enumerate(arguments):
            if len(errors) >= MOST_ERRORS:
                break
            name, where = argument.name, argument.span or span
            if name is None and index >= len(places):
                errors.append(self._too_many(arguments, where))
                break
            name = name if name is not None else places[index]
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
            errors.append(Diagnostic(message, where, self._remedy(param, argument.value)))
        except NetError as e:
            errors.extend(e.located(where).diagnostics)

    def _remedy(self, param: Param, value: Value) -> str | None:
        """What to write instead of a value that a parameter refuses."""
        bare = _unquoted(value)
        if bare is not None and _accepts(param.kind, bare):
            return f"write `{show(bare)}` without quotes"
        if isinstance(value, Symbol) and value.name not in value.variables:
            if _accepts(param.kind, value.name):
                return f"write `{show(value.name)}`"
            for other in self.params:
                if _accepts(other.kind, value) and not isinstance(other.kind, Anything):
                    return f"did you mean `{other.name}={value}`?"
        return hint(value)

    def _too_many(self, arguments: Sequence[Argument], where: Span | None) -> Diagnostic:
        count = sum(not p.named for p in self.params)
        unnamed = " without a name" if count < len(self.params) else ""
        takes = f"`{self.name}` takes {_count(count, 'argument')}{unnamed}, here is one more"
        if any(isinstance(a.value, Call) for a in arguments):
            help = f"layers are chained, not nested: `a -> {self.name}`"
            return Diagnostic(takes, where, help)
        if unnamed:
            help = f"{self._usage()}; the size of what flows in is never given"
            return Diagnostic(takes, where, help)
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


def _unknown_name(symbol: Symbol) -> str:
    """A help line for a bare name that stands where a value must."""
    if symbol.name in ("true", "True", "false", "False"):
        return "write `yes` or `no`"
    if symbol.name == "None":
        return "write `none`, or `no`"
    sides = symbol.name.split("x")
    if len(sides) > 1 and all(side in symbol.variables for side in sides):
        return f"a size that is computed is written `[{', '.join(sides)}]`"
    near = close(symbol.name, symbol.variables)
    return f"no variable is called `{symbol.name}` here" + (f"; {near}" if near else "")


def hint(value: object) -> str | None:
    """A help line where a value is a bare name that means nothing."""
    return _unknown_name(value) if isinstance(value, Symbol) else None


def _accepts(kind: Kind, value: Value) -> bool:
    try:
        kind.accept(value)
    except (Mismatch, NetError):
        return False
    return True


def _unquoted(value: Value) -> Value:
    """What a quoted text would be without its quotes."""
    if not isinstance(value, str):
        return None
    if re.fullmatch(r"\d{1,9}", value):
        return int(value)
    if re.fullmatch(r"\d{1,9}(x\d{1,9})+", value):
        return Size(tuple(map(int, value.split("x"))))
    return Symbol(value) if value.isidentifier() else None


def _count(n: int, noun: str) -> str:
    return f"no {noun}s" if n == 0 else f"{n} {noun}" + ("s" if n > 1 else "")
