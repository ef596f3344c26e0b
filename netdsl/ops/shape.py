"""Operators that move values without changing them: views, concatenation, slicing, padding."""

from __future__ import annotations

import math
from typing import Any

from netdsl.ops.attributes import AXES, COUNTS, SHAPE
from netdsl.ops.example_values import draw_attributes
from netdsl.ops.op import (
    Draw,
    Example,
    Op,
    broadcast_shapes,
    common_dtype,
    draw_shape,
    float_operands,
    require,
)
from netdsl.parameter_types import Float, Integer
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType, dims

Ints = tuple[int, ...]


def _reshape_shape(x: TensorType, shape: Ints) -> TensorType:
    fits = math.prod(shape) == x.size
    require(fits, f"{dims(x.shape)} has {x.size} values, {dims(shape)} has {math.prod(shape)}")
    return x.with_shape(shape)


def _reshape_example(draw: Draw) -> Example:
    rows, columns, depth = (draw.integer(1, 4) for _ in range(3))
    shape = draw.choice(
        ((rows * columns, depth), (depth, rows, columns), (rows * columns * depth,))
    )
    return Example(float_operands((rows, columns, depth)), {"shape": shape})


def _transpose_shape(x: TensorType, perm: Ints) -> TensorType:
    require(sorted(perm) == list(range(x.rank)), f"{perm} does not permute {x.rank} axes")
    return x.with_shape(x.shape[p] for p in perm)


def _invert_permutation(perm: Ints) -> Ints:
    return tuple(perm.index(a) for a in range(len(perm)))


def _broadcast_shape(x: TensorType, shape: Ints) -> TensorType:
    require(broadcast_shapes(x.shape, shape) == shape, f"{x} cannot be broadcast to {dims(shape)}")
    return x.with_shape(shape)


def _broadcast_example(draw: Draw) -> Example:
    shape = draw_shape(draw)
    trailing = shape[draw.integer(0, len(shape)) :]
    return Example(float_operands(tuple(draw.choice((1, s)) for s in trailing)), {"shape": shape})


def _concat_shape(*xs: TensorType, axis: int) -> TensorType:
    require(len(xs) > 0, "nothing to concatenate")
    first = xs[0]
    require(0 <= axis < first.rank, f"axis {axis} is outside a tensor of rank {first.rank}")

    def other_axes(t: TensorType) -> Ints:
        return t.shape[:axis] + t.shape[axis + 1 :]

    for t in xs:
        require(
            t.rank == first.rank and other_axes(t) == other_axes(first),
            f"cannot join {dims(first.shape)} and {dims(t.shape)} along axis {axis}",
        )
    total = sum(t.shape[axis] for t in xs)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    return TensorType(shape, common_dtype(*xs))


def _concat_vjp(b: Emitter, g: Node, y: Node, *xs: Node, operand: int) -> Node:
    axis = y.attrs["axis"]
    start = sum(x.type.shape[axis] for x in xs[:operand])
    low = tuple(start if a == axis else 0 for a in range(y.type.rank))
    high = tuple(a + s for a, s in zip(low, xs[operand].type.shape, strict=True))
    return b.slice(g, start=low, stop=high, step=(1,) * y.type.rank)


def _concat_example(draw: Draw) -> Example:
    shape = draw_shape(draw)
    axis = draw.integer(0, len(shape) - 1)
    parts = [
        (*shape[:axis], draw.integer(1, 3), *shape[axis + 1 :]) for _ in range(draw.integer(1, 3))
    ]
    return Example(float_operands(*parts), {"axis": axis})


