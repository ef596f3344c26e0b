"""Accuracies that papers report: `published(top1=..., top5=...)` in a net's `test` section."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.errors import fail
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.evaluate import evaluate_arguments
from netdsl.language.program import Program
from netdsl.parameter_types import Float, TypeMismatch
from netdsl.signature import Param, Signature
from netdsl.values import Value


@dataclass(frozen=True)
class _ShareKind:
    """A share of the test images, or None."""

    def accept(self, value: Value) -> float | None:
        if value is None:
            return None
        try:
            return Float(0, 1).accept(value)
        except TypeMismatch:
            raise TypeMismatch("a number from 0 to 1 (0.7613 is 76.13%)") from None


PUBLISHED_SIGNATURE = Signature(
    "published",
    (
        Param("top1", _ShareKind(), None, "share of the images whose class is the most likely"),
        Param(
            "top5", _ShareKind(), None, "share of those whose class is among the five most likely"
        ),
    ),
)


def is_published(e: s.Expression) -> bool:
    return isinstance(e, s.Name | s.CallExpr) and e.name == PUBLISHED_SIGNATURE.name


def read_published_accuracies(
    program: Program, test: s.Test, budget: Budget | None = None
) -> dict[str, float]:
    """The accuracies given in a test section, under `top1` and `top5`. Raises NetError if they are
    not shares, or are given twice."""
    calls = [e for e in test.expectations if is_published(e)]
    if not calls:
        return {}
    if len(calls) > 1:
        raise fail("`published` is given twice", calls[1].span)
    call_arguments = evaluate_arguments(
        getattr(calls[0], "args", None), program.top_level.scope(budget or Budget())
    )
    accuracies = {
        k: v
        for k, v in PUBLISHED_SIGNATURE.bind(call_arguments, calls[0].span).items()
        if v is not None
    }
    if not accuracies:
        help = "write `published(top1=0.7613, top5=0.9286)`, or only one of the two"
        raise fail("`published` needs an accuracy", calls[0].span, help=help)
    if accuracies.get("top5", 1) < accuracies.get("top1", 0):
        raise fail("`top5` is less than `top1`, which it includes", calls[0].span)
    return accuracies
