"""The table of losses: each emits one value per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from netdsl.errors import fail
from netdsl.ir.builder import Builder
from netdsl.parameter_types import Float, ListOfPairs, TypeMismatch
from netdsl.signature import BoundCall, CallOf, Param, Signature
from netdsl.types import Array, Node, dims
from netdsl.values import Value, format_value


@dataclass(frozen=True)
class Loss:
    """`build(b, scores, labels, **arguments)` returns the loss of each sample: [N]. If `logits`,
    softmax turns the scores into probabilities; otherwise they are compared as they are."""

    signature: Signature
    build: Callable[..., Node]
    doc: str = ""
    logits: bool = False


def _cross_entropy(b: Builder, scores: Node, labels: Node, smoothing: float) -> Node:
    return b.cross_entropy(scores, labels, smoothing=smoothing)


def _mean_squared(b: Builder, scores: Node, labels: Node) -> Node:
    classes = scores.type.shape[-1]
    target = b.one_hot(labels, classes=classes, smoothing=0.0, dtype=scores.type.dtype)
    return b.reduce_mean(b.squared_error(scores, target), axes=(1,))


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        Signature(
            "cross_entropy",
            (Param("smoothing", Float(0, below=1), 0.0, "share of the target spread evenly"),),
        ),
        _cross_entropy,
        "-log of the probability that softmax gives the right class",
        logits=True,
    ),
    "mse": Loss(Signature("mse"), _mean_squared, "mean squared difference from the one-hot target"),
}


@dataclass(frozen=True)
class Objective:
    """The training objective: a weighted sum of losses."""

    terms: tuple[tuple[BoundCall, float], ...]

    def __str__(self) -> str:
        plain = len(self.terms) == 1 and self.terms[0][1] == 1
        return str(self.terms[0][0]) if plain else format_value(self.terms)

    def per_sample(self, b: Builder, scores: Node, labels: Node) -> Node:
        """Emits the loss of each sample."""
        parts = []
        for chosen, weight in self.terms:
            part: Node = chosen.record.build(b, scores, labels, **chosen.arguments)
            parts.append(part if weight == 1 else b.mul(part, b.const(weight)))
        return reduce(b.add, parts)

    def average_scores(self, views: Sequence[Array]) -> Array:
        """Combines the scores of several views of each image into one array [N, classes].

        Logits are combined so that their softmax is the mean of the views' probabilities (Simonyan
        & Zisserman 2015, 3.2). Other scores are averaged directly, and so are those of an image
        with a score that is not finite. Identical views yield their own scores, bit for bit.
        """
        x = np.asarray(views, np.float64)
        with np.errstate(invalid="ignore"):  # infinities have no other mean
            plain = x.mean(axis=0)
            if any(chosen.record.logits for chosen, _ in self.terms):
                finite = np.isfinite(x).all(axis=(0, 2))
                plain[finite] = _mean_logits(x[:, finite])
        return plain.astype(views[0].dtype)


def _mean_logits(x: Array) -> Array:
    """For finite logits [views, N, classes], returns logits of the mean probability, in the scale
    of the first view. log(mean(p)) is computed as a difference from the first view's logits, which
    is exactly zero if all views agree."""
    most = x.max(axis=2, keepdims=True)
    total = most + np.log(np.exp(x - most).sum(axis=2, keepdims=True))
    change = (x - x[0]) - (total - total[0])
    largest = change.max(axis=0)
    found: Array = x[0] + (largest + np.log(np.exp(change - largest).mean(axis=0)))
    return found


@dataclass(frozen=True)
class ObjectiveKind:
    """A loss, or a list of losses with their weights."""

    def accept(self, value: Value) -> Objective:
        one = CallOf("loss", LOSSES)
        if not isinstance(value, tuple):
            return Objective(((one.accept(value), 1.0),))
        terms = ListOfPairs(one, Float(above=0)).accept(value)
        if not terms:
            raise TypeMismatch("a loss, or pairs of a loss and its weight")
        return Objective(terms)


def class_scores(b: Builder, output: Node) -> Node:
    """A net's output as [N, classes]. Raises NetError if it has more than one position."""
    n, *rest = output.type.shape
    if math.prod(rest[:-1]) != 1:
        raise fail(
            f"the net gives {dims(rest)}, but one score per class is needed",
            output.span,
            help="end it with `globalavgpool` or `fc(classes)`",
        )
    return b.reshape(output, shape=(n, rest[-1])) if len(rest) > 1 else output


def pairwise_sum(b: Builder, parts: Sequence[Node]) -> Node:
    """The sum of values, added in pairs, so that hundreds of them do not form a long chain of
    sums."""
    while len(parts) > 1:
        even = len(parts) // 2 * 2
        pairs = zip(parts[:even:2], parts[1:even:2], strict=True)
        parts = [*(b.add(x, y) for x, y in pairs), *parts[even:]]
    return parts[0]


def weighted_mean(b: Builder, values: Node, weights: Node) -> Node:
    """Sum of weight * value divided by the sum of weights, a scalar."""
    total = b.reduce_sum(b.mul(values, weights), axes=(0,))
    return b.div(total, b.reduce_sum(weights, axes=(0,)))
