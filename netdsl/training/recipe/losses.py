"""The table of losses: each emits one value per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from netdsl.errors import fail
from netdsl.ir.builder import Builder
from netdsl.language import syntax as s
from netdsl.parameter_types import Float, ListOfPairs, TypeMismatch
from netdsl.signature import BoundCall, CallOf, Param, Signature, TableType
from netdsl.training.recipe.class_weights import (
    ClassWeightsKind,
    check_weight_names,
    find_class_weights,
)
from netdsl.training.recipe.targets import Targets
from netdsl.types import Array, Node, TensorType, dims
from netdsl.values import Value, format_value

CLASS_WEIGHTS = "class_weights"
ClassInputs = dict[str, Array]
Probabilities = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Loss:
    """`build(b, scores, targets, **arguments)` returns the loss of each sample, [N].

    `probabilities` is the function that makes probabilities of the scores; without one, scores are
    compared with the targets as they are. `class_weights` among the arguments are a node [classes],
    or None. If they weigh `whole_samples`, the mean over a batch is divided by the sum of its
    samples' weights (as PyTorch does), else they weigh the positives of each class by itself.
    """

    signature: Signature
    build: Callable[..., Node]
    doc: str = ""
    probabilities: Probabilities | None = None
    weighs_whole_samples: bool = True


def _cross_entropy(
    b: Builder, scores: Node, targets: Targets, smoothing: float, class_weights: Node | None
) -> Node:
    """-sum over classes of w t log p (Szegedy et al. 2016 for the smoothing)."""
    if targets.distribution is None and class_weights is None:
        return b.cross_entropy(scores, targets.labels, smoothing=smoothing)
    wanted = _weigh(b, targets.smooth(b, smoothing), class_weights)
    terms = b.mul(wanted, b.log_softmax(scores))
    return b.neg(b.reduce_sum(_where_positive(b, wanted, terms), axes=(1,)))


def _focal(
    b: Builder, scores: Node, targets: Targets, gamma: float, class_weights: Node | None
) -> Node:
    """-sum over classes of w t (1 - p)^gamma log p (Lin et al. 2017).

    1 - p is computed from log p, so that both vanish together as p approaches 1. The power is that
    of a number above 0, since the slope of another may be infinite."""
    if gamma == 0:
        return _cross_entropy(b, scores, targets, 0.0, class_weights)
    wanted = _weigh(b, targets.smooth(b), class_weights)
    log = _where_positive(b, wanted, b.log_softmax(scores))
    rest = b.maximum(b.neg(b.elu(log, alpha=1.0)), b.const(_TINY))
    terms = b.mul(b.mul(wanted, b.power(rest, exponent=gamma)), log)
    return b.neg(b.reduce_sum(terms, axes=(1,)))


_TINY = 1e-30


def _binary_cross_entropy(
    b: Builder, scores: Node, targets: Targets, smoothing: float, class_weights: Node | None
) -> Node:
    """The mean over classes of -(w t log p + (1 - t) log(1 - p)), where p is the sigmoid of a score
    x: with s = log(1 + e^x), -log(1 - p) is s and -log p is s - x. The larger of both terms has the
    sign of x for which s is small where the score is right, so nothing cancels."""
    wanted = targets.smooth(b, smoothing)
    yes, no = _weigh(b, wanted, class_weights), b.sub(b.const(1.0), wanted)
    x = b.select(b.greater(yes, no), b.neg(scores), scores)
    both, less = b.add(yes, no), b.minimum(yes, no)
    terms = b.sub(b.mul(both, b.softplus(x)), _where_positive(b, less, b.mul(less, x)))
    return b.reduce_mean(terms, axes=(1,))


def _mean_squared(b: Builder, scores: Node, targets: Targets) -> Node:
    return b.reduce_mean(b.squared_error(scores, targets.smooth(b)), axes=(1,))


def _weigh(b: Builder, wanted: Node, class_weights: Node | None) -> Node:
    return wanted if class_weights is None else b.mul(wanted, class_weights)


def _where_positive(b: Builder, condition: Node, value: Node) -> Node:
    """The value where another is above 0, else 0: a class that is impossible (a score of -inf) and
    not wanted adds nothing, and no NaN."""
    zero = b.const(0.0)
    return b.select(b.greater(condition, zero), value, zero)


_SMOOTHING = Param(
    "smoothing", Float(0, below=1), 0.0, "share of the target spread evenly over the classes"
)


def _class_weights(of: str = "class") -> Param:
    return Param(
        CLASS_WEIGHTS,
        ClassWeightsKind(),
        None,
        f"in training: `balanced`, a weight for each {of}, or pairs of a class and its weight",
    )


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        Signature("cross_entropy", (_SMOOTHING, _class_weights())),
        _cross_entropy,
        "-log of the probability that softmax gives the right class",
        probabilities="softmax",
    ),
    "focal": Loss(
        Signature(
            "focal",
            (
                Param(
                    "gamma", Float(0, 100), 2.0, "the larger, the less well-classified images count"
                ),
                _class_weights(),
            ),
        ),
        _focal,
        "-(1 - p)^gamma log p of the probability p that softmax gives the right class (Lin et al. "
        "2017)",
        probabilities="softmax",
    ),
    "bce": Loss(
        Signature("bce", (_SMOOTHING, _class_weights("class's positives"))),
        _binary_cross_entropy,
        "binary cross-entropy of the sigmoid of each score, averaged over the classes; for "
        "several labels per image, or one class",
        probabilities="sigmoid",
        weighs_whole_samples=False,
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

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(chosen.name for chosen, _ in self.terms)

    @property
    def probabilities(self) -> Probabilities | None:
        """The function that makes probabilities of the scores: that of the first loss with one."""
        found = (chosen.record.probabilities for chosen, _ in self.terms)
        return next((p for p in found if p is not None), None)

    @property
    def class_weights(self) -> dict[str, BoundCall]:
        """The losses with class weights, by the name of the graph input for these."""
        return {
            _input_name(i): chosen
            for i, (chosen, _) in enumerate(self.terms)
            if chosen.arguments.get(CLASS_WEIGHTS) is not None
        }

    def check_class_names(self, classes: Sequence[str]) -> None:
        """Raises NetError if class weights name a class that is not one of these."""
        for chosen in self.class_weights.values():
            check_weight_names(chosen.arguments[CLASS_WEIGHTS], classes, chosen.span)

    def find_class_weights(self, classes: Sequence[str], counts: Array, images: int) -> ClassInputs:
        """The values of the inputs for class weights, float32 [classes], for this number of images,
        `counts` of each class. Raises NetError if they do not fit the classes."""
        return {
            name: find_class_weights(
                chosen.arguments[CLASS_WEIGHTS],
                _balance(chosen.record, counts, images),
                classes,
                chosen.span,
            )
            for name, chosen in self.class_weights.items()
        }

    def per_sample(self, b: Builder, scores: Node, targets: Targets) -> Node:
        """Emits the loss of each sample, without class weights."""
        parts = [
            _scale(b, _build(b, chosen, scores, targets, None), factor)
            for chosen, factor in self.terms
        ]
        return reduce(b.add, parts)

    def mean(self, b: Builder, scores: Node, targets: Targets) -> Node:
        """Emits the mean over a batch, a scalar. Class weights are inputs [classes]."""
        kind = TensorType((targets.classes,), b.dtype)
        given = {name: b.input(name, kind) for name in self.class_weights}
        parts = [
            _scale(b, _mean(b, chosen, scores, targets, given.get(_input_name(i))), factor)
            for i, (chosen, factor) in enumerate(self.terms)
        ]
        return reduce(b.add, parts)

    def average_scores(self, views: Sequence[Array]) -> Array:
        """Combines the scores of several views of each image into one array [N, classes].

        Scores of which the loss makes probabilities are combined so that those of the result are
        the mean of the views' (Simonyan & Zisserman 2015, 3.2). Other scores are averaged directly,
        and so are those of an image with a score that is not finite. Identical views yield their
        own scores, bit for bit.
        """
        x = np.asarray(views, np.float64)
        with np.errstate(invalid="ignore"):  # infinities have no other mean
            plain = x.mean(axis=0)
            if self.probabilities is not None:
                finite = np.isfinite(x).all(axis=(0, 2))
                mean = _mean_logits if self.probabilities == "softmax" else _mean_binary_logits
                plain[finite] = mean(x[:, finite])
        return plain.astype(views[0].dtype)


def _input_name(term: int) -> str:
    """The name of the input for the class weights of a term."""
    return f"{CLASS_WEIGHTS}.{term}"


def _balance(loss: Loss, counts: Array, images: int) -> Array:
    """The weights that make up for unequal numbers of images (an infinity where there is none):
    images / (classes * count) of each class as a whole (King & Zeng 2001), and negatives /
    positives for the positives of each."""
    with np.errstate(divide="ignore"):
        if loss.weighs_whole_samples:
            return images / (len(counts) * np.asarray(counts, np.float64))
        return (images - counts) / np.asarray(counts, np.float64)


def _scale(b: Builder, value: Node, factor: float) -> Node:
    return value if factor == 1 else b.mul(value, b.const(factor))


def _build(
    b: Builder, chosen: BoundCall, scores: Node, targets: Targets, class_weights: Node | None
) -> Node:
    arguments = dict(chosen.arguments)
    if CLASS_WEIGHTS in arguments:
        arguments[CLASS_WEIGHTS] = class_weights
    built: Node = chosen.record.build(b, scores, targets, **arguments)
    return built


def _mean(
    b: Builder, chosen: BoundCall, scores: Node, targets: Targets, class_weights: Node | None
) -> Node:
    """The mean of a loss over a batch, divided by the sum of the samples' weights; 0 if that is
    0, as where all samples are of classes that do not count."""
    values = _build(b, chosen, scores, targets, class_weights)
    if class_weights is None or not chosen.record.weighs_whole_samples:
        return weighted_mean(b, values, targets)
    of_sample = b.reduce_sum(b.mul(targets.smooth(b), class_weights), axes=(1,))
    total = b.reduce_sum(b.mul(values, targets.weights), axes=(0,))
    size = targets.divisor(b, b.reduce_sum(b.mul(of_sample, targets.weights), axes=(0,)))
    return b.div(total, b.select(b.greater(size, b.const(0.0)), size, b.const(1.0)))


def _mean_logits(x: Array) -> Array:
    """For finite logits [views, N, classes], returns logits of the mean probability, in the scale
    of the first view. log(mean(p)) is computed as a difference from the first view's logits, which
    is exactly zero if all views agree."""
    most = x.max(axis=2, keepdims=True)
    total = most + np.log(np.exp(x - most).sum(axis=2, keepdims=True))
    found: Array = x[0] + _log_mean_exp((x - x[0]) - (total - total[0]))
    return found


def _mean_binary_logits(x: Array) -> Array:
    """The same for scores of which each has a probability of its own, its sigmoid p: the logarithm
    of mean(p) / mean(1 - p)."""
    yes, no = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    found: Array = x[0] + (_log_mean_exp(yes - yes[0]) - _log_mean_exp(no - no[0]))
    return found


def _log_mean_exp(x: Array) -> Array:
    """The logarithm of the mean over the first axis of e^x."""
    largest = x.max(axis=0)
    return largest + np.log(np.exp(x - largest).mean(axis=0))


@dataclass(frozen=True)
class ObjectiveKind(TableType):
    """A loss, or a list of losses with their weights."""

    @property
    def table(self) -> Mapping[str, Loss]:
        return LOSSES

    def accept(self, value: Value) -> Objective:
        one = CallOf("loss", LOSSES)
        if not isinstance(value, tuple):
            return Objective(((one.accept(value), 1.0),))
        terms = ListOfPairs(one, Float(above=0), "[(bce, 1), (mse, 0.1)]").accept(value)
        if not terms:
            raise TypeMismatch("a loss, or pairs of a loss and its weight")
        return Objective(terms)


def check_no_sum(value: s.Expression) -> None:
    """Raises NetError if losses are added with an operator."""
    if not isinstance(value, s.NaryExpr):
        return
    terms = [t for t in s.walk(value) if isinstance(t, s.Name | s.CallExpr) and t.name in LOSSES]
    if terms:
        terms.sort(key=lambda t: t.span.start)
        pairs = ", ".join(f"({t.span.excerpt()}, 1)" for t in terms)
        raise fail(
            f"losses are not added with `{value.rest[0][0]}`",
            value.span,
            help=f"a sum of losses is a list of pairs, each a loss and its weight: `[{pairs}]`",
        )


def class_scores(b: Builder, output: Node) -> Node:
    """A net's output as [N, classes]. Raises NetError if it has more than one position."""
    n, *rest = output.type.shape
    if math.prod(rest[:-1]) != 1:
        raise fail(
            f"the net gives {dims(rest)}, but one score per class is needed",
            output.span,
            help="end it with `fc(classes)`, or with `conv(classes, 1x1) -> globalavgpool`",
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


def weighted_mean(b: Builder, values: Node, targets: Targets) -> Node:
    """Sum of weight * value divided by the sum of weights, a scalar."""
    total = b.reduce_sum(b.mul(values, targets.weights), axes=(0,))
    return b.div(total, targets.divisor(b, b.reduce_sum(targets.weights, axes=(0,))))
