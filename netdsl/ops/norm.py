"""Normalisation: moments over any axes, normalising by them, their gradients, and LRN."""

from __future__ import annotations

import math
from typing import Any

from netdsl.ops.attributes import AXES
from netdsl.ops.dtypes import widen
from netdsl.ops.example_values import draw_attributes
from netdsl.ops.op import (
    Draw,
    Example,
    Op,
    Operand,
    common_dtype,
    draw_shape,
    float_operands,
    require,
)
from netdsl.parameter_types import Float, Integer
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType, dims

Axes = tuple[int, ...]


def _remaining_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    return tuple(s for a, s in enumerate(shape) if a not in axes)


def _moments_shape(x: TensorType, axes: Axes) -> TensorType:
    is_valid = all(0 <= a < x.rank for a in axes) and len(set(axes)) == len(axes)
    require(is_valid, f"axes {axes} are not distinct axes of {dims(x.shape)}")
    return x.with_shape((2, *_remaining_shape(x.shape, axes)))


def _moments(xp: Any, x: Array, axes: Axes) -> Array:
    """Accumulates in float64: in the type of `x` the error would grow with the count."""
    wide = x.mean(axis=axes, dtype="float64"), x.var(axis=axes, dtype="float64")
    return xp.stack(wide).astype(x.dtype)


def _align_moment(m: Array, axes: Axes, rank: int) -> Array:
    """Reshapes a moment to broadcast with the tensor it was computed from."""
    sizes = iter(m.shape)
    return m.reshape(tuple(1 if a in axes else next(sizes) for a in range(rank)))


def _moments_grad(xp: Any, g: Array, x: Array, m: Array, axes: Axes) -> Array:
    count = math.prod(x.shape[a] for a in axes)
    mean, dmean, dvar = (_align_moment(v, axes, x.ndim) for v in (m[0], g[0], g[1]))
    return (dmean + 2 * (x - mean) * dvar) / count


def _moments_grad_shape(g: TensorType, x: TensorType, m: TensorType, axes: Axes) -> TensorType:
    require(g.shape == m.shape == _moments_shape(x, axes).shape, f"{g} are not moments of {x}")
    return x


def _normalize_shape(x: TensorType, m: TensorType, axes: Axes, eps: float) -> TensorType:
    require(m.shape == _moments_shape(x, axes).shape, f"{m} are not moments of {x}")
    return TensorType(x.shape, common_dtype(x, m))


def _normalize(xp: Any, x: Array, m: Array, axes: Axes, eps: float) -> Array:
    return _rescale(xp, x - _align_moment(m[0], axes, x.ndim), m, axes, eps)


def _rescale(xp: Any, g: Array, m: Array, axes: Axes, eps: float) -> Array:
    return g * _align_moment(1 / xp.sqrt(m[1] + eps), axes, g.ndim)


def _normalize_dmoments(xp: Any, g: Array, x: Array, m: Array, axes: Axes, eps: float) -> Array:
    rstd = 1 / xp.sqrt(m[1] + eps)
    total = g.sum(axis=axes, dtype="float64")
    centred = (g * (x - _align_moment(m[0], axes, x.ndim))).sum(axis=axes, dtype="float64")
    return xp.stack((-total * rstd, -0.5 * centred * rstd**3)).astype(m.dtype)


def _dmoments_shape(
    g: TensorType, x: TensorType, m: TensorType, axes: Axes, eps: float
) -> TensorType:
    require(g.shape == x.shape, f"{g} is not a gradient of {x}")
    require(m.shape == _moments_shape(x, axes).shape, f"{m} are not moments of {x}")
    return m


def _draw_shape_and_axes(draw: Draw) -> tuple[tuple[int, ...], Axes]:
    shape = (*draw_shape(draw, 0, 3), draw.integer(1, 4))
    first = draw.integer(0, len(shape) - 1)
    axes = {a for a in range(len(shape)) if draw.choice((True, False))} | {first}
    return shape, tuple(sorted(axes))


