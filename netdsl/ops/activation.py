"""Activations: each is also a layer of the language."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from netdsl.ops.elementwise import unary_op, unary_shape
from netdsl.ops.example_values import draw_number
from netdsl.ops.op import (
    Draw,
    Example,
    Op,
    Trait,
    constant_like,
    draw_shape,
    float_operands,
    require,
)
from netdsl.ops.special import erf
from netdsl.parameter_types import Choice, Float, NoneLiteral, OneOf
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType


def _sigmoid(xp: Any, x: Array) -> Array:
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def _hardsigmoid(xp: Any, x: Array) -> Array:
    """clamp(x + 3, 0, 6) / 6; a division would take longer than the rest."""
    return xp.minimum(xp.maximum(x * (1 / 6) + 0.5, 0), 1)


def _elu(xp: Any, x: Array, alpha: float) -> Array:
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


_GELU_SCALE = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def _gelu(xp: Any, x: Array, approximate: str | None) -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + xp.tanh(_GELU_SCALE * (x + _GELU_CUBIC * x * x * x)))
    return 0.5 * x * (1 + erf(xp, math.sqrt(0.5) * x))


def _gelu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    rule = _tanh_gelu_vjp if y.attrs["approximate"] == "tanh" else _exact_gelu_vjp
    return rule(b, g, y, x)


def _exact_gelu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    """P(x) + x p(x): the distribution function of the normal distribution and its density."""
    half, one = constant_like(b, 0.5, y), constant_like(b, 1.0, y)
    share = b.mul(half, b.add(one, b.erf(b.mul(x, constant_like(b, math.sqrt(0.5), y)))))
    bell = b.exp(b.mul(b.mul(x, x), constant_like(b, -0.5, y)))
    density = b.mul(bell, constant_like(b, 1 / math.sqrt(2 * math.pi), y))
    return b.mul(g, b.add(share, b.mul(x, density)))


def _tanh_gelu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    x = b.clamp(x, low=-10.0, high=10.0)  # the slope is 0 or 1 beyond, and a cube may be infinite
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


def _clamp_shape(x: TensorType, low: float, high: float) -> TensorType:
    require(
        low <= high,
        f"`low` of `clamp` is {low:g}, which is greater than `high`, {high:g}",
        help="the lower limit comes first, as in `clamp(-1, 1)`; the defaults are `low=0` and "
        "`high=6`",
    )
    return unary_shape(x)


def _clamp_example(draw: Draw) -> Example:
    low = draw_number(draw, Float())
    high = low + draw_number(draw, Float(0))
    return Example(float_operands(draw_shape(draw)), {"low": low, "high": high})


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


def _hardsigmoid_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    zero, sixth, three = (constant_like(b, v, y) for v in (0, 1 / 6, 3))
    below = b.select(b.greater(x, b.neg(three)), b.mul(g, sixth), zero)
    return b.select(b.greater(x, three), zero, below)


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717
"""With these, values of mean 0 and variance 1 keep them from layer to layer."""


def _selu(xp: Any, x: Array) -> Array:
    return _SELU_SCALE * _elu(xp, x, _SELU_ALPHA)


def _selu_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    falling = b.add(y, constant_like(b, _SELU_SCALE * _SELU_ALPHA, y))
    is_positive = b.greater(x, constant_like(b, 0.0, y))
    return b.mul(g, b.select(is_positive, constant_like(b, _SELU_SCALE, y), falling))


def _softplus(xp: Any, x: Array) -> Array:
    """log(1 + e^x), without an e^x that overflows."""
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _softplus_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    return b.mul(g, b.sigmoid(x))


def _mish(xp: Any, x: Array) -> Array:
    """tanh(log(1 + e^x)) is n / (n + 2) with n = e^2x + 2 e^x; above zero, both are divided by
    e^2x."""
    w = xp.exp(-xp.abs(x))
    n = xp.where(x > 0, 1 + 2 * w, w * (w + 2))
    return x * (n / (n + xp.where(x > 0, 2 * w * w, 2)))


def _mish_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    """With n and d = n + 2 as in `_mish`: n / d + 4x e^x (1 + e^x) / d^2."""
    one, two, four = (constant_like(b, v, y) for v in (1, 2, 4))
    is_positive = b.greater(x, constant_like(b, 0.0, y))
    w = b.exp(b.minimum(x, b.neg(x)))
    square = b.mul(w, w)
    twice = b.mul(two, w)
    n = b.add(twice, b.select(is_positive, one, square))
    inverse = b.div(one, b.add(n, b.select(is_positive, b.mul(two, square), two)))
    rising = b.mul(b.select(is_positive, square, w), b.add(one, w))
    slope = b.mul(x, b.mul(four, b.mul(rising, inverse)))
    return b.mul(g, b.mul(inverse, b.add(n, slope)))


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
        "x * (1 + erf(x / sqrt(2))) / 2 (Hendrycks & Gimpel 2016)",
        attrs=(
            Param(
                "approximate",
                OneOf((NoneLiteral(), Choice(("tanh",)))),
                None,
                "`tanh` replaces erf by a close tanh approximation",
            ),
        ),
        flops=10,
    ),
    replace(
        _activation(
            "clamp",
            lambda xp, x, low, high: xp.minimum(xp.maximum(x, low), high),
            _clamp_vjp,
            "x kept between low and high",
            attrs=(Param("low", Float(), 0.0), Param("high", Float(), 6.0)),
            flops=2,
            traits=("low_precision",),
        ),
        shape=_clamp_shape,
        draw_example=_clamp_example,
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
        lambda xp, x: x * _hardsigmoid(xp, x),
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
    _activation(
        "hardsigmoid",
        _hardsigmoid,
        _hardsigmoid_vjp,
        "clamp(x + 3, 0, 6) / 6 (Howard et al. 2019)",
        flops=4,
    ),
    _activation(
        "selu",
        _selu,
        _selu_vjp,
        "1.0507 x, or 1.7581 (e^x - 1) where negative (Klambauer et al. 2017)",
        flops=6,
    ),
    _activation(
        "softplus",
        _softplus,
        _softplus_vjp,
        "log(1 + e^x) (Dugas et al. 2001)",
        flops=10,
    ),
    _activation(
        "mish",
        _mish,
        _mish_vjp,
        "x * tanh(softplus(x)) (Misra 2020)",
        flops=12,
    ),
)
