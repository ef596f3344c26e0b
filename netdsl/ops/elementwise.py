"""Elementwise operators: arithmetic with broadcasting, functions, comparison, select, casts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from netdsl.ops.attributes import DTYPE
from netdsl.ops.dtypes import dtype_of
from netdsl.ops.example_values import draw_attributes
from netdsl.ops.op import (
    Draw,
    Example,
    Op,
    Operand,
    Trait,
    broadcast_shapes,
    common_dtype,
    constant_like,
    draw_shape,
    float_operands,
    require,
)
from netdsl.ops.special import erf
from netdsl.parameter_types import Float, ParameterType
from netdsl.signature import Param
from netdsl.types import FLOAT_DTYPES, ITEMSIZE, Array, Emitter, Node, TensorType


def _binary_shape(x: TensorType, z: TensorType) -> TensorType:
    dtype = common_dtype(x, z)
    return TensorType(broadcast_shapes(x.shape, z.shape), dtype)


def _compare_shape(x: TensorType, z: TensorType) -> TensorType:
    return TensorType(_binary_shape(x, z).shape, "bool")


def unary_shape(x: TensorType, **_: Any) -> TensorType:
    """The shape rule of an operator that keeps the type of its floating-point operand."""
    require(x.dtype in FLOAT_DTYPES, f"a floating-point operand is needed, not {x.dtype}")
    return x


def _draw_two_operands(draw: Draw, distribution: str = "normal") -> Example:
    """Draws two shapes that broadcast: one lacks leading axes or has some of size 1."""
    full = draw_shape(draw)
    trailing = full[draw.integer(0, len(full)) :]
    broadcastable = tuple(draw.choice((1, s)) for s in trailing)
    pair = (full, broadcastable) if draw.choice((True, False)) else (broadcastable, full)
    return Example(float_operands(*pair, distribution=distribution))


def _draw_one_operand(draw: Draw) -> Example:
    return Example(float_operands(draw_shape(draw)))


def _binary_op(
    name: str,
    reference: Any,
    vjp: Any,
    doc: str,
    distribution: str = "normal",
    traits: tuple[Trait, ...] = ("epilogue",),
) -> Op:
    return Op(
        name=name,
        kind="elementwise",
        operands=("x", "z"),
        shape=_binary_shape,
        reference=reference,
        draw_example=lambda draw: _draw_two_operands(draw, distribution),
        vjp=vjp,
        traits=frozenset(("broadcasting", "constant_folding", *traits)),
        doc=doc,
    )


def _comparison_op(
    name: str,
    reference: Any,
    doc: str,
    bitwise_operands: tuple[str, ...] = (),
    traits: tuple[Trait, ...] = (),
) -> Op:
    reason = "a comparison is constant almost everywhere"
    return Op(
        name=name,
        kind="elementwise",
        operands=("x", "z"),
        shape=_compare_shape,
        reference=reference,
        draw_example=_draw_two_operands,
        nondiff={"x": reason, "z": reason},
        bitwise_operands=bitwise_operands,
        traits=frozenset(("broadcasting", *traits)),
        doc=doc,
    )


def unary_op(
    name: str,
    reference: Any,
    vjp: Any,
    doc: str,
    attrs: tuple[Param, ...] = (),
    distribution: str = "normal",
    is_layer: bool = False,
    flops: int = 1,
    traits: tuple[Trait, ...] = (),
    kind_overrides: Mapping[str, ParameterType] | None = None,
) -> Op:
    """Defines an operator of one operand that keeps its shape; `kind_overrides` as for
    `draw_attributes`."""

    def draw_example(draw: Draw) -> Example:
        operands = float_operands(draw_shape(draw), distribution=distribution)
        return Example(operands, draw_attributes(draw, attrs, **kind_overrides or {}))

    return Op(
        name=name,
        kind="elementwise",
        operands=("x",),
        shape=unary_shape,
        reference=reference,
        draw_example=draw_example,
        attrs=attrs,
        vjp=(vjp,),
        is_layer=is_layer,
        traits=frozenset(traits),
        flops_per_element=flops,
        doc=doc,
    )


def _power_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    p = y.attrs["exponent"]
    return b.mul(g, b.mul(constant_like(b, p, x), b.power(x, exponent=p - 1)))


def _erf_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    """2 e^(-x^2) / sqrt(pi)."""
    bell = b.exp(b.neg(b.mul(x, x)))
    return b.mul(g, b.mul(constant_like(b, 2 / math.sqrt(math.pi), x), bell))


def _zero_like(b: Emitter, g: Node) -> Node:
    return constant_like(b, 0.0, g)


def _select_shape(condition: TensorType, x: TensorType, z: TensorType) -> TensorType:
    require(condition.dtype == "bool", f"a condition must be bool, not {condition.dtype}")
    return TensorType(broadcast_shapes(condition.shape, x.shape, z.shape), common_dtype(x, z))


def _select_example(draw: Draw) -> Example:
    x, z = _draw_two_operands(draw).operands
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
    _binary_op(
        "add",
        lambda xp, x, z: x + z,
        (lambda b, g, y, x, z: g, lambda b, g, y, x, z: g),
        "x + z with broadcasting",
    ),
    _binary_op(
        "sub",
        lambda xp, x, z: x - z,
        (lambda b, g, y, x, z: g, lambda b, g, y, x, z: b.neg(g)),
        "x - z with broadcasting",
    ),
    _binary_op(
        "mul",
        lambda xp, x, z: x * z,
        (lambda b, g, y, x, z: b.mul(g, z), lambda b, g, y, x, z: b.mul(g, x)),
        "x * z with broadcasting",
    ),
    _binary_op(
        "div",
        lambda xp, x, z: x / z,
        (
            lambda b, g, y, x, z: b.div(g, z),
            lambda b, g, y, x, z: b.neg(b.mul(g, b.div(y, z))),
        ),
        "x / z with broadcasting",
        distribution="positive",
    ),
    _binary_op(
        "maximum",
        lambda xp, x, z: xp.maximum(x, z),
        (
            lambda b, g, y, x, z: b.select(b.greater(x, z), g, _zero_like(b, g)),
            lambda b, g, y, x, z: b.select(b.greater(x, z), _zero_like(b, g), g),
        ),
        "the larger of x and z; equal values pass the gradient to z",
    ),
    _binary_op(
        "minimum",
        lambda xp, x, z: xp.minimum(x, z),
        (
            lambda b, g, y, x, z: b.select(b.greater(z, x), g, _zero_like(b, g)),
            lambda b, g, y, x, z: b.select(b.greater(z, x), _zero_like(b, g), g),
        ),
        "the smaller of x and z; equal values pass the gradient to z",
    ),
    _comparison_op(
        "equal",
        lambda xp, x, z: x == z,
        "x == z, as bool",
        bitwise_operands=("x", "z"),
    ),
    _comparison_op(
        "greater",
        lambda xp, x, z: x > z,
        "x > z, as bool",
        traits=("epilogue",),
    ),
    Op(
        name="is_finite",
        kind="elementwise",
        operands=("x",),
        shape=lambda x: TensorType(unary_shape(x).shape, "bool"),
        reference=lambda xp, x: xp.isfinite(x),
        draw_example=_draw_one_operand,
        nondiff={"x": "it is constant almost everywhere"},
        doc="whether x is neither an infinity nor NaN, as bool",
    ),
    unary_op(
        "neg",
        lambda xp, x: -x,
        lambda b, g, y, x: b.neg(g),
        "-x",
        traits=("epilogue", "constant_folding"),
    ),
    unary_op(
        "exp",
        lambda xp, x: xp.exp(x),
        lambda b, g, y, x: b.mul(g, y),
        "e to the x",
        flops=4,
        traits=("epilogue", "constant_folding"),
    ),
    unary_op(
        "log",
        lambda xp, x: xp.log(x),
        lambda b, g, y, x: b.div(g, x),
        "natural logarithm",
        distribution="positive",
        flops=4,
        traits=("constant_folding",),
    ),
    unary_op(
        "sqrt",
        lambda xp, x: xp.sqrt(x),
        lambda b, g, y, x: b.mul(g, b.div(constant_like(b, 0.5, x), y)),
        "square root",
        distribution="positive",
        flops=4,
        traits=("constant_folding",),
    ),
    unary_op(
        "erf", erf, _erf_vjp, "error function", flops=4, traits=("epilogue", "constant_folding")
    ),
    unary_op(
        "power",
        lambda xp, x, exponent: x**exponent,
        _power_vjp,
        "x to a constant power",
        attrs=(Param("exponent", Float(), 2.0),),
        distribution="positive",
        flops=8,
        # values up to 2 are too steep for finite differences at higher powers
        kind_overrides={"exponent": Float(-8, 8)},
        traits=("constant_folding",),
    ),
    Op(
        name="select",
        kind="elementwise",
        operands=("condition", "x", "z"),
        shape=_select_shape,
        reference=lambda xp, condition, x, z: xp.where(condition, x, z),
        draw_example=_select_example,
        vjp=(
            None,
            lambda b, g, y, c, x, z: b.select(c, g, _zero_like(b, g)),
            lambda b, g, y, c, x, z: b.select(c, _zero_like(b, g), g),
        ),
        nondiff={"condition": "a condition is not a number"},
        doc="x where the condition is true, else z",
        traits=frozenset(("epilogue", "broadcasting")),
    ),
    Op(
        name="copy",
        kind="elementwise",
        operands=("x",),
        shape=lambda x: x,
        reference=lambda xp, x: x.copy(),
        draw_example=_draw_one_operand,
        vjp=(lambda b, g, y, x: g,),
        flops_per_element=0,
        doc="x copied to its own memory",
    ),
    Op(
        name="cast",
        kind="elementwise",
        operands=("x",),
        shape=_cast_shape,
        reference=_cast,
        draw_example=lambda draw: Example(float_operands(draw_shape(draw)), {"dtype": "float64"}),
        attrs=(Param("dtype", DTYPE),),
        vjp=(_cast_vjp,),
        doc="the same numbers as another element type",
        traits=frozenset(("epilogue", "constant_folding")),
    ),
)
