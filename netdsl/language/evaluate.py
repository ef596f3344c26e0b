"""Evaluates expressions: arithmetic, lists, comparisons and a few functions; nothing else."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netdsl.errors import NetError, Span, fail, suggest_name
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors
from netdsl.limits import MAX_LIST_LENGTH, MAX_NUMBER
from netdsl.signature import suggest_for_value
from netdsl.values import Argument, Call, Size, Symbol, Value, format_value


class InvalidValue:
    """Placeholder for a variable whose definition failed; the error was already reported."""


@dataclass(frozen=True)
class Scope:
    """The variables visible to an expression, the members of `in` if there is an input, and the
    budget that counts the values."""

    variables: Mapping[str, Value | InvalidValue] = field(default_factory=dict)
    members: Mapping[str, int] | InvalidValue | None = None
    budget: Budget = field(default_factory=Budget)


def evaluate(expr: s.Expression, scope: Scope) -> Value:
    """Returns the value of an expression. Raises NetError with the location of the error."""
    value = _EVALUATORS[type(expr)](expr, scope)
    scope.budget.spend_value(value, expr.span)
    return value


def evaluate_arguments(args: Sequence[s.Arg] | None, scope: Scope) -> tuple[Argument, ...]:
    """Evaluates arguments. Raises NetError with a diagnostic for each that fails."""
    values, errors = [], Errors()
    for a in args or ():
        try:
            values.append(Argument(a.name, evaluate(a.value, scope), a.span))
        except NetError as e:
            errors.collect(e)
    errors.raise_if_any()
    return tuple(values)


def evaluate_condition(expr: s.Expression, scope: Scope) -> bool:
    value = evaluate(expr, scope)
    if not isinstance(value, bool):
        raise fail(f"a condition is `yes` or `no`, not {format_value(value)}", expr.span)
    return value


def _evaluate_number(expr: s.NumberLiteral, scope: Scope) -> Value:
    return _check_bounds(expr.value, expr.span)


def _check_bounds(value: int | float, span: Span) -> int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise fail("this number is too large", span)
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise fail(f"whole numbers are limited to {MAX_NUMBER:,}", span)
    return value


_CONSTANTS: dict[str, Value] = {"yes": True, "no": False, "none": None}


def _evaluate_name(expr: s.Name, scope: Scope) -> Value:
    if expr.name in scope.variables:
        value = scope.variables[expr.name]
        if isinstance(value, InvalidValue):
            raise NetError()
        return value
    if expr.name in _CONSTANTS:
        return _CONSTANTS[expr.name]
    return Symbol(expr.name, expr.span, scope.variables)


def _evaluate_list(expr: s.ListLiteral, scope: Scope) -> Value:
    return tuple(evaluate(e, scope) for e in expr.items)


def _evaluate_pair(expr: s.PairLiteral, scope: Scope) -> Value:
    return evaluate(expr.first, scope), evaluate(expr.second, scope)


def _evaluate_member(expr: s.MemberExpr, scope: Scope) -> Value:
    if isinstance(scope.members, InvalidValue):
        raise NetError()
    if scope.members is None:
        raise fail("nothing flows in here, so `in` has no shape", expr.span)
    if expr.name not in scope.members:
        known = ["channels", "height", "width"]
        message = f"what flows in has no `{expr.name}`"
        if expr.name in known:
            message += ": it is a vector, not an image"
            known = ["channels"]
        raise fail(message, expr.span, help=suggest_name(expr.name, known, "it has"))
    return scope.members[expr.name]


def _evaluate_index(expr: s.IndexExpr, scope: Scope) -> Value:
    value = evaluate(expr.base, scope)
    for index_expr in expr.indices:
        index = evaluate(index_expr, scope)
        if isinstance(value, Size):
            value = value.dims
        if not isinstance(value, tuple):
            raise fail(
                f"{format_value(value)} is not a list, so it has no entries",
                expr.span,
                help=suggest_for_value(value),
            )
        if isinstance(index, bool) or not isinstance(index, int):
            raise fail(
                f"an index is a whole number, not {format_value(index)}",
                index_expr.span,
                help=suggest_for_value(index),
            )
        if not -len(value) <= index < len(value):
            raise fail(
                f"the list has {len(value)} entries, so there is no [{index}]", index_expr.span
            )
        value = value[index]
    return value


def _evaluate_unary(expr: s.UnaryExpr, scope: Scope) -> Value:
    if expr.op == "not":
        return not evaluate_condition(expr.operand, scope)
    return -_evaluate_numeric(expr.operand, scope)


def _evaluate_numeric(expr: s.Expression, scope: Scope) -> Any:
    value = evaluate(expr, scope)
    return _as_number(value, expr.span)


def _as_number(value: Value, span: Span) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fail(
            f"a number is needed here, not {format_value(value)}",
            span,
            help=suggest_for_value(value),
        )
    return value


def _divide(a: Any, b: Any) -> int | float:
    """Divides; exact division of integers gives an integer, so that `c/4` is a channel count."""
    whole = isinstance(a, int) and isinstance(b, int) and a % b == 0
    return a // b if whole else a / b


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "//": operator.floordiv,
    "%": operator.mod,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _evaluate_nary(expr: s.NaryExpr, scope: Scope) -> Value:
    op = expr.rest[0][0]
    if op in ("and", "or"):
        decisive_value = op == "or"
        operands = [expr.first, *(e for _, e in expr.rest)]
        return (
            decisive_value
            if any(evaluate_condition(e, scope) == decisive_value for e in operands)
            else not decisive_value
        )
    value = evaluate(expr.first, scope)
    for op, operand in expr.rest:
        value = _apply_operator(op, value, operand, expr, scope)
    return value


def _apply_operator(
    op: str, left: Value, operand: s.Expression, expr: s.NaryExpr, scope: Scope
) -> Value:
    right = evaluate(operand, scope)
    if op in ("==", "!="):
        return is_equal(left, right) == (op == "==")
    if op == "~":
        raise fail("`~` is allowed only in a `test` section", expr.span, help="use `==`")
    if op == "+" and isinstance(left, tuple) and isinstance(right, tuple):
        scope.budget.spend_value(left, expr.span)
        return left + right
    a, b = _as_number(left, expr.first.span), _as_number(right, operand.span)
    if op in _COMPARISONS:
        return _COMPARISONS[op](a, b)
    if op in ("/", "//", "%") and b == 0:
        raise fail("division by zero", operand.span)
    try:
        return _check_bounds(_ARITHMETIC[op](a, b), expr.span)
    except OverflowError:
        raise fail("this number is too large", expr.span) from None


def is_equal(a: Any, b: Any) -> bool:
    """Equality; a size equals the list of its numbers, and a bare number equals a square size."""
    a, b = (v.dims if isinstance(v, Size) else v for v in (a, b))
    if isinstance(b, tuple) and isinstance(a, int):
        a, b = b, a
    if isinstance(a, tuple) and isinstance(b, int) and not isinstance(b, bool):
        b = (b,) * len(a)
    return bool(a == b)


def _evaluate_conditional(expr: s.Conditional, scope: Scope) -> Value:
    for value, condition in expr.arms:
        if evaluate_condition(condition, scope):
            return evaluate(value, scope)
    return evaluate(expr.otherwise, scope)


# ---- functions -------------------------------------------------------------------------------


def _make_range(*ends: int) -> tuple[int, ...]:
    if len(range(*ends)) > MAX_LIST_LENGTH:
        raise ValueError(f"a list has at most {MAX_LIST_LENGTH:,} entries")
    return tuple(range(*ends))


FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "len": (lambda items: len(items), "len(list)"),
    "range": (_make_range, "range(stop), range(start, stop) or range(start, stop, step)"),
    "min": (min, "min(a, b, ...)"),
    "max": (max, "max(a, b, ...)"),
    "sum": (lambda items: sum(items), "sum(list of numbers)"),
    "floor": (math.floor, "floor(number)"),
    "ceil": (math.ceil, "ceil(number)"),
    "round": (lambda x: math.floor(x + 0.5), "round(number)"),
}


def _evaluate_call(expr: s.CallExpr, scope: Scope) -> Value:
    arguments = evaluate_arguments(expr.args, scope)
    if expr.name not in FUNCTIONS:
        return Call(expr.name, arguments, expr.span)
    function, usage = FUNCTIONS[expr.name]
    values = [a.value for a in arguments]
    try:
        if any(a.name for a in arguments) or any(isinstance(v, str | bool) for v in values):
            raise TypeError
        result: Value = function(*values)
    except (TypeError, ValueError, OverflowError) as e:
        reason = f": {e}" if isinstance(e, ValueError) and "list" in str(e) else ""
        raise fail(
            f"`{expr.name}` cannot take these arguments{reason}", expr.span, help=usage
        ) from None
    return _check_bounds(result, expr.span) if isinstance(result, int | float) else result


_EVALUATORS: dict[type, Callable[[Any, Scope], Value]] = {
    s.NumberLiteral: _evaluate_number,
    s.SizeLiteral: lambda e, scope: e.value,
    s.StringLiteral: lambda e, scope: e.value,
    s.Name: _evaluate_name,
    s.ListLiteral: _evaluate_list,
    s.PairLiteral: _evaluate_pair,
    s.CallExpr: _evaluate_call,
    s.MemberExpr: _evaluate_member,
    s.IndexExpr: _evaluate_index,
    s.UnaryExpr: _evaluate_unary,
    s.NaryExpr: _evaluate_nary,
    s.Conditional: _evaluate_conditional,
}
