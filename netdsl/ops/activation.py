"""Activations: each is also a layer of the language."""

from __future__ import annotations

import math
from typing import Any

from netdsl.ops.elementwise import unary_op
from netdsl.ops.op import Op, Trait, constant_like
from netdsl.parameter_types import Float
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node


def _sigmoid(xp: Any, x: Array) -> Array:
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def _elu(xp: Any, x: Array, alpha: float) -> Array:
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


_GELU_SCALE = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def _gelu(xp: Any, x: Array) -> Array:
    return 0.5 * x * (1 + xp.tanh(_GELU_SCALE * (x + _GELU_CUBIC * x * x * x)))


def _gelu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    one, scale = constant_like(b, 1.0, y), constant_like(b, _GELU_SCALE, y)
    square = b.mul(x, x)
    inner = b.mul(x, b.add(b.mul(square, constant_like(b, _GELU_SCALE * _GELU_CUBIC, y)), scale))
    slope = b.add(b.mul(square, constant_like(b, 3 * _GELU_SCALE * _GELU_CUBIC, y)), scale)
    t = b.tanh(inner)
    falling = b.mul(b.mul(x, slope), b.sub(one, b.mul(t, t)))
    return b.mul(g, b.mul(constant_like(b, 0.5, y), b.add(b.add(one, t), falling)))


def _relu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.select(b.greater(y, constant_like(b, 0.0, y)), g, constant_like(b, 0.0, y))


def _leaky_relu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.select(
        b.greater(x, constant_like(b, 0.0, y)),
        g,
        b.mul(g, constant_like(b, y.attrs["slope"], y)),
    )


def _clamp_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    inside = b.select(
        b.greater(constant_like(b, y.attrs["high"], y), x), g, constant_like(b, 0.0, y)
    )
    return b.select(
        b.greater(x, constant_like(b, y.attrs["low"], y)), inside, constant_like(b, 0.0, y)
    )


def _elu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    falling = b.mul(g, b.add(y, constant_like(b, y.attrs["alpha"], y)))
    return b.select(b.greater(x, constant_like(b, 0.0, y)), g, falling)


def _sigmoid_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.mul(g, b.mul(y, b.sub(constant_like(b, 1.0, y), y)))


def _tanh_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.mul(g, b.sub(constant_like(b, 1.0, y), b.mul(y, y)))


def _softsign_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    """1 / (1 + |x|)^2, which is (1 - |y|)^2."""
    rest = b.sub(constant_like(b, 1.0, y), b.maximum(y, b.neg(y)))
    return b.mul(g, b.mul(rest, rest))


def _hardswish_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    zero, half, third, three = (constant_like(b, v, y) for v in (0, 0.5, 1 / 3, 3))
    inside = b.mul(g, b.add(b.mul(x, third), half))
    below = b.select(b.greater(x, b.neg(three)), inside, zero)
    return b.select(b.greater(x, three), g, below)


def _silu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    """s + y * (1 - s), where s is sigmoid(x)."""
    s = b.sigmoid(x)
    return b.mul(g, b.add(s, b.mul(y, b.sub(constant_like(b, 1.0, y), s))))


def _activation(
    name: str,
    reference: Any,
    vjp: Any,
    doc: str,
    attrs: tuple[Param, ...] = (),
    flops: int = 1,
    traits: tuple[Trait, ...] = (),
) -> Op:
    """An operator that is also a layer, and may be part of a product's epilogue."""
    kinds: tuple[Trait, ...] = ("epilogue", "activation", "constant_folding", *traits)
    return unary_op(name, reference, vjp, doc, attrs, is_layer=True, flops=flops, traits=kinds)


OPS = (
    _activation(
        "relu",
        lambda xp, x: xp.maximum(x, 0),
        _relu_vjp,
        "max(x, 0) (Nair & Hinton 2010)",
        traits=("low_precision",),
    ),
    _activation(
        "leaky_relu",
        lambda xp, x, slope: xp.where(x > 0, x, slope * x),
        _leaky_relu_vjp,
        "x, or slope * x where negative (Maas et al. 2013)",
        attrs=(Param("slope", Float(), 0.01, "slope of the negative side"),),
    ),
    _activation(
        "elu",
        _elu,
        _elu_vjp,
        "x, or alpha * (e^x - 1) where negative (Clevert et al. 2016)",
        attrs=(Param("alpha", Float(above=0), 1.0, "depth of the negative side"),),
        flops=3,
    ),
    _activation(
        "gelu",
        _gelu,
        _gelu_vjp,
        "Gaussian error linear unit, tanh form (Hendrycks & Gimpel 2016)",
        flops=10,
    ),
    _activation(
        "clamp",
        lambda xp, x, low, high: xp.minimum(xp.maximum(x, low), high),
        _clamp_vjp,
        "x kept between low and high; clamp(0, 6) is ReLU6",
        attrs=(Param("low", Float(), 0.0), Param("high", Float(), 6.0)),
        flops=2,
        traits=("low_precision",),
    ),
    _activation(
        "sigmoid",
        _sigmoid,
        _sigmoid_vjp,
        "1 / (1 + e^-x)",
        flops=4,
    ),
    _activation(
        "tanh",
        lambda xp, x: xp.tanh(x),
        _tanh_vjp,
        "hyperbolic tangent",
        flops=4,
    ),
    _activation(
        "softsign",
        lambda xp, x: x / (1 + xp.abs(x)),
        _softsign_vjp,
        "x / (1 + |x|) (Turian et al. 2009)",
        flops=3,
    ),
    _activation(
        "hardswish",
        lambda xp, x: x * xp.minimum(xp.maximum(x + 3, 0), 6) / 6,
        _hardswish_vjp,
        "x * clamp(x + 3, 0, 6) / 6 (Howard et al. 2019)",
        flops=5,
    ),
    _activation(
        "silu",
        lambda xp, x: x * _sigmoid(xp, x),
        _silu_vjp,
        "x * sigmoid(x), also called swish (Elfwing et al. 2018)",
        flops=5,
    ),
)