def _slice_shape(x: TensorType, start: Ints, stop: Ints, step: Ints) -> TensorType:
    require(len(start) == len(stop) == len(step) == x.rank, f"a slice of {x} needs {x.rank} ranges")
    for a, b, s, size in zip(start, stop, step, x.shape, strict=True):
        require(0 <= a < b <= size and s >= 1, f"slice {a}:{b}:{s} is outside an axis of {size}")
    counts = ((b - a + s - 1) // s for a, b, s in zip(start, stop, step, strict=True))
    return x.with_shape(counts)


def _slice(xp: Any, x: Array, start: Ints, stop: Ints, step: Ints) -> Array:
    return x[tuple(slice(a, b, s) for a, b, s in zip(start, stop, step, strict=True))]


def _slice_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    """Pads the gradient back to the operand's shape: `step - 1` zeros between, the rest around."""
    low, step = y.attrs["start"], y.attrs["step"]
    high = tuple(
        size - a - ((n - 1) * s + 1)
        for size, a, n, s in zip(x.type.shape, low, y.type.shape, step, strict=True)
    )
    return b.pad(g, low=low, high=high, interior=tuple(s - 1 for s in step), value=0.0)


def _slice_example(draw: Draw) -> Example:
    shape = draw_shape(draw, side=5)
    start = tuple(draw.integer(0, s - 1) for s in shape)
    stop = tuple(draw.integer(a + 1, s) for a, s in zip(start, shape, strict=True))
    step = tuple(draw.integer(1, 3) for _ in shape)
    return Example(float_operands(shape), {"start": start, "stop": stop, "step": step})


def _pad_shape(x: TensorType, low: Ints, high: Ints, interior: Ints, value: float) -> TensorType:
    require(
        len(low) == len(high) == len(interior) == x.rank, f"padding of {x} needs {x.rank} pairs"
    )
    require(min((*low, *high, *interior), default=0) >= 0, "padding cannot be negative")
    return x.with_shape(
        a + (s - 1) * (i + 1) + 1 + b
        for s, a, b, i in zip(x.shape, low, high, interior, strict=True)
    )


def _pad_index(shape: Ints, low: Ints, interior: Ints) -> tuple[slice, ...]:
    return tuple(
        slice(a, a + (s - 1) * (i + 1) + 1, i + 1)
        for s, a, i in zip(shape, low, interior, strict=True)
    )


def _pad(xp: Any, x: Array, low: Ints, high: Ints, interior: Ints, value: float) -> Array:
    shape = [
        a + (s - 1) * (i + 1) + 1 + b
        for s, a, b, i in zip(x.shape, low, high, interior, strict=True)
    ]
    out = xp.full(shape, value, dtype=x.dtype)
    out[_pad_index(x.shape, low, interior)] = x
    return out


def _pad_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    index = _pad_index(x.type.shape, y.attrs["low"], y.attrs["interior"])
    start, stop, step = zip(*((i.start, i.stop, i.step) for i in index), strict=True)
    return b.slice(g, start=start, stop=stop, step=step)


def _pad_example(draw: Draw) -> Example:
    shape = draw_shape(draw, side=3)

    def amounts() -> Ints:
        return tuple(draw.integer(0, 2) for _ in shape)

    sides = {"low": amounts(), "high": amounts(), "interior": amounts()}
    return Example(float_operands(shape), {**sides, **draw_attributes(draw, _PAD_PARAMS)})


def _transpose_example(draw: Draw) -> Example:
    shape = draw_shape(draw)
    left = list(range(len(shape)))
    perm = tuple(left.pop(draw.integer(0, len(left) - 1)) for _ in shape)
    return Example(float_operands(shape), {"perm": perm})


_PAD_PARAMS = (
    *(Param(side, COUNTS) for side in ("low", "high", "interior")),
    Param("value", Float(), 0.0),
)

OPS = (
    Op(
        name="reshape",
        kind="view",
        operands=("x",),
        shape=_reshape_shape,
        reference=lambda xp, x, shape: x.reshape(shape),
        draw_example=_reshape_example,
        attrs=(Param("shape", SHAPE),),
        vjp=(lambda b, g, y, x: b.reshape(g, shape=x.type.shape),),
        doc="the same values in row-major order under another shape",
    ),
    Op(
        name="transpose",
        kind="view",
        operands=("x",),
        shape=_transpose_shape,
        reference=lambda xp, x, perm: x.transpose(perm),
        draw_example=_transpose_example,
        attrs=(Param("perm", AXES),),
        vjp=(lambda b, g, y, x: b.transpose(g, perm=_invert_permutation(y.attrs["perm"])),),
        doc="axes in another order",
    ),
    Op(
        name="broadcast",
        kind="view",
        operands=("x",),
        shape=_broadcast_shape,
        reference=lambda xp, x, shape: xp.broadcast_to(x, shape),
        draw_example=_broadcast_example,
        attrs=(Param("shape", SHAPE),),
        vjp=(lambda b, g, y, x: g,),
        doc="values repeated along new axes and axes of size 1",
    ),
    Op(
        name="concat",
        kind="opaque",
        operands=("xs",),
        is_variadic=True,
        shape=_concat_shape,
        reference=lambda xp, *xs, axis: xp.concatenate(xs, axis=axis),
        draw_example=_concat_example,
        attrs=(Param("axis", Integer(0, 64)),),
        vjp=(_concat_vjp,),
        flops_per_element=0,
        doc="tensors joined along an axis",
        traits=frozenset(("low_precision",)),
    ),
    Op(
        name="slice",
        kind="view",
        operands=("x",),
        shape=_slice_shape,
        reference=_slice,
        draw_example=_slice_example,
        attrs=(Param("start", COUNTS), Param("stop", COUNTS), Param("step", COUNTS)),
        vjp=(_slice_vjp,),
        doc="a strided box of a tensor",
    ),
    Op(
        name="pad",
        kind="elementwise",
        operands=("x",),
        shape=_pad_shape,
        reference=_pad,
        draw_example=_pad_example,
        attrs=_PAD_PARAMS,
        vjp=(_pad_vjp,),
        flops_per_element=0,
        whole_operands=("x",),
        doc="a constant around a tensor and between its values",
        traits=frozenset(("low_precision",)),
    ),
)
