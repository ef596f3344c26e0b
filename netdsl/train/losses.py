"""The table of losses: each emits one value a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from netdsl.errors import fail
from netdsl.ir.builder import Builder
from netdsl.kinds import Number
from netdsl.signature import Param, Signature
from netdsl.types import Node, dims


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


def weighted_mean(b: Builder, values: Node, weights: Node) -> Node:
    """Sum of weight * value over the sum of weights, a scalar."""
    total = b.reduce_sum(b.mul(values, weights), axes=(0,))
    return b.div(total, b.reduce_sum(weights, axes=(0,)))


def loss_of(b: Builder, chosen: Any, scores: Node, labels: Node) -> Node:
    loss: Node = chosen.record.build(b, scores, labels, **chosen.arguments)
    return loss
