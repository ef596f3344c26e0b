"""Matrix products: for fully connected layers, 1x1 convolutions and all their gradients."""

from __future__ import annotations

import math
from typing import Any

from netdsl.ops.dtypes import widen
from netdsl.ops.op import Draw, Example, Op, common_dtype, draw_shape, float_operands, require
from netdsl.types import ITEMSIZE, Array, Emitter, Node, TensorType, dims


def _batch_shape(w: tuple[int, ...]) -> tuple[int, ...]:
    return w[:-2]


def _matmul_shape(x: TensorType, w: TensorType) -> TensorType:
    require(w.rank >= 2 and x.rank >= w.rank - 1, f"no matrix product of {x} and {w}")
    batch = _batch_shape(w.shape)
    fits = x.shape[-1] == w.shape[-1] and x.shape[: len(batch)] == batch
    require(fits, f"no matrix product of {dims(x.shape)} and {dims(w.shape)}")
    return TensorType((*x.shape[:-1], w.shape[-2]), common_dtype(x, w))


def _matmul(xp: Any, x: Array, w: Array) -> Array:
    batch = _batch_shape(w.shape)
    rows = widen(x).reshape(*batch, -1, x.shape[-1])
    y = xp.matmul(rows, widen(w).swapaxes(-1, -2))
    return y.reshape(*x.shape[:-1], w.shape[-2]).astype(x.dtype, copy=False)


def _transpose_matrix(b: Emitter, x: Node) -> Node:
    rank = x.type.rank
    return b.transpose(x, perm=(*range(rank - 2), rank - 1, rank - 2))


def _flatten_rows(b: Emitter, x: Node, batch: tuple[int, ...]) -> Node:
    """Flattens the axes between the batch axes and the last axis."""
    count = math.prod(x.type.shape[len(batch) : -1])
    return b.reshape(x, shape=(*batch, count, x.type.shape[-1]))


def _matmul_dw(b: Emitter, g: Node, y: Node, x: Node, w: Node) -> Node:
    batch = _batch_shape(w.type.shape)
    return b.matmul(
        _transpose_matrix(b, _flatten_rows(b, g, batch)),
        _transpose_matrix(b, _flatten_rows(b, x, batch)),
    )


def _matmul_example(draw: Draw) -> Example:
    batch = draw_shape(draw, 0, 2, 3)
    rows = draw_shape(draw, 0, 2, 3)
    inner, outer = draw.integer(1, 4), draw.integer(1, 4)
    return Example(float_operands((*batch, *rows, inner), (*batch, outer, inner)))


def _gram_shape(x: TensorType) -> TensorType:
    require(x.rank > 1, f"{dims(x.shape)} has no rows to multiply")
    c = x.shape[-1]
    return TensorType((c, c), "float32" if ITEMSIZE[x.dtype] == 2 else x.dtype)


def _gram(xp: Any, x: Array) -> Array:
    rows = widen(x).reshape(-1, x.shape[-1])
    return xp.matmul(rows.swapaxes(0, 1), rows)


def _gram_dx(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    symmetric = b.add(g, _transpose_matrix(b, g))
    symmetric_cast = (
        symmetric if symmetric.type.dtype == x.type.dtype else b.cast(symmetric, dtype=x.type.dtype)
    )
    return b.matmul(x, symmetric_cast)


def _gram_example(draw: Draw) -> Example:
    return Example(float_operands((*draw_shape(draw, 1, 2, 3), draw.integer(1, 4))))


OPS = (
    Op(
        name="gram",
        kind="anchor",
        operands=("x",),
        shape=_gram_shape,
        reference=_gram,
        draw_example=_gram_example,
        vjp=(_gram_dx,),
        macs=lambda out, x: x.size * x.shape[-1],
        doc="x'x over all axes but the last, which gives both of the result's; summed and returned "
        "in 32 bits if x has 16",
    ),
    Op(
        name="matmul",
        kind="anchor",
        operands=("x", "w"),
        shape=_matmul_shape,
        reference=_matmul,
        draw_example=_matmul_example,
        vjp=(lambda b, g, y, x, w: b.matmul(g, _transpose_matrix(b, w)), _matmul_dw),
        macs=lambda out, x, w: out.size * x.shape[-1],
        doc="x contracted over its last axis with w of shape [..., out, in]; leading axes of w "
        "are batch axes that x shares",
        traits=frozenset(("takes_epilogue",)),
    ),
)
