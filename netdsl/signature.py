"""Signatures of calls: parameters, and the binding of arguments to them.

One mechanism serves layers, operator attributes, section keys, optimizers and sources, so that
unknown names, missing arguments and values out of range are always reported in the same words.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from netdsl.errors import (
    Diagnostic,
    NetError,
    Span,
    suggest_alias,
    suggest_name,
    suggest_spelling,
    suggest_word,
)
from netdsl.foreign_words import (
    find_advice,
    find_counterpart,
    find_near_counterpart,
    normalize_word,
)
from netdsl.limits import MAX_ERRORS
from netdsl.parameter_types import (
    AnyValue,
    Extent,
    ParameterType,
    Shape,
    TypeMismatch,
    find_words,
)
from netdsl.value_advice import (
    LITERALS_OF_PYTHON,
    decimal_comma_help,
    explain_called_value,
    quote_text,
    size_help,
    suggest_for_value,
    unquote,
)
from netdsl.values import Argument, Call, Symbol, Value, format_value


@dataclass(frozen=True)
class BoundCall:
    """A table entry with its arguments bound: what `sgd(lr=0.1)` becomes."""

    name: str
    record: Any
    arguments: Mapping[str, Any]
    span: Span | None = field(default=None, compare=False)

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={format_value(v)}" for k, v in self.arguments.items())
        return f"{self.name}({inside})" if inside else self.name

    def drop_defaults(self) -> BoundCall:
        """The same call with only the arguments that differ from their defaults."""
        signature: Signature = self.record.signature
        defaults = {
            p.name: p.type.accept(p.default) for p in signature.params if p.default is not REQUIRED
        }
        given = {k: v for k, v in self.arguments.items() if k not in defaults or v != defaults[k]}
        return replace(self, arguments=given)


class TableType(ABC):
    """A type that takes calls of the entries of a table, and perhaps something else."""

    @property
    @abstractmethod
    def table(self) -> Mapping[str, Any]: ...

    @abstractmethod
    def accept(self, value: Value) -> Any: ...


@dataclass(frozen=True)
class CallOf:
    """A call of a table entry, whose record has a `signature`; `noun` names the table in
    messages."""

    noun: str
    table: Mapping[str, Any]

    def accept(self, value: Value) -> BoundCall:
        if isinstance(value, Symbol):
            value = Call(value.name, (), value.span)
        if not isinstance(value, Call):
            quoted = " without quotes" if value in self.table else ""
            raise TypeMismatch(f"one of {', '.join(sorted(self.table))}{quoted}")
        record = self.table.get(value.name)
        if record is None:
            message = f"unknown {self.noun} `{value.name}`"
            help = explain_called_value(value)
            help = help or suggest_name(value.name, self.table, kinds=[self.noun])
            raise NetError(Diagnostic(message, value.span, help))
        bound = record.signature.bind(value.arguments, value.span)
        return BoundCall(value.name, record, bound, value.span)


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Param:
    """One parameter: its name, the type of its value, its default and a short description.

    The default is written as in a file (`Symbol("he")`, 1) and goes through `type` like any value.
    A parameter that is `is_keyword_only` can be given only by name, never by position.
    """

    name: str
    type: ParameterType = field(default_factory=AnyValue)
    default: Any = REQUIRED
    doc: str = ""
    is_keyword_only: bool = False


@dataclass(frozen=True)
class Signature:
    """A name and its parameters, in the order that positional arguments fill them; keyword-only
    parameters come last."""

    name: str
    params: tuple[Param, ...] = ()
    noun: str = "parameter"

    def bind(
        self,
        arguments: Sequence[Argument],
        span: Span | None,
        partial: bool = False,
        homes: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Returns the value of every parameter, or only of the given ones if `partial`. `homes`
        says of names where else they belong, for messages.

        Raises NetError with one diagnostic per wrong argument.
        """
        errors: list[Diagnostic] = []
        given = self._match_parameters(arguments, span, errors, homes)
        has_name_errors = bool(errors)
        bound: dict[str, Any] = {}
        for param in self.params:
            if len(errors) >= MAX_ERRORS:
                break
            if param.name in given:
                self._convert_argument(param, given[param.name], arguments, span, bound, errors)
            elif partial or (has_name_errors and param.default is REQUIRED):
                continue
            elif param.default is REQUIRED:
                errors.append(self._make_missing_error(param, span))
            else:
                bound[param.name] = param.type.accept(param.default)
        if errors:
            raise NetError(*errors)
        return bound

    def drop_defaults(self, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """Returns the arguments that differ from the defaults."""
        defaults = {p.name: p.default for p in self.params}
        return tuple(
            a for a in arguments if a.name is None or a.value != defaults.get(a.name, REQUIRED)
        )

    def _match_parameters(
        self,
        arguments: Sequence[Argument],
        span: Span | None,
        errors: list[Diagnostic],
        homes: Mapping[str, str],
    ) -> dict[str, Argument]:
        names = dict.fromkeys(p.name for p in self.params)
        positional_names = [p.name for p in self.params if not p.is_keyword_only]
        given: dict[str, Argument] = {}
        for index, argument in enumerate(arguments):
            if len(errors) >= MAX_ERRORS:
                break
            name, where = argument.name, argument.span or span
            if name is None and index >= len(positional_names):
                errors.append(self._make_excess_error(arguments, where))
                break
            name = name if name is not None else positional_names[index]
            if name not in names:
                message = f"`{self.name}` has no {self.noun} `{name}`"
                help = self._suggest_parameter(name, arguments, homes)
                errors.append(Diagnostic(message, where, help))
            elif name in given:
                help = self._explain_positions(arguments, name)
                errors.append(Diagnostic(f"`{name}` is given twice", where, help))
            else:
                given[name] = argument
        return given

    def _suggest_parameter(
        self, name: str, arguments: Sequence[Argument], homes: Mapping[str, str]
    ) -> str | None:
        """Suggests what to write instead of a name that is none of the parameters."""
        names = [p.name for p in self.params]
        is_own = suggest_alias(name, names) is not None
        kinds = [f"{self.noun} of {self.name}", self.noun]
        values = _format_given(next((a.value for a in arguments if a.name == name), None))
        elsewhere = None if is_own else find_advice(name, kinds, values)
        if elsewhere is None and not is_own and (home := _find_home(name, homes)):
            elsewhere = self._fill_home(home, name, arguments, values)
        given = zip(self.params, (a for a in arguments if a.name is None), strict=False)
        positional = [p.name for p, a in given if _accepts(p.type, a.value)]
        taken = [*positional, *(a.name for a in arguments if a.name in names)]
        if elsewhere is None and not is_own and not suggest_word(name, names):
            near = find_near_counterpart(name, {normalize_word(n): n for n in homes})
            elsewhere = homes[near] if near else None
        return elsewhere or suggest_name(name, names, "it has", kinds, taken)

    def _fill_home(
        self, home: str, name: str, arguments: Sequence[Argument], values: Sequence[str]
    ) -> str:
        """The line that says where a name belongs, with the value that it was given, in the call
        that stands there already if that takes it."""
        if len(values) != 1:
            return home
        found = re.search(r"`(\w+) = (\w+\((\w+)=\.\.\.\))`", home)
        if found is None:
            is_bare = find_advice(name, ["argument"]) is None
            return home.replace(f"[{name}]", f"[{name}({values[0]})]") if is_bare else home
        key, call, parameter = found.groups()
        kind = next((p.type for p in self.params if p.name == key), None)
        given = next((a.value for a in arguments if a.name == key), None)
        record = (
            kind.table.get(given.name)
            if (isinstance(kind, CallOf | TableType) and isinstance(given, Symbol | Call))
            else None
        )
        if record is not None and any(p.name == parameter for p in record.signature.params):
            call = format_value(given)
            call = (
                f"{call[:-1]}, {parameter}=...)" if call[-1] == ")" else f"{call}({parameter}=...)"
            )
        return home.replace(found[2], call.replace("...", values[0]))

    def _explain_positions(self, arguments: Sequence[Argument], name: str) -> str | None:
        """Says which argument without a name has the value of a parameter that is given twice."""
        values = [a.value for a in arguments if a.name is None]
        names = [p.name for p in self.params]
        if name not in names[: len(values)]:
            return None
        if names[0] == "channels" and name == names[1]:
            call = f"{self.name}({format_value(values[1])}, ...)"
            return f"the input channels are inferred; give only the output channels: `{call}`"
        index = names.index(name)
        value = format_value(values[index])
        return f"{value} already sets `{name}` by position: {self._format_usage()}"

    def _convert_argument(
        self,
        param: Param,
        argument: Argument,
        arguments: Sequence[Argument],
        span: Span | None,
        bound: dict[str, Any],
        errors: list[Diagnostic],
    ) -> None:
        where = argument.span or span
        try:
            bound[param.name] = param.type.accept(argument.value)
        except TypeMismatch as wanted:
            value = _format_rejected(argument.value)
            message = f"`{param.name}` of `{self.name}` must be {wanted}, not {value}"
            help = None if argument.name else decimal_comma_help(where)
            help = help or self._suggest_order(param, argument, arguments)
            help = help or self._suggest_fix(param, argument.value)
            is_unnamed = argument.name is None and len(self.params) > 1
            help = help or (self._format_usage() if is_unnamed else None)
            errors.append(Diagnostic(message, where, help))
        except NetError as e:
            errors.extend(e.with_default_span(where).diagnostics)

    def _suggest_order(
        self, param: Param, argument: Argument, arguments: Sequence[Argument]
    ) -> str | None:
        """Suggests the first two arguments in the other order, if both were in each other's
        place."""
        pair = [a.value for a in arguments[:2] if a.name is None]
        if len(pair) < 2 or argument is not arguments[0] or len(self.params) < 2:
            return None
        first, second = (p.type for p in self.params[:2])
        if isinstance(pair[0], Symbol) or not (
            _accepts(first, pair[1]) and _accepts(second, pair[0])
        ):
            return None
        call = ", ".join(format_value(v) for v in reversed(pair))
        return f"did you mean `{self.name}({call})`?"

    def _suggest_fix(self, param: Param, value: Value) -> str | None:
        """Suggests what to write instead of a value that a parameter rejects."""
        if advice := self._advise_on_value(param, value):
            return advice
        bare = unquote(value)
        if bare is not None and _accepts(param.type, bare):
            return f"write `{format_value(bare)}` without quotes"
        if isinstance(value, Symbol) and value.name not in value.variables:
            if value.name.lower() in LITERALS_OF_PYTHON:
                return _suggest_literal(param, value.name.lower())
            if _accepts(param.type, value.name):
                return f"write `{quote_text(value)}`"
            any_name = Symbol("")  # a type that takes any name does not tell whether this is one
            for other in self.params:
                if _accepts(other.type, value) and not _accepts(other.type, any_name):
                    return f"did you mean `{other.name}={value}`?"
            near = suggest_spelling(value.name, find_words(param.type))
            if near:
                return near
        if value == 0 and not isinstance(value, bool) and _accepts(param.type, None):
            return "`none` turns it off"
        if isinstance(value, int) and value in (0, 1) and _accepts(param.type, bool(value)):
            return f"write `{format_value(bool(value))}`"
        if value is False and (literal := _suggest_literal(param, "false")):
            return literal
        values = _format_given(value)
        names = (f"{self.name}.{param.name}", param.name)
        use = next((x for n in names if (x := find_advice(n, ["use"], values))), None)
        if use and isinstance(value, str):
            use = use.replace('"FILE"', format_value(value))
        advice = find_advice(self.name, ["argument"]) or use or suggest_for_value(value)
        if advice is None and value is True:
            return _suggest_literal(param, "true")
        return advice

    def _advise_on_value(self, param: Param, value: Value) -> str | None:
        """What takes the place of a value that other frameworks would accept."""
        word = _find_word(value)
        if isinstance(value, Symbol) and any(word == p.name for p in self.params):
            return f"`{word}` is a parameter: write `{word}=...`"
        if word and (advice := find_advice(word, [f"value of {param.name}", "value"])):
            return advice
        if param.name in _SHARES and isinstance(value, int | float) and 2 <= value <= 100:
            return f"it is a share, not a percentage: `{format_value(round(value / 100, 6))}`"
        return None

    def _make_excess_error(self, arguments: Sequence[Argument], where: Span | None) -> Diagnostic:
        count = sum(not p.is_keyword_only for p in self.params)
        positional = "positional " if count < len(self.params) else ""
        message = (
            f"`{self.name}` takes {_format_count(count, f'{positional}argument')}, "
            f"but got {'one more' if count else 'one'}"
        )
        nested = next((a for a in arguments if isinstance(a.value, Call)), None)
        if nested is not None:
            inner = nested.span.text if nested.span else "a"
            inner = inner if len(inner) <= _MAX_QUOTED_CALL else "a"
            help = f"layers are chained, not nested: `{inner} -> {self.name}`"
            return Diagnostic(message, where, help)
        words = [a.value.name for a in arguments if isinstance(a.value, Symbol)]
        advice = [found for word in words if (found := find_advice(word, ["value"]))]
        if own := find_advice(self.name, ["argument"]):
            advice = [own]
        if advice:
            return Diagnostic(message, where, advice[0])
        if positional:
            help = f"{self._format_usage()}; the input size is always inferred"
            return Diagnostic(message, where, help)
        numbers = [a for a in arguments if a.name is None and isinstance(a.value, int)]
        if self.params and isinstance(self.params[0].type, Shape | Extent) and len(numbers) > 1:
            return Diagnostic(message, where, size_help(numbers))
        if not self.params:
            return Diagnostic(message, where, f"write `{self.name}`, without arguments")
        return Diagnostic(message, where, decimal_comma_help(where) or self._format_usage())

    def _make_missing_error(self, param: Param, span: Span | None) -> Diagnostic:
        return Diagnostic(f"`{self.name}` needs `{param.name}`", span, self._format_usage())

    def _format_usage(self) -> str:
        return f"`{self}`"

    def __str__(self) -> str:
        inside = ", ".join(
            p.name if p.default is REQUIRED else f"{p.name}={format_value(p.default)}"
            for p in self.params
        )
        return f"{self.name}({inside})"


def _find_word(value: Value) -> str | None:
    """The word that a bare name that is no variable, or a text, consists of."""
    if isinstance(value, Symbol):
        return value.name if value.name not in value.variables else None
    return value if isinstance(value, str) else None


def _format_given(value: Value) -> list[str]:
    """A number or a text as written, or those of a list; none for any other value."""
    entries = value if isinstance(value, tuple) else (value,)
    is_nested = bool(entries) and all(isinstance(e, tuple) and _format_given(e) for e in entries)
    plain = [
        e
        for e in entries
        if is_nested or (isinstance(e, int | float | str) and not isinstance(e, bool))
    ]
    return list(map(format_value, plain)) if len(plain) == len(entries) else []


def _find_home(name: str, homes: Mapping[str, str]) -> str | None:
    """Says where a name belongs, or what it is called here."""
    if name in homes:
        return homes[name]
    meant = find_counterpart(name, {normalize_word(n): n for n in homes})
    return homes[meant] if meant else None


_MAX_QUOTED_CALL = 40
"""The longest call that a help line repeats."""


def _format_rejected(value: Value) -> str:
    """A value in a message that it is of the wrong kind: a float looks like one, 1e6 too."""
    text = format_value(value)
    is_like_integer = isinstance(value, float) and text.lstrip("-").isdigit()
    return f"{text}.0" if is_like_integer else text


_SHARES = ("rate", "p", "smoothing", "top1", "top5")
"""Parameters that are shares of 1, which other tools take as percentages."""


def _suggest_literal(param: Param, literal: str) -> str | None:
    """What to write instead of a literal of Python for a parameter: the same here, else `none` or
    `no`; else nothing, if it has a default."""
    word, value = LITERALS_OF_PYTHON[literal]
    if _accepts(param.type, value):
        return f"write `{word}`"
    for other in (None, False) if not value else ():
        if _accepts(param.type, other):
            return f"write `{format_value(other)}`"
    if param.default is REQUIRED:
        return None
    return f"leave `{param.name}` out for its default, {format_value(param.default)}"


def _accepts(kind: ParameterType, value: Value) -> bool:
    try:
        kind.accept(value)
    except (TypeMismatch, NetError):
        return False
    return True


def _format_count(n: int, noun: str) -> str:
    return f"no {noun}s" if n == 0 else f"{n} {noun}" + ("s" if n > 1 else "")