def _draw_normalize_operands(draw: Draw) -> tuple[tuple[Operand, ...], Axes]:
    shape, axes = _draw_shape_and_axes(draw)
    moments = float_operands((2, *_remaining_shape(shape, axes)), distribution="positive")
    return (*float_operands(shape), *moments), axes


def _moments_example(draw: Draw) -> Example:
    shape, axes = _draw_shape_and_axes(draw)
    return Example(float_operands(shape), {"axes": axes})


def _moments_grad_example(draw: Draw) -> Example:
    (x, m), axes = _draw_normalize_operands(draw)
    return Example((m, x, m), {"axes": axes})


def _normalize_example(draw: Draw) -> Example:
    operands, axes = _draw_normalize_operands(draw)
    return Example(operands, {"axes": axes, **draw_attributes(draw, _EPS_PARAMS)})


def _dmoments_example(draw: Draw) -> Example:
    (x, m), axes = _draw_normalize_operands(draw)
    return Example((x, x, m), {"axes": axes, **draw_attributes(draw, _EPS_PARAMS)})


def _window_sum(xp: Any, x: Array, size: int) -> Array:
    """Sums over a centred window of `size` channels, clipped at both ends."""
    half, channels = size // 2, x.shape[-1]
    wide = xp.zeros((*x.shape[:-1], channels + 2 * half), dtype=x.dtype)
    wide[..., half : half + channels] = x
    return sum(wide[..., i : i + channels] for i in range(size))


