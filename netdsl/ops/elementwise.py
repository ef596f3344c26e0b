"""Elementwise operators: arithmetic with broadcasting, activations, comparison, choice, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from netdsl.kinds import Choice, Number
from netdsl.ops.op import (
    Draw,
    Example,
    Op,
    Operand,
    broadcast_shapes,
    floats,
    require,
    same_dtype,
    some_shape,
)
from netdsl.signature import Param
from netdsl.types import FLOATS, ITEMSIZE, Array, Node, TensorType


def _binary_shape(x: TensorType, z: TensorType) -> TensorType:
    dtype = same_dtype(x, z)
    return TensorType(broadcast_shapes(x.shape, z.shape), dtype)


def _compare_shape(x: TensorType, z: TensorType) -> TensorType:
    return TensorType(_binary_shape(x, z).shape, "bool")


def _unary_shape(x: TensorType, **_: Any) -> TensorType:
    require(x.dtype in FLOATS, f"a floating-point operand is needed, not {x.dtype}")
    return x


def _two(draw: Draw, values: str = "normal") -> Example:
    """Two shapes that broadcast: the second loses leading axes or has some of size 1."""
    full = some_shape(draw)
    kept = full[draw.whole(0, len(full)) :]
    thin = tuple(draw.pick((1, s)) for s in kept)
    pair = (full, thin) if draw.pick((True, False)) else (thin, full)
    return Example(floats(*pair, values=values))


def _one(values: str = "normal") -> Callable[[Draw], Example]:
    return lambda draw: Example(floats(some_shape(draw), values=values))


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


def _compare(name: str, reference: Any, doc: str) -> Op:
    reason = "a comparison is constant almost everywhere"
    return Op(
        name=name,
        kind="elementwise",
        operands=("x", "z"),
        shape=_compare_shape,
        reference=reference,
        examples=_two,
        nondiff={"x": reason, "z": reason},
        doc=doc,
    )


def _unary(
    name: str,
    reference: Any,
    vjp: Any,
    doc: str,
    attrs: tuple[Param, ...] = (),
    values: str = "normal",
    layer: bool = False,
    flops: int = 1,
) -> Op:
    return Op(
        name=name,
        kind="elementwise",
        operands=("x",),
        shape=_unary_shape,
        reference=reference,
        examples=_one(values),
        attrs=attrs,
        vjp=(vjp,),
        layer=layer,
        flops_per_element=flops,
        doc=doc,
    )


def _sigmoid(xp: Any, x: Array) -> Array:
    return 0.5 * (xp.tanh(0.5 * x) + 1)


def _elu(xp: Any, x: Array, alpha: float) -> Array:
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


_GELU_SCALE = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def _gelu(xp: Any, x: Array) -> Array:
    return 0.5 * x * (1 + xp.tanh(_GELU_SCALE * (x + _GELU_CUBIC * x * x * x)))


def _gelu_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    square = b.mul(x, x)
    inner = b.mul(x, b.add(b.mul(square, b.const(_GELU_SCALE * _GELU_CUBIC)), b.const(_GELU_SCALE)))
    slope = b.add(b.mul(square, b.const(3 * _GELU_SCALE * _GELU_CUBIC)), b.const(_GELU_SCALE))
    t = b.tanh(inner)
    falling = b.mul(b.mul(x, slope), b.sub(b.const(1.0), b.mul(t, t)))
    return b.mul(g, b.mul(b.const(0.5), b.add(b.add(b.const(1.0), t), falling)))


def _relu_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    return b.select(b.greater(y, b.const(0.0)), g, b.const(0.0))


def _leaky_relu_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    return b.select(b.greater(x, b.const(0.0)), g, b.mul(g, b.const(y.attrs["slope"])))


def _clamp_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    inside = b.select(b.greater(b.const(y.attrs["high"]), x), g, b.const(0.0))
    return b.select(b.greater(x, b.const(y.attrs["low"])), inside, b.const(0.0))


def _elu_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    falling = b.mul(g, b.add(y, b.const(y.attrs["alpha"])))
    return b.select(b.greater(x, b.const(0.0)), g, falling)


def _power_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    p = y.attrs["exponent"]
    return b.mul(g, b.mul(b.const(p), b.power(x, exponent=p - 1)))


def _sigmoid_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    return b.mul(g, b.mul(y, b.sub(b.const(1.0), y)))


def _tanh_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
    return b.mul(g, b.sub(b.const(1.0), b.mul(y, y)))


def _zero(b: Any) -> Node:
    return b.const(0.0)


def _select_shape(condition: TensorType, x: TensorType, z: TensorType) -> TensorType:
    require(condition.dtype == "bool", f"a condition must be bool, not {condition.dtype}")
    return TensorType(broadcast_shapes(condition.shape, x.shape, z.shape), same_dtype(x, z))


def _select_examples(draw: Draw) -> Example:
    x, z = _two(draw).operands
    shape = broadcast_shapes(x.type.shape, z.type.shape)
    return Example((Operand(TensorType(shape, "bool"), "bool"), x, z))


def _cast(xp: Any, x: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16)
    return x.astype(dtype)


def _cast_shape(x: TensorType, dtype: str) -> TensorType:
    require(dtype in ITEMSIZE, f"no element type is called {dtype}")
    return TensorType(x.shape, dtype)


def _cast_vjp(b: Any, g: Node, y: Node, x: Node) -> Node:
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
            lambda b, g, y, x, z: b.select(b.greater(x, z), g, _zero(b)),
            lambda b, g, y, x, z: b.select(b.greater(x, z), _zero(b), g),
        ),
        "the larger of x and z; equal values pass the gradient to z",
    ),
    _binary(
        "minimum",
        lambda xp, x, z: xp.minimum(x, z),
        (
            lambda b, g, y, x, z: b.select(b.greater(z, x), g, _zero(b)),
            lambda b, g, y, x, z: b.select(b.greater(z, x), _zero(b), g),
        ),
        "the smaller of x and z; equal values pass the gradient to z",
    ),
    _compare("equal", lambda xp, x, z: x == z, "x == z, as bool"),
    _compare("greater", lambda xp, x, z: x > z, "x > z, as bool"),
    _unary("neg", lambda xp, x: -x, lambda b, g, y, x: b.neg(g), "-x"),
    _unary("exp", lambda xp, x: xp.exp(x), lambda b, g, y, x: b.mul(g, y), "e to the x"),
    _unary(
        "log",
        lambda xp, x: xp.log(x),
        lambda b, g, y, x: b.div(g, x),
        "natural logarithm",
        values="positive",
    ),
    _unary(
        "sqrt",
        lambda xp, x: xp.sqrt(x),
        lambda b, g, y, x: b.mul(g, b.div(b.const(0.5), y)),
        "square root",
        values="positive",
    ),
    _unary(
        "power",
        lambda xp, x, exponent: x**exponent,
        _power_vjp,
        "x to a constant power",
        attrs=(Param("exponent", Number(), 2.0),),
        values="positive",
    ),
    _unary(
        "relu",
        lambda xp, x: xp.maximum(x, 0),
        _relu_vjp,
        "max(x, 0) (Nair & Hinton 2010)",
        layer=True,
    ),
    _unary(
        "leaky_relu",
        lambda xp, x, slope: xp.where(x > 0, x, slope * x),
        _leaky_relu_vjp,
        "x, or slope * x where negative (Maas et al. 2013)",
        attrs=(Param("slope", Number(), 0.01, "slope of the negative side"),),
        layer=True,
    ),
    _unary(
        "elu",
        _elu,
        _elu_vjp,
        "x, or alpha * (e^x - 1) where negative (Clevert et al. 2016)",
        attrs=(Param("alpha", Number(above=0), 1.0, "depth of the negative side"),),
        layer=True,
        flops=3,
    ),
    _unary(
        "gelu",
        _gelu,
        _gelu_vjp,
        "Gaussian error linear unit, tanh form (Hendrycks & Gimpel 2016)",
        layer=True,
        flops=10,
    ),
    _unary(
        "clamp",
        lambda xp, x, low, high: xp.minimum(xp.maximum(x, low), high),
        _clamp_vjp,
        "x kept between low and high; clamp(0, 6) is ReLU6",
        attrs=(Param("low", Number(), 0.0), Param("high", Number(), 6.0)),
        layer=True,
        flops=2,
    ),
    _unary("sigmoid", _sigmoid, _sigmoid_vjp, "1 / (1 + e^-x)", layer=True, flops=4),
    _unary("tanh", lambda xp, x: xp.tanh(x), _tanh_vjp, "hyperbolic tangent", layer=True, flops=4),
    Op(
        name="select",
        kind="elementwise",
        operands=("condition", "x", "z"),
        shape=_select_shape,
        reference=lambda xp, condition, x, z: xp.where(condition, x, z),
        examples=_select_examples,
        vjp=(
            None,
            lambda b, g, y, c, x, z: b.select(c, g, _zero(b)),
            lambda b, g, y, c, x, z: b.select(c, _zero(b), g),
        ),
        nondiff={"condition": "a condition is no number"},
        doc="x where the condition holds, else z",
    ),
    Op(
        name="cast",
        kind="elementwise",
        operands=("x",),
        shape=_cast_shape,
        reference=_cast,
        examples=lambda draw: Example(floats(some_shape(draw)), {"dtype": "float64"}),
        attrs=(Param("dtype", Choice(tuple(ITEMSIZE))),),
        vjp=(_cast_vjp,),
        doc="the same numbers as another element type",
    ),
)
