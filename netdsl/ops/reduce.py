"""Reductions over axes, and softmax over the last one."""

from __future__ import annotations

import math
from typing import Any

from netdsl.ops.attributes import AXES
from netdsl.ops.example_values import draw_attributes
from netdsl.ops.op import Draw, Example, Op, constant_like, draw_shape, float_operands, require
from netdsl.parameter_types import Boolean
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType

_AXES_PARAMS = (Param("axes", AXES), Param("keepdims", Boolean(), False))


def _reduced_type(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    is_valid = all(0 <= a < x.rank for a in axes) and len(set(axes)) == len(axes)
    require(is_valid, f"axes {axes} are not distinct axes of a tensor of rank {x.rank}")
    sizes = (s if a not in axes else 1 for a, s in enumerate(x.shape) if keepdims or a not in axes)
    return x.with_shape(sizes)


def _broadcast_reduced(b: Emitter, value: Node, y: Node, x: Node) -> Node:
    """Broadcasts a reduced value along the reduced axes."""
    if value.type.rank and not y.attrs["keepdims"]:
        axes = y.attrs["axes"]
        value = b.reshape(
            value, shape=tuple(1 if a in axes else s for a, s in enumerate(x.type.shape))
        )
    return b.broadcast(value, shape=x.type.shape)


def _mean_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    count = math.prod(x.type.shape[a] for a in y.attrs["axes"])
    return _broadcast_reduced(b, b.mul(g, constant_like(b, 1 / count, x)), y, x)


def _max_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    hit = b.cast(b.equal(x, _broadcast_reduced(b, y, y, x)), dtype=x.type.dtype)
    share = b.div(g, b.reduce_sum(hit, axes=y.attrs["axes"], keepdims=y.attrs["keepdims"]))
    return b.mul(hit, _broadcast_reduced(b, share, y, x))


def _axes_example(draw: Draw) -> Example:
    shape = draw_shape(draw)
    axes = tuple(a for a in range(len(shape)) if draw.choice((True, False)))
    return Example(
        float_operands(shape, distribution="distinct"),
        {"axes": axes, **draw_attributes(draw, _AXES_PARAMS)},
    )


def _row_shape(x: TensorType) -> TensorType:
    require(x.rank >= 1, "softmax needs at least one axis")
    return x


def _log_softmax(xp: Any, x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


def _softmax(xp: Any, x: Array) -> Array:
    powers = xp.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _row_sum(b: Emitter, x: Node) -> Node:
    return b.reduce_sum(x, axes=(x.type.rank - 1,), keepdims=True)


def _softmax_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.mul(y, b.sub(g, _row_sum(b, b.mul(g, y))))


def _log_softmax_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.sub(g, b.mul(b.softmax(x), _row_sum(b, g)))


def _reduce_in_float64(method: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """Sum or mean in float64: in the type of `x` the error would grow with the count."""
    total = getattr(x, method)(axis=axes, keepdims=keepdims, dtype="float64")
    return total.astype(x.dtype)


def _reduction_op(
    name: str, reference: Any, vjp: Any, doc: str, bitwise_operands: tuple[str, ...] = ()
) -> Op:
    return Op(
        name=name,
        kind="reduce",
        operands=("x",),
        shape=_reduced_type,
        reference=reference,
        draw_example=_axes_example,
        attrs=_AXES_PARAMS,
        vjp=(vjp,),
        bitwise_operands=bitwise_operands,
        doc=doc,
    )


def _row_op(name: str, reference: Any, vjp: Any, doc: str) -> Op:
    return Op(
        name=name,
        kind="opaque",
        operands=("x",),
        shape=_row_shape,
        reference=reference,
        draw_example=lambda draw: Example(
            float_operands((*draw_shape(draw, 0, 2), draw.integer(2, 5)))
        ),
        vjp=(vjp,),
        flops_per_element=5,
        is_layer=True,
        doc=doc,
    )


OPS = (
    _reduction_op(
        "reduce_sum",
        lambda xp, x, axes, keepdims: _reduce_in_float64("sum", x, axes, keepdims),
        lambda b, g, y, x: _broadcast_reduced(b, g, y, x),
        "sum over axes",
    ),
    _reduction_op(
        "reduce_mean",
        lambda xp, x, axes, keepdims: _reduce_in_float64("mean", x, axes, keepdims),
        _mean_vjp,
        "mean over axes",
    ),
    _reduction_op(
        "reduce_max",
        lambda xp, x, axes, keepdims: x.max(axis=axes, keepdims=keepdims),
        _max_vjp,
        "maximum over axes; equal maxima share the gradient",
        bitwise_operands=("x",),  # the gradient searches x for the maximum
    ),
    _row_op("softmax", _softmax, _softmax_vjp, "e^x over its sum, along the last axis"),
    _row_op("log_softmax", _log_softmax, _log_softmax_vjp, "logarithm of softmax, computed stably"),
)
