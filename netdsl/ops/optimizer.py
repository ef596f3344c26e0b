"""The small pure parts that optimizers are chained from; one result each, one state each."""

from __future__ import annotations

from typing import Any

from netdsl.ops.draw import drawn
from netdsl.ops.op import Draw, Example, Op, Operand, floats, require, same_dtype, some_shape
from netdsl.parameter_types import Float
from netdsl.signature import Param
from netdsl.types import Array, TensorType, dims

_REASON = "an update is never differentiated"


def _first_shape(first: TensorType, *rest: TensorType, **_: Any) -> TensorType:
    """All operands alike but scalars."""
    for t in rest:
        fits = t.shape in ((), first.shape)
        require(fits, f"{dims(t.shape)} does not update {dims(first.shape)}")
    same_dtype(first, *(t for t in rest if not t.dtype.startswith("int")))
    return first


def _trust_shape(w: TensorType, g: TensorType, **_: Any) -> TensorType:
    return _first_shape(w, g).with_shape(())


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
    wide, steep = xp.sqrt((w * w).sum()), xp.sqrt((g * g).sum())
    ratio = trust * wide / (steep + weight_decay * wide + eps)
    return xp.where((wide > 0) & (steep > 0), ratio, xp.ones_like(ratio))


def _operands(names: tuple[str, ...], draw: Draw) -> tuple[Operand, ...]:
    shape = some_shape(draw, 1, 2)
    kinds = {
        "lr": lambda: floats((), values="positive")[0],
        "step": lambda: Operand(TensorType((), "int32"), "below:4"),
        "v": lambda: floats(shape, values="positive")[0],
    }
    return tuple(kinds[n]() if n in kinds else floats(shape)[0] for n in names)


def _part(
    name: str,
    operands: tuple[str, ...],
    reference: Any,
    doc: str,
    *params: Param,
    kind: Any = "elementwise",
    shape: Any = _first_shape,
) -> Op:
    return Op(
        name=name,
        kind=kind,
        operands=operands,
        shape=shape,
        reference=reference,
        examples=lambda draw: Example(_operands(operands, draw), drawn(draw, params)),
        attrs=params,
        nondiff=dict.fromkeys(operands, _REASON),
        flops_per_element=2,
        doc=doc,
    )


_DECAY = Param("decay", Float(0, 1))

OPS = (
    _part(
        "ema",
        ("s", "x"),
        lambda xp, s, x, decay: decay * s + (1 - decay) * x,
        "moving average: decay * s + (1 - decay) * x",
        _DECAY,
    ),
    _part(
        "ema_square",
        ("v", "x"),
        lambda xp, v, x, decay: decay * v + (1 - decay) * x * x,
        "moving average of squares",
        _DECAY,
    ),
    _part(
        "momentum",
        ("s", "x"),
        lambda xp, s, x, momentum: momentum * s + x,
        "momentum * s + x: the velocity, and Nesterov's look-ahead with the velocity as s",
        Param("momentum", Float(0, below=1)),
    ),
    _part(
        "descend",
        ("w", "x", "lr"),
        lambda xp, w, x, lr: w - lr * x,
        "w - lr * x",
    ),
    _part(
        "adam_direction",
        ("x", "v", "step"),
        _adam_direction,
        "bias-corrected mean over root of mean square, Kingma & Ba 2015; `step` counts from 0",
        Param("beta1", Float(0, below=1)),
        Param("beta2", Float(0, below=1)),
        Param("eps", Float(above=0)),
    ),
    _part(
        "rms_direction",
        ("x", "v"),
        lambda xp, x, v, eps: x / (xp.sqrt(v) + eps),
        "x over root of mean square, Tieleman & Hinton 2012",
        Param("eps", Float(above=0)),
    ),
    _part(
        "trust_ratio",
        ("w", "x"),
        _trust_ratio,
        "trust * |w| / (|x| + weight_decay * |w|), the layer's own rate of You et al. 2017",
        Param("trust", Float(above=0)),
        Param("weight_decay", Float(0)),
        Param("eps", Float(0)),
        kind="reduce",
        shape=_trust_shape,
    ),
)
