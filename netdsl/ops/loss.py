"""Losses per sample, their targets, and hits among the top k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from netdsl.ops.attributes import DTYPE
from netdsl.ops.example_values import draw_attributes
from netdsl.ops.op import (
    Draw,
    Example,
    Op,
    Operand,
    common_dtype,
    constant_like,
    draw_shape,
    float_operands,
    require,
)
from netdsl.ops.reduce import OPS as REDUCE_OPS
from netdsl.parameter_types import Float, Integer
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType, dims

_log_softmax = next(op.reference for op in REDUCE_OPS if op.name == "log_softmax")
_SMOOTHING = Param(
    "smoothing", Float(0, below=1), 0.0, "share of the target spread evenly over the classes"
)
_ONE_HOT_PARAMS = (Param("classes", Integer()), _SMOOTHING, Param("dtype", DTYPE))
_TOP_HIT_PARAMS = (Param("k", Integer(), 1),)
_LABELS = "labels are integers"


def _check_labels(scores: TensorType, labels: TensorType) -> None:
    fits = labels.shape == scores.shape[:-1] and labels.dtype.startswith("int")
    require(fits, f"labels {labels} do not fit scores {dims(scores.shape)}")


def _one_hot(xp: Any, labels: Array, classes: int, smoothing: float, dtype: str) -> Array:
    hit = labels[..., None] == xp.arange(classes)
    return hit.astype(dtype) * (1 - smoothing) + xp.asarray(smoothing / classes, dtype=dtype)


def _cross_entropy(xp: Any, logits: Array, labels: Array, smoothing: float) -> Array:
    target = _one_hot(xp, labels, logits.shape[-1], smoothing, logits.dtype)
    # a class that is impossible (a score of -inf) and not wanted adds nothing, and no NaN
    terms = xp.where(target == 0, xp.zeros_like(target), target * _log_softmax(xp, logits))
    return -terms.sum(axis=-1)


def _cross_entropy_shape(logits: TensorType, labels: TensorType, smoothing: float) -> TensorType:
    _check_labels(logits, labels)
    return TensorType(labels.shape, logits.dtype)


def _cross_entropy_vjp(b: Emitter, g: Node, y: Node, logits: Node, labels: Node) -> Node:
    kind = logits.type
    target = b.one_hot(
        labels, classes=kind.shape[-1], smoothing=y.attrs["smoothing"], dtype=kind.dtype
    )
    return b.mul(b.reshape(g, shape=(*g.type.shape, 1)), b.sub(b.softmax(logits), target))


def _draw_scores_and_labels(draw: Draw) -> tuple[Operand, Operand]:
    rows, classes = draw_shape(draw, 1, 2), draw.integer(2, 5)
    labels = Operand(TensorType(rows, "int32"), f"below:{classes}")
    return float_operands((*rows, classes))[0], labels


def _cross_entropy_example(draw: Draw) -> Example:
    return Example(_draw_scores_and_labels(draw), draw_attributes(draw, (_SMOOTHING,)))


def _one_hot_shape(labels: TensorType, classes: int, smoothing: float, dtype: str) -> TensorType:
    require(labels.dtype.startswith("int"), f"{_LABELS}, not {labels.dtype}")
    return TensorType((*labels.shape, classes), dtype)


def _one_hot_example(draw: Draw) -> Example:
    labels = _draw_scores_and_labels(draw)[1]
    return Example((labels,), {**draw_attributes(draw, _ONE_HOT_PARAMS), "dtype": "float64"})


def _squared_error_shape(x: TensorType, t: TensorType) -> TensorType:
    require(x.shape == t.shape, f"{dims(x.shape)} cannot be compared with {dims(t.shape)}")
    return TensorType(x.shape, common_dtype(x, t))


def _squared_error_vjp(b: Emitter, g: Node, x: Node, t: Node) -> Node:
    return b.mul(g, b.mul(constant_like(b, 2.0, x), b.sub(x, t)))


def _squared_error_example(draw: Draw) -> Example:
    shape = draw_shape(draw)
    return Example(float_operands(shape, shape))


def _top_hit(xp: Any, scores: Array, labels: Array, k: int) -> Array:
    label = labels[..., None]
    label_score = xp.take_along_axis(scores, label.astype("int64"), axis=-1)
    earlier = xp.arange(scores.shape[-1]) < label
    better = (scores > label_score) | ((scores == label_score) & earlier)
    no_nan_mask = (scores == scores).all(axis=-1)
    return ((better.sum(axis=-1) < k) & no_nan_mask).astype(scores.dtype)


def rank_classes(scores: Array) -> Array:
    """Returns the classes of each row of scores [N, classes] in the order in which `top_hit` ranks
    them. A row with a NaN has no ranking and is filled with -1."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.where(np.isnan(scores).any(axis=-1, keepdims=True), -1, order)


def predict_classes(scores: Array) -> Array:
    """Returns the first class of `rank_classes` for each row of scores [N, classes]."""
    return np.where(np.isnan(scores).any(axis=-1), -1, scores.argmax(axis=-1))


def _top_hit_example(draw: Draw) -> Example:
    scores, labels = _draw_scores_and_labels(draw)
    return Example(
        (replace(scores, distribution="ties"), labels), draw_attributes(draw, _TOP_HIT_PARAMS)
    )


def _top_hit_shape(scores: TensorType, labels: TensorType, k: int) -> TensorType:
    _check_labels(scores, labels)
    return TensorType(labels.shape, scores.dtype)


OPS = (
    Op(
        name="cross_entropy",
        kind="opaque",
        operands=("logits", "labels"),
        shape=_cross_entropy_shape,
        reference=_cross_entropy,
        draw_example=_cross_entropy_example,
        attrs=(_SMOOTHING,),
        vjp=(_cross_entropy_vjp, None),
        nondiff={"labels": _LABELS},
        flops_per_element=6,
        doc="-sum(target * log softmax(logits)) per sample; smoothing after Szegedy et al. 2016",
    ),
    Op(
        name="one_hot",
        kind="opaque",
        operands=("labels",),
        shape=_one_hot_shape,
        reference=_one_hot,
        draw_example=_one_hot_example,
        attrs=_ONE_HOT_PARAMS,
        nondiff={"labels": _LABELS},
        doc="1 at the label and 0 elsewhere, smoothed",
    ),
    Op(
        name="squared_error",
        kind="elementwise",
        operands=("x", "target"),
        shape=_squared_error_shape,
        reference=lambda xp, x, t: (x - t) * (x - t),
        draw_example=_squared_error_example,
        vjp=(
            lambda b, g, y, x, t: _squared_error_vjp(b, g, x, t),
            lambda b, g, y, x, t: b.neg(_squared_error_vjp(b, g, x, t)),
        ),
        flops_per_element=2,
        doc="(x - target) squared",
    ),
    Op(
        name="top_hit",
        kind="opaque",
        operands=("scores", "labels"),
        shape=_top_hit_shape,
        reference=_top_hit,
        draw_example=_top_hit_example,
        attrs=_TOP_HIT_PARAMS,
        nondiff={"scores": "a count is constant almost everywhere", "labels": _LABELS},
        doc="1 where fewer than k classes rank above the label: with a higher score, or with "
        "an equal one and a smaller index; 0 where a score of the row is NaN",
    ),
)