def _lrn(xp: Any, x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    wide = widen(x)
    result = wide * (k + alpha * _window_sum(xp, wide * wide, size)) ** -beta
    return result.astype(x.dtype, copy=False)


def _lrn_grad(xp: Any, g: Array, x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    g, wide = widen(g), widen(x)
    scale = k + alpha * _window_sum(xp, wide * wide, size)
    shared = _window_sum(xp, g * wide * scale ** (-beta - 1), size)
    result = g * scale**-beta - 2 * alpha * beta * wide * shared
    return result.astype(x.dtype, copy=False)


def _lrn_shape(x: TensorType, size: int, **_: Any) -> TensorType:
    require(size % 2 == 1, "local response normalisation needs an odd `size`, centred on a channel")
    return x


def _lrn_grad_shape(g: TensorType, x: TensorType, **_: Any) -> TensorType:
    require(g.shape == x.shape, f"{g} is not a gradient of {x}")
    return x


def _draw_lrn_attributes(draw: Draw) -> dict[str, Any]:
    """Restricts the ranges: with a negative `alpha` the base of the power may be negative; with a
    large `alpha` or `beta` the function is too steep around 0 for finite differences."""
    kind_overrides = {"alpha": Float(0, 10), "beta": Float(-4, 4)}
    return {
        **draw_attributes(draw, _LRN_PARAMS, **kind_overrides),
        "size": draw.choice((1, 3, 5, 7, 15)),
    }


def _lrn_example(draw: Draw) -> Example:
    return Example(
        float_operands((*draw_shape(draw, 1, 2), draw.integer(1, 7))), _draw_lrn_attributes(draw)
    )


def _lrn_grad_example(draw: Draw) -> Example:
    shape = (*draw_shape(draw, 1, 2), draw.integer(1, 7))
    return Example(float_operands(shape, shape), _draw_lrn_attributes(draw))


def _rescale_gradient(b: Emitter, g: Node, y: Node, m: Node) -> Node:
    return b.rescale(g, m, axes=y.attrs["axes"], eps=y.attrs["eps"])


_NO_SECOND_DERIVATIVE = "second derivatives of normalisation are not needed"
_AXES_PARAMS = (Param("axes", AXES),)
_EPS_PARAMS = (*_AXES_PARAMS, Param("eps", Float(above=0), 1e-5))
_LRN_PARAMS = (
    Param("size", Integer(1, 1024), 5, "number of neighbouring channels"),
    Param("alpha", Float(), 1e-4, "weight of the squares, not divided by `size`"),
    Param("beta", Float(), 0.75, "exponent"),
    Param("k", Float(above=0), 2.0, "constant"),
)

OPS = (
    Op(
        name="moments",
        kind="reduce",
        operands=("x",),
        shape=_moments_shape,
        reference=_moments,
        draw_example=_moments_example,
        attrs=_AXES_PARAMS,
        vjp=(lambda b, g, y, x: b.moments_grad(g, x, y, axes=y.attrs["axes"]),),
        flops_per_element=3,
        doc="mean and biased variance over axes, stacked: [2, kept axes]",
    ),
    Op(
        name="moments_grad",
        kind="elementwise",
        operands=("g", "x", "m"),
        shape=_moments_grad_shape,
        reference=_moments_grad,
        draw_example=_moments_grad_example,
        attrs=_AXES_PARAMS,
        nondiff={
            "g": _NO_SECOND_DERIVATIVE,
            "x": _NO_SECOND_DERIVATIVE,
            "m": _NO_SECOND_DERIVATIVE,
        },
        whole_operands=("g", "m"),
        flops_per_element=4,
        doc="moments' gradient: (g_mean + 2 (x - mean) g_var) / count",
    ),
    Op(
        name="normalize",
        kind="elementwise",
        operands=("x", "m"),
        shape=_normalize_shape,
        reference=_normalize,
        draw_example=_normalize_example,
        attrs=_EPS_PARAMS,
        vjp=(
            lambda b, g, y, x, m: _rescale_gradient(b, g, y, m),
            lambda b, g, y, x, m: b.normalize_dmoments(g, x, m, **y.attrs),
        ),
        whole_operands=("m",),
        flops_per_element=2,
        doc="(x - mean) / sqrt(variance + eps), Ioffe & Szegedy 2015",
    ),
    Op(
        name="rescale",
        kind="elementwise",
        operands=("g", "m"),
        shape=_normalize_shape,
        reference=_rescale,
        draw_example=_normalize_example,
        attrs=_EPS_PARAMS,
        vjp=(lambda b, ct, y, g, m: _rescale_gradient(b, ct, y, m), None),
        nondiff={"m": _NO_SECOND_DERIVATIVE},
        whole_operands=("m",),
        doc="g / sqrt(variance + eps), normalize's gradient for its tensor",
    ),
    Op(
        name="normalize_dmoments",
        kind="reduce",
        operands=("g", "x", "m"),
        shape=_dmoments_shape,
        reference=_normalize_dmoments,
        draw_example=_dmoments_example,
        attrs=_EPS_PARAMS,
        nondiff={
            "g": _NO_SECOND_DERIVATIVE,
            "x": _NO_SECOND_DERIVATIVE,
            "m": _NO_SECOND_DERIVATIVE,
        },
        whole_operands=("m",),
        flops_per_element=4,
        doc="normalize's gradient for the moments, both from one sweep over g and x",
    ),
    Op(
        name="lrn",
        kind="opaque",
        operands=("x",),
        shape=_lrn_shape,
        reference=_lrn,
        draw_example=_lrn_example,
        attrs=_LRN_PARAMS,
        vjp=(lambda b, g, y, x: b.lrn_grad(g, x, **y.attrs),),
        flops_per_element=10,
        is_layer=True,
        doc="local response normalisation across channels, Krizhevsky et al. 2012, 3.3",
        traits=frozenset(("low_precision",)),
    ),
    Op(
        name="lrn_grad",
        kind="opaque",
        operands=("g", "x"),
        shape=_lrn_grad_shape,
        reference=_lrn_grad,
        draw_example=_lrn_grad_example,
        attrs=_LRN_PARAMS,
        nondiff={"g": _NO_SECOND_DERIVATIVE, "x": _NO_SECOND_DERIVATIVE},
        flops_per_element=20,
        doc="lrn's gradient",
    ),
)
