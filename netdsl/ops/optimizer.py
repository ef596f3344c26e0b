"""The pure operators that optimizers are composed of; each has one result and one state."""

from __future__ import annotations

from typing import Any

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
from netdsl.parameter_types import Float
from netdsl.signature import Param
from netdsl.types import Array, TensorType, dims

_NOT_DIFFERENTIATED = "an update is never differentiated"


def _updated_type(first: TensorType, *rest: TensorType, **_: Any) -> TensorType:
    """The type of the first operand; all others must be scalars or have the same shape."""
    for t in rest:
        fits = t.shape in ((), first.shape)
        require(fits, f"{dims(t.shape)} does not update {dims(first.shape)}")
    common_dtype(first, *(t for t in rest if not t.dtype.startswith("int")))
    return first


def _trust_shape(w: TensorType, g: TensorType, **_: Any) -> TensorType:
    return _updated_type(w, g).with_shape(())


def _adam_direction(
    xp: Any, m: Array, v: Array, step: Array, beta1: float, beta2: float, eps: float
) -> Array:
    t = xp.asarray(step).astype("float64") + 1
    mean_scale = (1 / (1 - beta1**t)).astype(m.dtype)
    root_scale = (1 / xp.sqrt(1 - beta2**t)).astype(m.dtype)
    return m * mean_scale / (xp.sqrt(v) * root_scale + xp.asarray(eps, dtype=m.dtype))


def _trust_ratio(
    xp: Any, w: Array, g: Array, trust: float, weight_decay: float, eps: float
) -> Array:
    weight_norm, gradient_norm = xp.sqrt((w * w).sum()), xp.sqrt((g * g).sum())
    ratio = trust * weight_norm / (gradient_norm + weight_decay * weight_norm + eps)
    return xp.where((weight_norm > 0) & (gradient_norm > 0), ratio, xp.ones_like(ratio))


def _draw_update_operands(names: tuple[str, ...], draw: Draw) -> tuple[Operand, ...]:
    shape = draw_shape(draw, 1, 2)
    kinds = {
        "lr": lambda: float_operands((), distribution="positive")[0],
        "step": lambda: Operand(TensorType((), "int32"), "below:4"),
        "v": lambda: float_operands(shape, distribution="positive")[0],
    }
    return tuple(kinds[n]() if n in kinds else float_operands(shape)[0] for n in names)


def _update_op(
    name: str,
    operands: tuple[str, ...],
    reference: Any,
    doc: str,
    *params: Param,
    kind: Any = "elementwise",
    shape: Any = _updated_type,
) -> Op:
    return Op(
        name=name,
        kind=kind,
        operands=operands,
        shape=shape,
        reference=reference,
        draw_example=lambda draw: Example(
            _draw_update_operands(operands, draw), draw_attributes(draw, params)
        ),
        attrs=params,
        nondiff=dict.fromkeys(operands, _NOT_DIFFERENTIATED),
        flops_per_element=2,
        doc=doc,
    )


_DECAY = Param("decay", Float(0, 1))

OPS = (
    _update_op(
        "ema",
        ("s", "x"),
        lambda xp, s, x, decay: decay * s + (1 - decay) * x,
        "moving average: decay * s + (1 - decay) * x",
        _DECAY,
    ),
    _update_op(
        "ema_square",
        ("v", "x"),
        lambda xp, v, x, decay: decay * v + (1 - decay) * (x * x),
        "moving average of squares",
        _DECAY,
    ),
    _update_op(
        "momentum",
        ("s", "x"),
        lambda xp, s, x, momentum: momentum * s + x,
        "momentum * s + x: the velocity, and Nesterov's look-ahead with the velocity as s",
        Param("momentum", Float(0, below=1)),
    ),
    _update_op(
        "descend",
        ("w", "x", "lr"),
        lambda xp, w, x, lr: w - lr * x,
        "w - lr * x",
    ),
    _update_op(
        "adam_direction",
        ("x", "v", "step"),
        _adam_direction,
        "bias-corrected mean over root of mean square, Kingma & Ba 2015; `step` counts from 0",
        Param("beta1", Float(0, below=1)),
        Param("beta2", Float(0, below=1)),
        Param("eps", Float(above=0)),
    ),
    _update_op(
        "rms_direction",
        ("x", "v"),
        lambda xp, x, v, eps: x / (xp.sqrt(v) + eps),
        "x over root of mean square, Tieleman & Hinton 2012",
        Param("eps", Float(above=0)),
    ),
    _update_op(
        "trust_ratio",
        ("w", "x"),
        _trust_ratio,
        "trust * |w| / (|x| + weight_decay * |w|), the layer-wise rate of You et al. 2017",
        Param("trust", Float(above=0)),
        Param("weight_decay", Float(0)),
        Param("eps", Float(0)),
        kind="reduce",
        shape=_trust_shape,
    ),
)
