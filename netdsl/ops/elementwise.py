"""Elementwise operators: arithmetic with broadcasting, functions, comparison, choice, casts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netdsl.ops.attributes import DTYPE
from netdsl.ops.draw import drawn
from netdsl.ops.dtypes import dtype_of
from netdsl.ops.op import (
    Draw,
    Example,
    Op,
    Operand,
    broadcast_shapes,
    floats,
    like,
    require,
    same_dtype,
    some_shape,
)
from netdsl.parameter_types import Float, ParameterType
from netdsl.signature import Param
from netdsl.types import FLOAT_DTYPES, ITEMSIZE, Array, Emitter, Node, TensorType


def _binary_shape(x: TensorType, z: TensorType) -> TensorType:
    dtype = same_dtype(x, z)
    return TensorType(broadcast_shapes(x.shape, z.shape), dtype)


def _compare_shape(x: TensorType, z: TensorType) -> TensorType:
    return TensorType(_binary_shape(x, z).shape, "bool")


def _unary_shape(x: TensorType, **_: Any) -> TensorType:
    require(x.dtype in FLOAT_DTYPES, f"a floating-point operand is needed, not {x.dtype}")
    return x


def _two(draw: Draw, values: str = "normal") -> Example:
    """Two shapes that broadcast: the second loses leading axes or has some of size 1."""
    full = some_shape(draw)
    kept = full[draw.whole(0, len(full)) :]
    thin = tuple(draw.pick((1, s)) for s in kept)
    pair = (full, thin) if draw.pick((True, False)) else (thin, full)
    return Example(floats(*pair, values=values))


def _one(draw: Draw) -> Example:
    return Example(floats(some_shape(draw)))


def _binary(name: str, reference: Any, vjp: Any, doc: str, values: str = "normal") -> Op:
    return Op(
        name=name,
        kind="elementwise",
        operands=("x", "z"),
        shape=_binary_shape,
        reference=reference,
        examples=lambda draw: _two(draw, values),
        vjp=vjp,
        doc=doc,
    )


def _compare(name: str, reference: Any, doc: str, bitwise: tuple[str, ...] = ()) -> Op:
    reason = "a comparison is constant almost everywhere"
    return Op(
        name=name,
        kind="elementwise",
        operands=("x", "z"),
        shape=_compare_shape,
        reference=reference,
        examples=_two,
        nondiff={"x": reason, "z": reason},
        bitwise=bitwise,
        doc=doc,
    )


def unary(
    name: str,
    reference: Any,
    vjp: Any,
    doc: str,
    attrs: tuple[Param, ...] = (),
    values: str = "normal",
    layer: bool = False,
    flops: int = 1,
    narrower: Mapping[str, ParameterType] | None = None,
) -> Op:
    """The record of an operator of one operand that keeps its shape; `narrower` as for `drawn`."""

    def examples(draw: Draw) -> Example:
        operands = floats(some_shape(draw), values=values)
        return Example(operands, drawn(draw, attrs, **narrower or {}))

    return Op(
        name=name,
        kind="elementwise",
        operands=("x",),
        shape=_unary_shape,
        reference=reference,
        examples=examples,
        attrs=attrs,
        vjp=(vjp,),
        layer=layer,
        flops_per_element=flops,
        doc=doc,
    )


def _power_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    p = y.attrs["exponent"]
    return b.mul(g, b.mul(like(b, p, x), b.power(x, exponent=p - 1)))


def _zero(b: Emitter, g: Node) -> Node:
    return like(b, 0.0, g)


def _select_shape(condition: TensorType, x: TensorType, z: TensorType) -> TensorType:
    require(condition.dtype == "bool", f"a condition must be bool, not {condition.dtype}")
    return TensorType(broadcast_shapes(condition.shape, x.shape, z.shape), same_dtype(x, z))


def _select_examples(draw: Draw) -> Example:
    x, z = _two(draw).operands
    shape = broadcast_shapes(x.type.shape, z.type.shape)
    return Example((Operand(TensorType(shape, "bool"), "bool"), x, z))


def _cast(xp: Any, x: Array, dtype: str) -> Array:
    return x.astype(dtype_of(dtype))


def _cast_shape(x: TensorType, dtype: str) -> TensorType:
    require(dtype in ITEMSIZE, f"no element type is called {dtype}")
    return TensorType(x.shape, dtype)


def _cast_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.cast(g, dtype=x.type.dtype)


OPS = (
    _binary(
        "add",
        lambda xp, x, z: x + z,
        (lambda b, g, y, x, z: g, lambda b, g, y, x, z: g),
        "x + z with broadcasting",
    ),
    _binary(
        "sub",
        lambda xp, x, z: x - z,
        (lambda b, g, y, x, z: g, lambda b, g, y, x, z: b.neg(g)),
        "x - z with broadcasting",
    ),
    _binary(
        "mul",
        lambda xp, x, z: x * z,
        (lambda b, g, y, x, z: b.mul(g, z), lambda b, g, y, x, z: b.mul(g, x)),
        "x * z with broadcasting",
    ),
    _binary(
        "div",
        lambda xp, x, z: x / z,
        (
            lambda b, g, y, x, z: b.div(g, z),
            lambda b, g, y, x, z: b.neg(b.mul(g, b.div(y, z))),
        ),
        "x / z with broadcasting",
        values="positive",
    ),
    _binary(
        "maximum",
        lambda xp, x, z: xp.maximum(x, z),
        (
            lambda b, g, y, x, z: b.select(b.greater(x, z), g, _zero(b, g)),
            lambda b, g, y, x, z: b.select(b.greater(x, z), _zero(b, g), g),
        ),
        "the larger of x and z; equal values pass the gradient to z",
    ),
    _binary(
        "minimum",
        lambda xp, x, z: xp.minimum(x, z),
        (
            lambda b, g, y, x, z: b.select(b.greater(z, x), g, _zero(b, g)),
            lambda b, g, y, x, z: b.select(b.greater(z, x), _zero(b, g), g),
        ),
        "the smaller of x and z; equal values pass the gradient to z",
    ),
    _compare("equal", lambda xp, x, z: x == z, "x == z, as bool", bitwise=("x", "z")),
    _compare("greater", lambda xp, x, z: x > z, "x > z, as bool"),
    Op(
        name="is_finite",
        kind="elementwise",
        operands=("x",),
        shape=lambda x: TensorType(_unary_shape(x).shape, "bool"),
        reference=lambda xp, x: xp.isfinite(x),
        examples=_one,
        nondiff={"x": "it is constant almost everywhere"},
        doc="whether x is neither an infinity nor NaN, as bool",
    ),
    unary("neg", lambda xp, x: -x, lambda b, g, y, x: b.neg(g), "-x"),
    unary("exp", lambda xp, x: xp.exp(x), lambda b, g, y, x: b.mul(g, y), "e to the x", flops=4),
    unary(
        "log",
        lambda xp, x: xp.log(x),
        lambda b, g, y, x: b.div(g, x),
        "natural logarithm",
        values="positive",
        flops=4,
    ),
    unary(
        "sqrt",
        lambda xp, x: xp.sqrt(x),
        lambda b, g, y, x: b.mul(g, b.div(like(b, 0.5, x), y)),
        "square root",
        values="positive",
        flops=4,
    ),
    unary(
        "power",
        lambda xp, x, exponent: x**exponent,
        _power_vjp,
        "x to a constant power",
        attrs=(Param("exponent", Float(), 2.0),),
        values="positive",
        flops=8,
        # values up to 2 to a higher power are steeper than the steps of differences are small
        narrower={"exponent": Float(-8, 8)},
    ),
    Op(
        name="select",
        kind="elementwise",
        operands=("condition", "x", "z"),
        shape=_select_shape,
        reference=lambda xp, condition, x, z: xp.where(condition, x, z),
        examples=_select_examples,
        vjp=(
            None,
            lambda b, g, y, c, x, z: b.select(c, g, _zero(b, g)),
            lambda b, g, y, c, x, z: b.select(c, _zero(b, g), g),
        ),
        nondiff={"condition": "a condition is no number"},
        doc="x where the condition holds, else z",
    ),
    Op(
        name="copy",
        kind="elementwise",
        operands=("x",),
        shape=lambda x: x,
        reference=lambda xp, x: x.copy(),
        examples=_one,
        vjp=(lambda b, g, y, x: g,),
        flops_per_element=0,
        doc="x in memory of its own",
    ),
    Op(
        name="cast",
        kind="elementwise",
        operands=("x",),
        shape=_cast_shape,
        reference=_cast,
        examples=lambda draw: Example(floats(some_shape(draw)), {"dtype": "float64"}),
        attrs=(Param("dtype", DTYPE),),
        vjp=(_cast_vjp,),
        doc="the same numbers as another element type",
    ),
)
