"""Accuracies that others report: `published(top1=..., top5=...)` in a net's `test` section."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.errors import fail
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.evaluate import Scope, evaluate_arguments
from netdsl.language.program import Program
from netdsl.parameter_types import (
    Choice,
    Float,
    Integer,
    ListOf,
    NoneLiteral,
    OneOf,
    ParameterType,
    QuotedText,
    TypeMismatch,
)
from netdsl.signature import Param, Signature
from netdsl.text_escaping import escape_line
from netdsl.values import Value

DENSE = "dense"
"""Instead of crops: the net is applied to the whole image, and its scores are averaged."""
MAX_SOURCE_LENGTH = 60


@dataclass(frozen=True)
class PublishedAccuracy:
    """One accuracy on the test images (of ImageNet: the validation images), and how it was
    measured; None is what is not known.

    `top1` and `top5` are shares from 0 to 1; `crops` is the number of crops of an image whose
    scores are averaged, or `dense`. `train` is the short side of the training images in pixels, or
    the ends of the interval that it is drawn from; `test` holds the short sides of the test images,
    over which scores are averaged.
    """

    top1: float | None = None
    top5: float | None = None
    source: str | None = None
    crops: int | str | None = None
    train: tuple[int, ...] | None = None
    test: tuple[int, ...] | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The accuracies that are known, under `top1` and `top5`."""
        both = {"top1": self.top1, "top5": self.top5}
        return {name: share for name, share in both.items() if share is not None}

    @property
    def conditions(self) -> tuple[str | int | tuple[int, ...] | None, ...]:
        """What distinguishes it from others of its net."""
        return self.source, self.crops, self.train, self.test

    def describe_conditions(self) -> str:
        """Source, crops and sizes in words; empty if none is known."""
        parts = []
        if self.source is not None:
            parts.append(escape_line(self.source))
        if self.crops is not None:
            plural = "" if self.crops == 1 else "s"
            parts.append(DENSE if self.crops == DENSE else f"{self.crops} crop{plural}")
        if self.train is not None:
            parts.append(f"trained at {self.format_train()}")
        if self.test is not None:
            parts.append(f"tested at {self.format_test()}")
        return "; ".join(parts)

    def format_train(self) -> str:
        return "-".join(map(str, self.train or ()))

    def format_test(self) -> str:
        return ", ".join(map(str, self.test or ()))


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


@dataclass(frozen=True)
class _ReporterKind:
    """A short text."""

    def accept(self, value: Value) -> str:
        text = QuotedText().accept(value).strip()
        if not 0 < len(text) <= MAX_SOURCE_LENGTH:
            raise TypeMismatch(f"a text of at most {MAX_SOURCE_LENGTH} characters")
        return text


_SIDE = Integer(1, 16384)


@dataclass(frozen=True)
class _TrainingSidesKind:
    """One side, or the ends of an interval."""

    def accept(self, value: Value) -> tuple[int, ...]:
        try:
            sides = ListOf(_SIDE).accept(value)
        except TypeMismatch:
            sides = ()
        if len(sides) == 1 or (len(sides) == 2 and sides[0] < sides[1]):
            return sides
        raise TypeMismatch("a side in pixels (256), or the ends of an interval ([256, 512])")


def _or_none(kind: ParameterType) -> OneOf:
    return OneOf((kind, NoneLiteral()))


PUBLISHED_SIGNATURE = Signature(
    "published",
    (
        Param("top1", _ShareKind(), None, "share of the images whose class is the most likely"),
        Param(
            "top5", _ShareKind(), None, "share of those whose class is among the five most likely"
        ),
        Param(
            "source",
            _or_none(_ReporterKind()),
            None,
            'who reports it: `"paper, table 3"`',
            is_keyword_only=True,
        ),
        Param(
            "crops",
            OneOf((Integer(1, 10_000), Choice((DENSE,)), NoneLiteral())),
            None,
            "how many crops of an image were averaged, or `dense`: the net was applied to the "
            "whole image",
            is_keyword_only=True,
        ),
        Param(
            "train",
            _or_none(_TrainingSidesKind()),
            None,
            "short side of the training images, or an interval of it (`[256, 512]`)",
            is_keyword_only=True,
        ),
        Param(
            "test",
            _or_none(ListOf(_SIDE)),
            None,
            "short side of the test images, or a list of several that were averaged",
            is_keyword_only=True,
        ),
    ),
)


def is_published(e: s.Expression) -> bool:
    return isinstance(e, s.Name | s.CallExpr) and e.name == PUBLISHED_SIGNATURE.name


def read_published_accuracies(
    program: Program, test: s.Test, budget: Budget | None = None
) -> tuple[PublishedAccuracy, ...]:
    """The accuracies given in a test section, in their order. Raises NetError if they are not
    shares, or if two of them do not differ in how they were measured."""
    scope = program.top_level.scope(budget or Budget())
    found: list[PublishedAccuracy] = []
    for expectation in filter(is_published, test.expectations):
        accuracy = _read_accuracy(expectation, scope)
        if any(accuracy.conditions == other.conditions for other in found):
            raise fail(
                "`published` is given twice for the same source, crops and sizes",
                expectation.span,
                help='say how they differ: `source="paper, table 3"`, `crops=10`, `train=256` or '
                "`test=384`",
            )
        found.append(accuracy)
    return tuple(found)


def _read_accuracy(e: s.Expression, scope: Scope) -> PublishedAccuracy:
    call_arguments = evaluate_arguments(e.args if isinstance(e, s.CallExpr) else (), scope)
    accuracy = PublishedAccuracy(**PUBLISHED_SIGNATURE.bind(call_arguments, e.span))
    if not accuracy.shares:
        help = "write `published(top1=0.7613, top5=0.9286)`, or only one of the two"
        raise fail("`published` needs an accuracy", e.span, help=help)
    if accuracy.shares.get("top5", 1) < accuracy.shares.get("top1", 0):
        raise fail("`top5` is less than `top1`, which it includes", e.span)
    return accuracy
