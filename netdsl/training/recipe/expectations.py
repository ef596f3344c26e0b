"""A recipe's expectations of its metrics, checked before a run and judged after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.errors import NetError, fail, suggest_name
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.evaluate import CONSTANTS, TopLevel, evaluate_condition
from netdsl.language.unparse import expression_text

METRICS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
)


_NO_LETS = TopLevel()


def check_expectation(
    condition: s.Expression,
    held_out: int | float,
    budget: Budget,
    top_level: TopLevel = _NO_LETS,
) -> None:
    """Raises NetError if an expectation is malformed or names a metric that will not exist."""
    for e in _names(condition):
        if e.name not in METRICS and e.name not in top_level and e.name not in CONSTANTS:
            help = suggest_name(e.name, METRICS, "metrics are")
            raise fail(f"there is no metric `{e.name}`", e.span, help=help)
        if e.name.startswith("val_") and not held_out:
            raise fail(f"`validation = 0` holds nothing out, so there is no `{e.name}`", e.span)
    # all different, so that dividing by a difference of two does not fail
    figures = {name: 0.5 + i / 16 for i, name in enumerate(METRICS)}
    evaluate_condition(condition, top_level.scope(budget, figures))


def check_test_metrics(conditions: Sequence[s.Expression]) -> None:
    """Raises NetError if an expectation names a test metric; for data without a test set."""
    for e in (e for condition in conditions for e in _names(condition)):
        if e.name.startswith("test_"):
            help = "expect `val_accuracy`, or give the data a test set"
            raise fail(f"the data have no test set, so there is no `{e.name}`", e.span, help=help)


def needs_test_set(condition: s.Expression) -> bool:
    """Whether an expectation names a metric of the test set."""
    return any(e.name.startswith("test_") for e in _names(condition))


def _names(condition: s.Expression) -> Iterator[s.Name]:
    return (e for e in s.walk(condition) if isinstance(e, s.Name))


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
    as a test accuracy without a test set, fails."""
    known = {k: v for k, v in metrics.items() if v is not None}
    outcomes = []
    for condition in expectations:
        text = expression_text(condition)
        missing = [m for m in METRICS if m in text and m not in known]
        if missing:
            outcomes.append(ExpectationResult(text, False, f"{missing[0]} was not measured"))
            continue
        figures = ", ".join(f"{k} is {v:.4f}" for k, v in known.items() if k in text)
        try:
            scope = top_level.scope(Budget(), known)
            outcomes.append(ExpectationResult(text, evaluate_condition(condition, scope), figures))
        except NetError as e:  # such as division by a difference that is zero
            outcomes.append(
                ExpectationResult(text, False, f"{figures}: {e.diagnostics[0].message}")
            )
    return outcomes
