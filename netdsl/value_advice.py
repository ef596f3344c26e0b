"""Advice on values that an expression gives: bare names, calls of what is no function."""

from __future__ import annotations

import re
from collections.abc import Mapping

from netdsl.errors import suggest_spelling
from netdsl.values import Call, Symbol

LITERALS_OF_PYTHON: Mapping[str, tuple[str, bool | None]] = {
    "true": ("yes", True),
    "false": ("no", False),
    "none": ("none", None),
    "null": ("none", None),
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
    if line := _find_later_let(symbol):
        return f"`let {symbol.name}` is in line {line}; it can be used only below it, in its body"
    near = suggest_spelling(symbol.name, symbol.variables)
    if not near and symbol.name in INDEX_NAMES:
        near = f"a repeat names its index with `as`: `block * 3 as {symbol.name}`"
    return f"no variable is called `{symbol.name}` here" + (f"; {near}" if near else "")


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
