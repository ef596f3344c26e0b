"""What to write instead of a value that is a bare name, a call or a text by mistake."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from netdsl.errors import Span, suggest_spelling
from netdsl.foreign_words import find_advice
from netdsl.values import Argument, Call, Size, Symbol, Value, format_value

LITERALS_OF_PYTHON: Mapping[str, tuple[str, bool | None]] = {
    "true": ("yes", True),
    "false": ("no", False),
    "none": ("none", None),
    "null": ("none", None),
    "nil": ("none", None),
    "on": ("yes", True),
    "off": ("no", False),
}
"""Literals of other languages in lower case, and how netdsl writes them."""


def _suggest_for_symbol(symbol: Symbol) -> str:
    """Returns a help line for a bare name where a value is expected."""
    if symbol.name.lower() in LITERALS_OF_PYTHON:
        return f"write `{LITERALS_OF_PYTHON[symbol.name.lower()][0]}`"
    sides = symbol.name.split("x")
    if len(sides) > 1 and all(side in symbol.variables for side in sides):
        return f"write a computed size as `[{', '.join(sides)}]`"
    if symbol.name in symbol.labels:
        return explain_label(symbol.name)
    if advice := find_advice(symbol.name, ["operand"]):
        return advice
    if line := _find_later_let(symbol):
        return f"`let {symbol.name}` is on line {line}; it can be used only below it, in its body"
    near = suggest_spelling(symbol.name, symbol.variables)
    if not near and symbol.name in INDEX_NAMES:
        near = f"a repeat names its index with `as`: `block * 3 as {symbol.name}`"
    return f"no variable is called `{symbol.name}` here" + (f"; {near}" if near else "")


def explain_label(name: str) -> str:
    """Returns a help line for a label where a number is expected."""
    chain, branch = f"`{name} -> relu`", f"`add {{ {name} | conv(8, 1x1) }}`"
    return f"`{name}` is a label: it begins a chain or a branch, {chain} or {branch}"


def _find_later_let(symbol: Symbol) -> int | None:
    """The line of the `let` that defines a name only after its use."""
    if symbol.span is None:
        return None
    pattern = rf"^[^#\n]*\blet\s+{re.escape(symbol.name)}\s*="
    text = symbol.span.source.text
    found = re.compile(pattern, re.MULTILINE).search(text, symbol.span.end)
    return None if found is None else text.count("\n", 0, found.end()) + 1


INDEX_NAMES = ("i", "j", "idx", "index")


def suggest_for_value(value: object) -> str | None:
    """Returns a help line if a value is an unknown bare name, or a call of something that is no
    function."""
    if isinstance(value, Call):
        if value.name in value.functions and value.arguments:  # kept as a value for its argument
            return suggest_for_value(value.arguments[0].value)
        return explain_called_value(value) or _suggest_function(value)
    return _suggest_for_symbol(value) if isinstance(value, Symbol) else None


_PYTHON_FUNCTIONS = {
    "abs": "`max(x, -x)`",
    "int": "`floor(x)`, or `a // b`",
    "pow": "a product, or a `let f(x) = ...`",
}


def _suggest_function(call: Call) -> str | None:
    """Returns a help line for a call of an unknown function; None if it did not come from an
    expression."""
    if not call.functions:
        return None
    if call.name in _PYTHON_FUNCTIONS:
        return f"no function is called `{call.name}` here; write {_PYTHON_FUNCTIONS[call.name]}"
    near = suggest_spelling(call.name, [*call.variables, *call.functions])
    known = f"the built-in functions are {', '.join(call.functions)}"
    return f"no function is called `{call.name}` here; {near or known}"


def explain_called_value(call: Call) -> str | None:
    if call.name not in call.variables:
        return None
    return f"`{call.name}` is a value here; a function is `let {call.name}(a) = ...`"


def unquote(value: Value) -> Value:
    """Returns what a quoted text would be without its quotes."""
    if not isinstance(value, str):
        return None
    if re.fullmatch(r"\d{1,9}", value):
        return int(value)
    if re.fullmatch(r"-?(\d{1,9}\.?\d{0,9}|\.\d{1,9})(e[-+]?\d{1,2})?", value):
        return float(value)
    if re.fullmatch(r"\d{1,9}(x\d{1,9})+", value):
        return Size(tuple(map(int, value.split("x"))))
    return Symbol(value) if value.isidentifier() else None


def decimal_comma_help(where: Span | None) -> str | None:
    """How to write a decimal whose comma made two arguments of it, as in `lr=0,1`."""
    if where is None or not where.text.isdecimal():
        return None
    before = re.search(r"=\s*(\d+),$", where.source.text[max(0, where.start - 20) : where.start])
    return f"write decimals with a point: `{before[1]}.{where.text}`" if before else None


def size_help(numbers: Sequence[Argument]) -> str:
    """How to write numbers that were given one by one as a size."""
    sides = [a.span.text if a.span else str(a.value) for a in numbers]
    notes = []
    if len(sides) == 4:
        sides = sides[1:]
        notes.append("without the number of images")
    if len(sides) == 3 and sides[1] == sides[2] != sides[0]:
        sides = [*sides[1:], sides[0]]
        notes.append("with the channels last")
    order = f", {' and '.join(notes)}" if notes else ""
    if all(side.isdecimal() for side in sides):
        return f"a size is one word{order}: `{'x'.join(sides)}`"
    return f"a computed size is a list{order}: `[{', '.join(sides)}]`"


def quote_text(value: Symbol) -> str:
    """A bare word with the quotes of a text; on a command line, with those that the shell takes
    away."""
    quoted = format_value(value.name)
    span = value.span
    if span is None or not span.source.text.startswith("--"):
        return quoted
    text = span.source.text[: span.start] + quoted + span.source.text[span.end :]
    option, _, setting = text.partition(" ")
    return f"{option} '{setting}'"
