"""Evaluates expressions: arithmetic, lists, comparisons and a few functions; nothing else."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

from netdsl.errors import Diagnostic, NetError, Span, fail, suggest_name
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors, LimitError
from netdsl.language.functions import FUNCTIONS
from netdsl.language.unparse import expression_text
from netdsl.limits import MAX_NUMBER, STEPS_PER_LAYER
from netdsl.parameter_types import AnyValue
from netdsl.signature import REQUIRED, Param, Signature
from netdsl.value_advice import suggest_for_value
from netdsl.values import Argument, Call, Size, Symbol, Text, Value, format_value


class InvalidValue:
    """Placeholder for a variable whose definition failed; the error was already reported."""


class Unknown(Enum):
    """The result of looking up a name that nothing defines."""

    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Function:
    """A `let` with parameters, and the scope where it stands. It can be called, but it is no
    value."""

    let: s.Let
    scope: Scope

    @cached_property
    def signature(self) -> Signature:
        return make_signature(self.let.name, self.let.params or ())


Variable = Value | InvalidValue | Function


@dataclass(frozen=True)
class Scope:
    """What an expression sees: the variables, then those of the `outer` scope; the members of `in`
    if there is an input; and the budget that counts the values. It is the collection of the visible
    names. `labels` are names that are no variables, for messages."""

    variables: Mapping[str, Variable] = field(default_factory=dict)
    members: Mapping[str, int] | InvalidValue | None = None
    budget: Budget = field(default_factory=Budget)
    outer: Scope | TopLevel | None = None
    labels: Collection[str] = ()

    def find(self, name: str) -> Variable | Unknown:
        """Looks up a name: the one rule for all expressions."""
        scope: Scope | TopLevel | None = self
        while isinstance(scope, Scope):
            if name in scope.variables:
                return scope.variables[name]
            scope = scope.outer
        return Unknown.UNKNOWN if scope is None else scope.find(name, self.budget)

    def __iter__(self) -> Iterator[str]:
        yield from self.variables
        yield from self.outer or ()

    def __contains__(self, name: object) -> bool:
        return name in self.variables or (self.outer is not None and name in self.outer)

    def __len__(self) -> int:
        return len(self.variables) + len(self.outer or ())


class TopLevel:
    """The `let`s of a file and of the files it uses. Each is evaluated when it is first needed, so
    their order has no meaning; it sees only the others."""

    def __init__(self, lets: Mapping[str, s.Let] | None = None) -> None:
        self._lets = lets or {}
        self._values: dict[str, Variable | NetError] = {}
        self._pending: list[str] = []

    def scope(self, budget: Budget, variables: Mapping[str, Variable] | None = None) -> Scope:
        """Returns a scope in which these `let`s are visible."""
        return Scope(variables or {}, None, budget, self)

    def find(self, name: str, budget: Budget) -> Variable | Unknown:
        """Raises NetError if the value cannot be computed."""
        if name not in self._lets:
            return Unknown.UNKNOWN
        if name not in self._values:
            try:
                self._values[name] = self._evaluate(self._lets[name], budget)
            except LimitError:
                raise
            except NetError as e:
                self._values[name] = e
        value = self._values[name]
        if isinstance(value, NetError):
            raise NetError(*value.diagnostics)
        return value

    def _evaluate(self, let: s.Let, budget: Budget) -> Variable:
        if let.params is not None:
            return Function(let, self.scope(budget))
        if let.name in self._pending:
            cycle = [*self._pending[self._pending.index(let.name) :], let.name]
            raise fail(f"`{let.name}` is defined in terms of itself: {' = '.join(cycle)}", let.span)
        self._pending.append(let.name)
        try:
            return evaluate(let.value, self.scope(budget))
        finally:
            self._pending.pop()

    def __iter__(self) -> Iterator[str]:
        return iter(self._lets)

    def __contains__(self, name: object) -> bool:
        return name in self._lets

    def __len__(self) -> int:
        return len(self._lets)


def evaluate(expr: s.Expression, scope: Scope) -> Value:
    """Returns the value of an expression. Raises NetError with the location of the error."""
    scope.budget.enter_expression(expr.span)
    try:
        value = _EVALUATORS[type(expr)](expr, scope)
    finally:
        scope.budget.leave_expression()
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
        raise fail(f"a condition must be `yes` or `no`, not {format_value(value)}", expr.span)
    return value


def _evaluate_number(expr: s.NumberLiteral, scope: Scope) -> Value:
    return _check_bounds(expr.value, expr.span)


def _check_bounds(value: int | float, span: Span) -> int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise fail("this number is too large", span)
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise fail(f"integers are limited to {MAX_NUMBER:,}", span)
    return value


CONSTANTS: dict[str, Value] = {"yes": True, "no": False, "none": None}


def _evaluate_name(expr: s.Name, scope: Scope) -> Value:
    found = scope.find(expr.name)
    if isinstance(found, InvalidValue):
        raise NetError()
    if isinstance(found, Function):
        help = f"call it: `{found.signature}`"
        raise fail(f"`{expr.name}` is a function, not a value", expr.span, help=help)
    if found is not Unknown.UNKNOWN:
        return found
    if expr.name in CONSTANTS:
        return CONSTANTS[expr.name]
    return Symbol(expr.name, expr.span, scope, scope.labels)


def _evaluate_list(expr: s.ListLiteral, scope: Scope) -> Value:
    return tuple(evaluate(e, scope) for e in expr.items)


def _evaluate_pair(expr: s.PairLiteral, scope: Scope) -> Value:
    return evaluate(expr.first, scope), evaluate(expr.second, scope)


def _evaluate_member(expr: s.MemberExpr, scope: Scope) -> Value:
    if isinstance(scope.members, InvalidValue):
        raise NetError()
    if scope.members is None:
        raise fail("there is no input here, so `in` has no shape", expr.span)
    if expr.name not in scope.members:
        known = ["channels", "height", "width"]
        message = f"the input has no `{expr.name}`"
        if expr.name in known:
            message += ": it is a vector, not an image"
            known = ["channels"]
        raise fail(message, expr.span, help=suggest_name(expr.name, known, "it has"))
    return scope.members[expr.name]


def _evaluate_index(expr: s.IndexExpr, scope: Scope) -> Value:
    value = evaluate(expr.base, scope)
    for index_expr in expr.indices:
        if isinstance(value, Size):
            value = value.dims
        if not isinstance(value, tuple):
            raise fail(
                f"{format_value(value)} is not a list, so it has no entries",
                expr.span,
                help=suggest_for_value(value),
            )
        if isinstance(index_expr, s.Slice):
            value = _evaluate_slice(value, index_expr, scope)
            continue
        index = _evaluate_position(index_expr, scope, "an index must be")
        if not -len(value) <= index < len(value):
            raise fail(
                f"the list has {len(value)} entries, so there is no [{index}]", index_expr.span
            )
        value = value[index]
    return value


def _evaluate_slice(value: tuple[Value, ...], expr: s.Slice, scope: Scope) -> tuple[Value, ...]:
    """Some entries of a list. Ends behind its own are clipped, negative ones count from its end."""
    scope.budget.spend_value(value, expr.span)
    ends = (
        None if e is None else _evaluate_position(e, scope, "the ends of a slice must be")
        for e in (expr.start, expr.stop)
    )
    return value[slice(*ends)]


def _evaluate_position(expr: s.Expression, scope: Scope, subject: str) -> int:
    position = evaluate(expr, scope)
    if isinstance(position, bool) or not isinstance(position, int):
        kind = "an integer" if subject.startswith("an ") else "integers"
        raise fail(
            f"{subject} {kind}, not {format_value(position)}",
            expr.span,
            help=suggest_for_value(position),
        )
    return position


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


_NAMES_OF_CHOICES = ("max", "min")
"""Functions that a recipe also writes before the name of what it chooses by: `max(val_f1)`."""


def _evaluate_call(expr: s.CallExpr, scope: Scope) -> Value:
    """Calls a function: a `let`, else a built-in one. A value of the same name hides neither a
    built-in function nor what a call means elsewhere, such as an initialiser."""
    arguments = evaluate_arguments(expr.args, scope)
    found = scope.find(expr.name)
    if isinstance(found, InvalidValue):
        raise NetError()
    if isinstance(found, Function):
        return _call_function(found, arguments, expr.span, scope.budget)
    is_choice = len(arguments) == 1 and isinstance(arguments[0].value, Symbol | Call)
    if expr.name not in FUNCTIONS or (is_choice and expr.name in _NAMES_OF_CHOICES):
        return Call(expr.name, arguments, expr.span, scope, FUNCTIONS)
    return _call_builtin(expr, [a.value for a in arguments], any(a.name for a in arguments))


def _call_builtin(expr: s.CallExpr, values: Sequence[Value], has_names: bool) -> Value:
    function, usage = FUNCTIONS[expr.name]
    try:
        if has_names or any(isinstance(v, str | bool) for v in values):
            raise TypeError
        result: Value = function(*values)
    except (TypeError, ValueError, OverflowError) as e:
        reason = f": {e}" if isinstance(e, ValueError) and "list" in str(e) else ""
        raise fail(
            f"`{expr.name}` cannot take these arguments{reason}", expr.span, help=usage
        ) from None
    return _check_bounds(result, expr.span) if isinstance(result, int | float) else result


_MAX_CALL_NOTES = 3
"""Calls of functions that an error shows, innermost first."""


def _call_function(
    function: Function, arguments: Sequence[Argument], span: Span, budget: Budget
) -> Value:
    """The value of a function's expression, in the scope where the function stands."""
    budget.spend_steps(1, span)
    let, outer = function.let, function.scope
    params = let.params or ()
    values = bind_params(function.signature, params, arguments, span, outer, budget)
    try:
        return evaluate(let.value, Scope(values, outer.members, budget, outer))
    except LimitError:
        raise
    except NetError as e:
        budget.spend_steps(STEPS_PER_LAYER, span)
        shown = Call(let.name, tuple(Argument(k, v) for k, v in values.items()))
        raise NetError(*(_add_call_note(d, shown, span) for d in e.diagnostics)) from None


