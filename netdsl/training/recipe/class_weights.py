"""The weights of classes in a training loss: how they are written, and their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netdsl.data.inventory import abbreviate
from netdsl.errors import Span, fail, suggest_name
from netdsl.parameter_types import Float, ListOf, ListOfPairs, QuotedText, TypeMismatch
from netdsl.types import Array
from netdsl.values import Symbol, Value

BALANCED = Symbol("balanced")
ClassWeights = Symbol | tuple[float, ...] | tuple[tuple[str, float], ...] | None
_PAIRS = ListOfPairs(QuotedText(), Float(0))
_NUMBERS = ListOf(Float(0))


@dataclass(frozen=True)
class ClassWeightsKind:
    """`none`, `balanced`, a weight for each class, or pairs of a class and its weight; other
    classes then weigh 1."""

    def accept(self, value: Value) -> ClassWeights:
        if value is None:
            return None
        if isinstance(value, Symbol) and value == BALANCED:
            return BALANCED
        if not isinstance(value, tuple) or not value or isinstance(value[0], str):
            raise TypeMismatch(
                '`none`, `balanced`, a list with a number for each class, or pairs: `[("CLASS", '
                "5)]`"
            )
        if any(isinstance(entry, tuple) for entry in value):
            pairs = _PAIRS.accept(value)
            repeated = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
            if repeated:
                raise TypeMismatch(f'pairs of different classes: "{repeated[0]}" is given twice')
            return pairs
        weights: tuple[float, ...] = _NUMBERS.accept(value)
        if not any(weights):
            raise TypeMismatch("weights with at least one above 0")
        return weights


def check_weight_count(weights: ClassWeights, classes: int, span: Span | None) -> None:
    """Raises NetError if a list does not have one weight for each class."""
    if isinstance(weights, tuple) and isinstance(weights[0], float) and len(weights) != classes:
        count = "1 weight" if len(weights) == 1 else f"{len(weights):,} weights"
        raise fail(
            f"`class_weights` has {count}, but there are {classes:,} classes",
            span,
            help='give one weight per class, in the order of the classes, or pairs: `[("CLASS", '
            "5)]`",
        )


def check_weight_names(weights: ClassWeights, classes: Sequence[str], span: Span | None) -> None:
    """Raises NetError if a pair names a class that the data does not have, or if pairs leave no
    class a weight above 0."""
    pairs = [w for w in weights if isinstance(w, tuple)] if isinstance(weights, tuple) else []
    for name, _ in pairs:
        if name not in classes:
            message = f'`class_weights` names "{name}", but the data set has no such class'
            raise fail(message, span, help=suggest_name(name, classes, "its classes are"))
    if len(pairs) == len(classes) and not any(weight for _, weight in pairs):
        raise fail("`class_weights` sets the weight of every class to 0", span)


def find_class_weights(
    weights: ClassWeights, balanced: Array, classes: Sequence[str], span: Span | None
) -> Array:
    """The weight of each class, float32 [classes]; `balanced` are those that the number of images
    of each gives. Raises NetError if one is not finite, for there are none, or if the weights do
    not fit the classes."""
    check_weight_count(weights, len(classes), span)
    check_weight_names(weights, classes, span)
    if isinstance(weights, Symbol):
        _check_balance(balanced, classes, span)
        return balanced.astype(np.float32)
    assert weights is not None
    numbers = [w for w in weights if isinstance(w, float)]
    pairs = dict(w for w in weights if isinstance(w, tuple))
    return np.array(numbers or [pairs.get(c, 1.0) for c in classes], np.float32)


def _check_balance(balanced: Array, classes: Sequence[str], span: Span | None) -> None:
    """Raises NetError if `balanced` gives a class no weight, or of several labels one that all
    images have the weight 0."""
    missing = [name for name, weight in zip(classes, balanced, strict=True) if np.isinf(weight)]
    constant = [name for name, weight in zip(classes, balanced, strict=True) if weight == 0]
    if missing or constant:
        found = "no training images are of" if missing else "all training images have"
        raise fail(
            "`class_weights=balanced` weights classes by their numbers of images, "
            f"but {found} {abbreviate(missing or constant)}",
            span,
            help='give the weights as pairs: `[("CLASS", 5)]`; other classes weigh 1',
        )
