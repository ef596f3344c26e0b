"""Operators without operands: inputs, states and constants."""

from __future__ import annotations

from typing import Any

from netdsl.ops.attributes import DTYPE, SHAPE
from netdsl.ops.dtypes import dtype_of
from netdsl.ops.op import Draw, Example, Op
from netdsl.parameter_types import Boolean
from netdsl.signature import Param
from netdsl.types import Array, TensorType


def _declared_type(**attrs: Any) -> TensorType:
    return TensorType(tuple(attrs["shape"]), attrs["dtype"])


def _const_shape(value: float | tuple[float, ...], dtype: str) -> TensorType:
    return TensorType((len(value),) if isinstance(value, tuple) else (), dtype)


def _const(xp: Any, value: float | tuple[float, ...], dtype: str) -> Array:
    return xp.asarray(value, dtype=dtype_of(dtype))


def _reject_evaluation(xp: Any, **attrs: Any) -> Array:
    raise AssertionError("an input or a state is bound by the executor, never computed")


def _example(draw: Draw) -> Example:
    return Example((), {"shape": (draw.integer(1, 4),), "dtype": "float64"})


_TYPE_PARAMS = (Param("shape", SHAPE), Param("dtype", DTYPE))

OPS = (
    Op(
        name="input",
        kind="leaf",
        operands=(),
        shape=_declared_type,
        reference=_reject_evaluation,
        draw_example=_example,
        attrs=_TYPE_PARAMS,
        doc="a value given at every run",
    ),
    Op(
        name="state",
        kind="leaf",
        operands=(),
        shape=_declared_type,
        reference=_reject_evaluation,
        draw_example=_example,
        attrs=(*_TYPE_PARAMS, Param("init"), Param("trainable", Boolean(), True)),
        doc="a value kept between runs; `init` is (distribution, parameter)",
    ),
    Op(
        name="const",
        kind="leaf",
        operands=(),
        shape=_const_shape,
        reference=_const,
        draw_example=lambda draw: Example(
            (), {"value": float(draw.integer(-3, 3)), "dtype": "float64"}
        ),
        attrs=(Param("value"), Param("dtype", DTYPE)),
        doc="a number, or a vector of numbers",
    ),
)