def _add_call_note(d: Diagnostic, call: Call, span: Span) -> Diagnostic:
    if len(d.notes) >= _MAX_CALL_NOTES:
        return d
    note = f"in function {call} called at {span.format_relative_to(d.span)}"
    return replace(d, notes=(*d.notes, note))


def make_signature(name: str, params: Sequence[s.Parameter]) -> Signature:
    """The signature of a block, net or function; defaults are evaluated when they are bound."""
    return Signature(
        name,
        tuple(
            Param(p.name, AnyValue(), Symbol(expression_text(p.default)) if p.default else REQUIRED)
            for p in params
        ),
    )


def bind_params(
    signature: Signature,
    params: Sequence[s.Parameter],
    arguments: Sequence[Argument],
    span: Span | None,
    outer: Scope | TopLevel,
    budget: Budget,
) -> dict[str, Value]:
    """Returns the values of all parameters. A default may use the parameters before it, and what
    `outer` contains."""
    budget.spend_leaves(len(params), span)
    bound = signature.bind(arguments, span)
    given_names = {a.name for a in name_arguments(params, arguments)}
    values: dict[str, Value] = {}
    for p in params:
        if p.name in given_names or p.default is None:
            values[p.name] = bound[p.name]
        else:
            values[p.name] = evaluate(p.default, Scope(values, None, budget, outer))
    return values


def name_arguments(
    params: Sequence[s.Parameter], arguments: Sequence[Argument]
) -> Iterator[Argument]:
    """Yields the arguments, positional ones with the name of their parameter."""
    for i, a in enumerate(arguments):
        is_positional = a.name is None and i < len(params)
        yield replace(a, name=params[i].name) if is_positional else a


_EVALUATORS: dict[type, Callable[[Any, Scope], Value]] = {
    s.NumberLiteral: _evaluate_number,
    s.SizeLiteral: lambda e, scope: e.value,
    s.StringLiteral: lambda e, scope: Text(e.value, e.span),
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
