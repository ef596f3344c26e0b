"""Operators of ONNX on constants: what exporters compute with shapes, and with weights before they
are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netdsl.limits import MAX_FOLDED_VALUES
from netdsl.types import Array

if TYPE_CHECKING:
    from netdsl.interchange.onnx_import.graph import OnnxNode

Operands = Sequence[Array | None]
_CAST_TYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    16: np.float32,
}
"""By the numbers of TensorProto.DataType; bfloat16 is read as float32."""


def fold(node: OnnxNode, operands: Operands) -> tuple[Array, ...] | None:
    """The results of a node on constants; None if it cannot be folded: the operator is not in the
    table, its operands do not fit, or the result would be too large."""
    rule = _RULES.get(node.operator)
    if rule is None:
        return None
    try:
        with np.errstate(all="ignore"):
            results = rule(node.attributes, *operands)
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError, MemoryError):
        return None
    found = results if isinstance(results, tuple) else (results,)
    return tuple(np.asarray(r) for r in found)


def _axes(attributes: Mapping[str, Any], axes: Array | None) -> tuple[int, ...] | None:
    """Axes as an attribute or an operand; None if neither is there."""
    found = attributes.get("axes") if axes is None else tuple(int(a) for a in axes.reshape(-1))
    return tuple(found) if found is not None else None


def _constant(attributes: Mapping[str, Any]) -> Array:
    for key, dtype in (
        ("value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if attributes.get(key) is not None:
            return np.asarray(attributes[key], dtype)
    raise KeyError("value")


def _check_size(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if min(sizes, default=0) < 0 or math.prod(sizes) > MAX_FOLDED_VALUES:
        raise ValueError("too large")
    return sizes


def _constant_of_shape(attributes: Mapping[str, Any], shape: Array) -> Array:
    value = attributes.get("value")
    filler = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return np.full(_check_size(shape), filler.reshape(-1)[0])


def _expand(attributes: Mapping[str, Any], x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, _check_size(np.broadcast_shapes(x.shape, tuple(shape))))


def _range(attributes: Mapping[str, Any], start: Array, limit: Array, delta: Array) -> Array:
    _check_size((max(0, math.ceil((limit - start) / delta)),))
    return np.arange(start, limit, delta)


def _unsqueeze(attributes: Mapping[str, Any], x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, _axes(attributes, axes) or ())


def _squeeze(attributes: Mapping[str, Any], x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, _axes(attributes, axes))


def _gather(attributes: Mapping[str, Any], x: Array, index: Array) -> Array:
    axis = attributes.get("axis", 0) % x.ndim
    _check_size((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    return np.take(x, index, axis)


def _slice(
    attributes: Mapping[str, Any],
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    first = np.asarray(attributes["starts"]) if starts is None else starts
    last = np.asarray(attributes["ends"]) if ends is None else ends
    along = _axes(attributes, axes) or tuple(range(len(first)))
    strides = np.ones(len(first), np.int64) if steps is None else steps
    cut = [slice(None)] * x.ndim
    for axis, a, b, step in zip(along, first, last, strides, strict=True):
        stop = None if step < 0 and b < -x.shape[axis] else int(b)
        cut[axis] = slice(int(a), stop, int(step))
    return x[tuple(cut)]


def _reshape(attributes: Mapping[str, Any], x: Array, shape: Array | None = None) -> Array:
    wanted = attributes["shape"] if shape is None else shape
    return x.reshape(resolve_shape(x.shape, wanted, attributes.get("allowzero", 0)))


def resolve_shape(shape: Sequence[int], wanted: Any, allow_zero: int) -> tuple[int, ...]:
    """The shape that a Reshape gives: 0 keeps a size, -1 is what is left. Raises ValueError if
    there is none."""
    sizes = [int(n) for n in wanted]
    sizes = [shape[i] if n == 0 and not allow_zero else n for i, n in enumerate(sizes)]
    if sizes.count(-1) == 1:
        rest = math.prod(n for n in sizes if n != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // rest if rest else 0
    if min(sizes, default=1) < 0 or math.prod(sizes) != math.prod(shape):
        raise ValueError("another number of values")
    return tuple(sizes)


def _cast(attributes: Mapping[str, Any], x: Array) -> Array:
    return x.astype(_CAST_TYPES[attributes["to"]])


def _binary(function: Callable[..., Any]) -> Callable[..., Array]:
    def apply(attributes: Mapping[str, Any], *xs: Array) -> Array:
        result = xs[0]
        for x in xs[1:]:
            _check_size(np.broadcast_shapes(result.shape, x.shape))
            result = function(result, x)
        return result

    return apply


def _divide(a: Array, b: Array) -> Array:
    """Integers are divided towards zero, as in C."""
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.trunc(a / b)).astype(a.dtype)
    return a / b


def _unary(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda attributes, x: function(x)


def _reduce(function: Callable[..., Any]) -> Callable[..., Array]:
    def apply(attributes: Mapping[str, Any], x: Array, axes: Array | None = None) -> Array:
        keep = bool(attributes.get("keepdims", 1))
        return np.asarray(function(x, axis=_axes(attributes, axes), keepdims=keep)).astype(x.dtype)

    return apply


def _transpose(attributes: Mapping[str, Any], x: Array) -> Array:
    return np.transpose(x, attributes.get("perm"))


def _concat(attributes: Mapping[str, Any], *xs: Array) -> Array:
    _check_size((sum(x.size for x in xs),))
    return np.concatenate(xs, attributes["axis"])


def _where(attributes: Mapping[str, Any], condition: Array, x: Array, y: Array) -> Array:
    _check_size(np.broadcast_shapes(condition.shape, x.shape, y.shape))
    return np.where(condition, x, y)


def _dequantize(
    attributes: Mapping[str, Any], x: Array, scale: Array, zero: Array | None = None
) -> Array:
    """Weights stored in 8 bits, with one scale or one for each entry of an axis."""
    if attributes.get("block_size"):
        raise ValueError("blocks")
    axis = attributes.get("axis", 1)
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    offset = 0 if zero is None else zero.astype(np.float32).reshape(shape if zero.size > 1 else ())
    return (x.astype(np.float32) - offset) * scale.reshape(shape).astype(np.float32)


_RULES: dict[str, Callable[..., Any]] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "Cast": _cast,
    "Ceil": _unary(np.ceil),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantize,
    "Div": _binary(_divide),
    "Dropout": lambda attributes, x, *_: x,
    "Equal": _binary(np.equal),
    "Exp": _unary(np.exp),
    "Expand": _expand,
    "Floor": _unary(np.floor),
    "Gather": _gather,
    "Greater": _binary(np.greater),
    "Identity": _unary(lambda x: x),
    "Less": _binary(np.less),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Mod": _binary(np.mod),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Pow": _binary(lambda x, y: np.power(x, y).astype(x.dtype)),
    "Range": _range,
    "Reciprocal": _unary(np.reciprocal),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Shape": lambda attributes, x: np.array(
        x.shape[slice(attributes.get("start", 0), attributes.get("end"))], np.int64
    ),
    "Size": _unary(lambda x: np.array(x.size, np.int64)),
    "Slice": _slice,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
FOLDABLE = frozenset(_RULES)
"""Operators that are computed where their operands are constant."""
