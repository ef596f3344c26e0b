"""Activations: each is also a layer of the language."""

from __future__ import annotations

import math
from typing import Any

from netdsl.ops.elementwise import unary_op
from netdsl.ops.op import constant_like
from netdsl.parameter_types import Float
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node


def _sigmoid(xp: Any, x: Array) -> Array:
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def _elu(xp: Any, x: Array, alpha: float) -> Array:
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


def _gelu(xp: Any, x: Array) -> Array:
    return 0.5 * x * (1 + xp.tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x)))


def _gelu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    one, scale = constant_like(b, 1.0, y), constant_like(b, GELU_SCALE, y)
    square = b.mul(x, x)
    inner = b.mul(x, b.add(b.mul(square, constant_like(b, GELU_SCALE * GELU_CUBIC, y)), scale))
    slope = b.add(b.mul(square, constant_like(b, 3 * GELU_SCALE * GELU_CUBIC, y)), scale)
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


OPS = (
    unary_op(
        "relu",
        lambda xp, x: xp.maximum(x, 0),
        _relu_vjp,
        "max(x, 0) (Nair & Hinton 2010)",
        is_layer=True,
        traits=("epilogue", "low_precision", "activation"),
    ),
    unary_op(
        "leaky_relu",
        lambda xp, x, slope: xp.where(x > 0, x, slope * x),
        _leaky_relu_vjp,
        "x, or slope * x where negative (Maas et al. 2013)",
        attrs=(Param("slope", Float(), 0.01, "slope of the negative side"),),
        is_layer=True,
        traits=("epilogue", "activation"),
    ),
    unary_op(
        "elu",
        _elu,
        _elu_vjp,
        "x, or alpha * (e^x - 1) where negative (Clevert et al. 2016)",
        attrs=(Param("alpha", Float(above=0), 1.0, "depth of the negative side"),),
        is_layer=True,
        flops=3,
        traits=("epilogue", "activation"),
    ),
    unary_op(
        "gelu",
        _gelu,
        _gelu_vjp,
        "Gaussian error linear unit, tanh form (Hendrycks & Gimpel 2016)",
        is_layer=True,
        flops=10,
        traits=("epilogue", "activation"),
    ),
    unary_op(
        "clamp",
        lambda xp, x, low, high: xp.minimum(xp.maximum(x, low), high),
        _clamp_vjp,
        "x kept between low and high; clamp(0, 6) is ReLU6",
        attrs=(Param("low", Float(), 0.0), Param("high", Float(), 6.0)),
        is_layer=True,
        flops=2,
        traits=("epilogue", "low_precision", "activation"),
    ),
    unary_op(
        "sigmoid",
        _sigmoid,
        _sigmoid_vjp,
        "1 / (1 + e^-x)",
        is_layer=True,
        flops=4,
        traits=("epilogue", "activation"),
    ),
    unary_op(
        "tanh",
        lambda xp, x: xp.tanh(x),
        _tanh_vjp,
        "hyperbolic tangent",
        is_layer=True,
        flops=4,
        traits=("epilogue", "activation"),
    ),
)
