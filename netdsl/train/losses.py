"""The table of losses: each emits one value a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from netdsl.errors import fail
from netdsl.ir.builder import Builder
from netdsl.kinds import Mismatch, Number, Pairs
from netdsl.signature import Chosen, OneFrom, Param, Signature
from netdsl.types import Node, dims
from netdsl.values import Value, show


@dataclass(frozen=True)
class Loss:
    """`build(b, scores, labels, **arguments)` gives the loss of each sample: [N]."""

    signature: Signature
    build: Callable[..., Node]
    doc: str = ""


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
            (Param("smoothing", Number(0, below=1), 0.0, "share of the target spread evenly"),),
        ),
        _cross_entropy,
        "-log of the probability that softmax gives the right class",
    ),
    "mse": Loss(Signature("mse"), _mean_squared, "mean squared difference from the one-hot target"),
}


@dataclass(frozen=True)
class Objective:
    """What is minimised: losses, each with its weight."""

    terms: tuple[tuple[Chosen, float], ...]

    def __str__(self) -> str:
        plain = len(self.terms) == 1 and self.terms[0][1] == 1
        return str(self.terms[0][0]) if plain else show(self.terms)

    def of(self, b: Builder, scores: Node, labels: Node) -> Node:
        """The loss of each sample."""
        parts = []
        for chosen, weight in self.terms:
            part: Node = chosen.record.build(b, scores, labels, **chosen.arguments)
            parts.append(part if weight == 1 else b.mul(part, b.const(weight)))
        return reduce(b.add, parts)


@dataclass(frozen=True)
class Minimised:
    """A loss, or a list of losses with their weights."""

    def accept(self, value: Value) -> Objective:
        one = OneFrom("loss", LOSSES)
        if not isinstance(value, tuple):
            return Objective(((one.accept(value), 1.0),))
        terms = Pairs(one, Number(above=0)).accept(value)
        if not terms:
            raise Mismatch("a loss, or pairs of a loss and its weight")
        return Objective(terms)


def class_scores(b: Builder, output: Node) -> Node:
    """A net's output as [N, classes]. Raises NetError where it is a picture of scores."""
    n, *rest = output.type.shape
    if math.prod(rest[:-1]) != 1:
        raise fail(
            f"the net gives {dims(rest)}, one score for each class is needed",
            output.span,
            help="end it with `globalavgpool` or `fc(classes)`",
        )
    return b.reshape(output, shape=(n, rest[-1])) if len(rest) > 1 else output


def pairwise_sum(b: Builder, parts: Sequence[Node]) -> Node:
    """The sum of values, added by pairs: of hundreds of them, no sum is made of a long chain."""
    while len(parts) > 1:
        even = len(parts) // 2 * 2
        pairs = zip(parts[:even:2], parts[1:even:2], strict=True)
        parts = [*(b.add(x, y) for x, y in pairs), *parts[even:]]
    return parts[0]


def weighted_mean(b: Builder, values: Node, weights: Node) -> Node:
    """Sum of weight * value over the sum of weights, a scalar."""
    total = b.reduce_sum(b.mul(values, weights), axes=(0,))
    return b.div(total, b.reduce_sum(weights, axes=(0,)))
