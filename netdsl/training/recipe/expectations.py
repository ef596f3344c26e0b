"""A recipe's expectations of its metrics, checked before a run and judged after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netdsl.errors import NetError, Span, fail
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.evaluate import CONSTANTS, Scope, TopLevel, evaluate_condition
from netdsl.language.unparse import expression_text
from netdsl.training.metrics.table import METRIC_NAMES, MetricName
from netdsl.training.recipe.best import find_metric, find_metric_of_class

_NO_LETS = TopLevel()
_PREFIXES = tuple(f"{part}_" for part in dict.fromkeys(n.part for n in METRIC_NAMES.values()))


def find_metrics(condition: s.Expression) -> list[tuple[MetricName, Span]]:
    """The metrics that an expectation names, with their spans. Raises NetError if a call names none
    of its own."""
    found: list[tuple[MetricName, Span]] = []
    for e in s.walk(condition):
        if isinstance(e, s.Name) and e.name in METRIC_NAMES:
            found.append((METRIC_NAMES[e.name], e.span))
        elif isinstance(e, s.CallExpr) and e.name in METRIC_NAMES:
            found.append((_metric_of_class(e), e.span))
    return found


def _metric_of_class(call: s.CallExpr) -> MetricName:
    literals = s.StringLiteral | s.NumberLiteral
    given = [a.value.value if isinstance(a.value, literals) else None for a in call.args]
    return find_metric_of_class(call.name, given, call.span)


def check_expectation(
    condition: s.Expression,
    held_out: int | float,
    budget: Budget,
    top_level: TopLevel = _NO_LETS,
) -> None:
    """Raises NetError if an expectation is malformed or names a metric that will not exist."""
    known = {*top_level, *CONSTANTS}
    for e in s.walk(condition):
        is_other = isinstance(e, s.CallExpr) and not e.name.startswith(_PREFIXES)
        if isinstance(e, s.Name | s.CallExpr) and not is_other and e.name not in known:
            find_metric(e.name, e.span)
    metrics = find_metrics(condition)
    for name, span in metrics:
        check_held_out(name, held_out, span)
    # all different, so that dividing by a difference of two does not fail
    figures = {str(name): 0.5 + i / 64 for i, (name, _) in enumerate(metrics)}
    _evaluate(condition, top_level.scope(budget, figures))


def check_held_out(name: MetricName, held_out: int | float, span: Span | None) -> None:
    """Raises NetError for a validation metric if nothing is held out."""
    if name.part == "val" and not held_out:
        raise fail(f"`validation = 0` holds out no images, so there is no `{name}`", span)


def check_test_metrics(conditions: Sequence[s.Expression]) -> None:
    """Raises NetError if an expectation names a test metric; for data without a test set."""
    for name, span in (found for condition in conditions for found in find_metrics(condition)):
        if name.part == "test":
            help = f"expect `{replace(name, part='val')}`, or use data with a test set"
            raise fail(f"the data set has no test images, so there is no `{name}`", span, help=help)


def needs_test_set(condition: s.Expression) -> bool:
    """Whether an expectation names a metric of the test set."""
    return any(name.part == "test" for name, _ in find_metrics(condition))


def _evaluate(condition: s.Expression, scope: Scope) -> bool:
    """Whether a condition holds; a metric of one class is looked up by its text."""

    def name_call(e: Any) -> s.Name | None:
        if isinstance(e, s.CallExpr) and e.name in METRIC_NAMES:
            return s.Name(e.span, str(_metric_of_class(e)))
        return None

    return evaluate_condition(s.transform(condition, name_call), scope)


@dataclass(frozen=True)
class ExpectationResult:
    """The outcome of an expectation: its text, whether it holds, and the figures behind it."""

    text: str
    ok: bool
    figures: str


def judge_expectations(
    expectations: Sequence[s.Expression],
    metrics: Mapping[str, Any],
    top_level: TopLevel = _NO_LETS,
) -> list[ExpectationResult]:
    """Judges the expectations of a finished run. One that uses a metric that was not measured, such
    as a test accuracy without a test set, or that is not a number, fails."""
    known = {k: v for k, v in metrics.items() if v is not None}
    return [_judge(condition, known, top_level) for condition in expectations]


def _judge(
    condition: s.Expression, known: Mapping[str, Any], top_level: TopLevel
) -> ExpectationResult:
    text = expression_text(condition)
    names = dict.fromkeys(str(name) for name, _ in find_metrics(condition))
    missing = [name for name in names if name not in known]
    if missing:
        return ExpectationResult(text, False, f"{missing[0]} was not measured")
    not_numbers = [name for name in names if math.isnan(known[name])]
    if not_numbers:
        return ExpectationResult(text, False, f"{not_numbers[0]} is not a number (NaN)")
    figures = ", ".join(f"{name} is {known[name]:.4f}" for name in names)
    try:
        ok = _evaluate(condition, top_level.scope(Budget(), known))
    except NetError as e:  # such as division by a difference that is zero
        return ExpectationResult(text, False, f"{figures}: {e.diagnostics[0].message}")
    return ExpectationResult(text, ok, figures)
