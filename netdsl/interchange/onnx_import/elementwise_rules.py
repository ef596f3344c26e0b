"""ONNX operators that work element by element as layers: activations and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from netdsl.interchange.onnx_import.axis_views import IMAGE_ORDER, View, ViewError, row_view
from netdsl.interchange.onnx_import.call import (
    OnnxCall,
    Operand,
    Rule,
    UnsupportedError,
    full,
    per_channel,
    shorten,
)
from netdsl.interchange.onnx_import.layer_records import BIAS
from netdsl.parameter_types import MAX_FLOAT32
from netdsl.types import Array
from netdsl.values import Symbol, Value

_MAX_POWER = 4
_FLOAT_TYPES = (1, 10, 11, 16)


def _activation(
    layer: str, arguments: Callable[[OnnxCall], Mapping[str, Value]] = lambda call: {}
) -> Rule:
    def rule(call: OnnxCall) -> View:
        return call.emit_like(call.view(), layer, arguments(call))

    return rule


def _is_near(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-4)


def _selu(call: OnnxCall) -> View:
    """gamma * elu(x)"""
    alpha, gamma = call.number("alpha", 1.67326), call.number("gamma", 1.05070)
    if _is_near(alpha, 1.67326) and _is_near(gamma, 1.05070):
        return call.emit_like(call.view(), "selu")
    return multiply(call, call.emit_like(call.view(), "elu", {"alpha": alpha}), np.array(gamma))


def _celu(call: OnnxCall) -> View:
    """alpha * elu(x / alpha)"""
    alpha = call.number("alpha", 1.0)
    if alpha <= 0:
        raise UnsupportedError("its `alpha` is not positive")
    narrow = multiply(call, call.view(), np.array(1 / alpha))
    return multiply(call, call.emit_like(narrow, "elu"), np.array(alpha))


def _hard_sigmoid(call: OnnxCall) -> View:
    slope, offset = call.number("alpha", 0.2), call.number("beta", 0.5)
    if _is_near(slope, 1 / 6) and offset == 0.5:
        return call.emit_like(call.view(), "hardsigmoid")
    line = add_constant(call, multiply(call, call.view(), np.array(slope)), np.array(offset))
    return call.emit_like(line, "clamp", {"low": 0, "high": 1})


def _swish(call: OnnxCall) -> View:
    if call.number("alpha", 1.0) != 1:
        raise UnsupportedError("its `alpha` is not 1")
    return call.emit_like(call.view(), "silu")


def _clip(call: OnnxCall) -> View:
    return _clamp(call, call.scalar("min", 1), call.scalar("max", 2))


def _clamp(call: OnnxCall, low: float | None, high: float | None) -> View:
    bounds = (-MAX_FLOAT32 if low is None else low, MAX_FLOAT32 if high is None else high)
    low, high = (min(max(v, -MAX_FLOAT32), MAX_FLOAT32) for v in bounds)
    view = call.view()
    if (low, high) == (-MAX_FLOAT32, MAX_FLOAT32):
        return view
    if low == 0 and high in (6, MAX_FLOAT32):
        return call.emit_like(view, "relu6" if high == 6 else "relu")
    return call.emit_like(view, "clamp", {"low": low, "high": high})


def _bound(is_low: bool) -> Rule:
    """The larger, or the smaller, of values and constants."""

    def rule(call: OnnxCall) -> View:
        views = [o for o in call.operands if isinstance(o, View)]
        numbers = [o for o in call.operands if isinstance(o, np.ndarray)]
        if not views or any(n.size != 1 for n in numbers):
            raise UnsupportedError("a constant differs from pixel to pixel")
        found = views[0]
        for view in views[1:]:
            found = _extreme(call, found, view, is_low)
        chosen = [shorten(float(n.reshape(-1)[0])) for n in numbers]
        if not chosen:
            return found
        inner = replace(call, operands=(found,))
        return _clamp(inner, max(chosen), None) if is_low else _clamp(inner, None, min(chosen))

    return rule


def _extreme(call: OnnxCall, a: View, b: View, is_larger: bool) -> View:
    """max(a, b) as a + relu(b - a), min(a, b) as a - relu(a - b)."""
    order = (b, a) if is_larger else (a, b)
    excess = call.emit_like(join(call, "sub", order), "relu")
    return join(call, "add" if is_larger else "sub", (a, excess))


def _abs(call: OnnxCall) -> View:
    """relu(x) + relu(-x)"""
    view = call.view()
    negative = multiply(call, view, np.array(-1.0))
    return join(call, "add", [call.emit_like(v, "relu") for v in (view, negative)])


def _prelu(call: OnnxCall) -> View:
    view, slope = call.view(), call.required(1)
    found = per_channel(view, slope)
    if found is None:
        view = call.image_sized(view)
        found = per_channel(view, slope)
    if found is None:
        raise UnsupportedError("its slope differs from pixel to pixel")
    if found.size == 1 and slope.size == 1:
        return call.emit_like(view, "prelu", {"shared": True}, {"slope": found})
    return call.emit_like(view, "prelu", {}, {"slope": full(found, view)})


def _softmax(layer: str) -> Rule:
    """Along the channels. Before opset 13 all axes from `axis` on counted as one."""

    def rule(call: OnnxCall) -> View:
        view = call.view()
        first = call.axis(call.integer("axis", 1 if call.opset < 13 else -1), view.rank)
        is_old = call.opset < 13 and call.node.operator in ("Softmax", "LogSoftmax")
        chosen = view.axes[first:] if is_old else view.axes[first : first + 1]
        if {a for axis in chosen for a in axis} != set(view.base[-1]):
            raise UnsupportedError("it is not along the channels")
        return call.emit_like(view, layer)

    return rule


def _dropout(call: OnnxCall) -> View:
    rate = call.scalar("ratio", 1)
    view, rate = call.view(), 0.5 if rate is None else rate
    return call.emit_like(view, "dropout", {"rate": rate}) if 0 < rate < 1 else view


def _cast(call: OnnxCall) -> View:
    if call.integer("to", 1) not in _FLOAT_TYPES:
        raise UnsupportedError("it converts to integers")
    return replace(call.view(), is_integer=False)


def _cast_like(call: OnnxCall) -> Operand:
    """To the type of another value, which is a float here."""
    value = call.operands[0]
    if not isinstance(value, np.ndarray):
        return replace(call.view(), is_integer=False)
    call.view(1)
    return value.astype(np.float32)


def _constant_of(call: OnnxCall, view: View, value: float) -> str:
    return call.emit("constant", [call.records.use(view)], {"value": value})


def multiply(call: OnnxCall, view: View, values: Array) -> View:
    """A view times a constant: one value, or one for each channel."""
    view, factors = _align(call, view, values)
    if view.pixels is not None:
        scale, shift = (np.asarray(v) * factors for v in view.pixels)
        return replace(view, pixels=(tuple(scale.tolist()), tuple(shift.tolist())))
    if factors.size > 1:
        return call.emit_like(view, "scale", {}, {"gamma": full(factors, view)})
    if factors[0] == 1:
        return view
    constant = _constant_of(call, view, shorten(float(factors[0])))
    return replace(view, node=call.emit("mul", [view.node, constant]))


def add_constant(call: OnnxCall, view: View, values: Array) -> View:
    """A view plus a constant: one value, or one for each channel."""
    view, offsets = _align(call, view, values)
    if view.pixels is not None:
        scale, shift = view.pixels
        found = np.asarray(shift) + offsets
        return replace(view, pixels=(scale, tuple(found.tolist())))
    if offsets.size > 1:
        node = call.records.emit_bias(call.name(BIAS), view.node, full(offsets, view))
        return replace(view, node=node)
    if offsets[0] == 0:
        return view
    constant = _constant_of(call, view, shorten(float(offsets[0])))
    return replace(view, node=call.emit("add", [view.node, constant]))


def _align(call: OnnxCall, view: View, values: Array) -> tuple[View, Array]:
    """The view with its channels last, if it must be, and the values for each channel."""
    if view.is_integer:
        raise UnsupportedError("it computes with integers")
    found = per_channel(view, values)
    if found is None and view.rank in (3, 4):
        view = call.image_sized(view)
        found = per_channel(view, values)
    if found is None:
        raise UnsupportedError("a constant differs from pixel to pixel")
    return view, found


def _operands(call: OnnxCall) -> tuple[Operand, Operand]:
    a, b = call.operands[:2]
    if a is None or b is None:
        raise UnsupportedError("an operand is missing")
    return a, b


def _add(call: OnnxCall) -> View:
    a, b = _operands(call)
    if isinstance(a, View) and isinstance(b, View):
        return join(call, "add", (a, b))
    return add_constant(call, a, b) if isinstance(a, View) else _add(_swap(call))


def _mul(call: OnnxCall) -> View:
    a, b = _operands(call)
    if isinstance(a, View) and isinstance(b, View):
        return join(call, "mul", (a, b))
    return multiply(call, a, b) if isinstance(a, View) else _mul(_swap(call))


def _swap(call: OnnxCall) -> OnnxCall:
    a, b = call.operands[:2]
    return replace(call, operands=(b, a))


def _sub(call: OnnxCall) -> View:
    a, b = _operands(call)
    if isinstance(a, View) and isinstance(b, View):
        return join(call, "sub", (a, b))
    if isinstance(a, View):
        return add_constant(call, a, -np.asarray(b))
    assert isinstance(b, View)
    return add_constant(call, multiply(call, b, np.array(-1.0)), a)


def _div(call: OnnxCall) -> View:
    a, b = _operands(call)
    if isinstance(b, View) or not isinstance(a, View):
        raise UnsupportedError("it divides by a computed value")
    if (b == 0).any():
        raise UnsupportedError("it divides by zero")
    return multiply(call, a, 1 / b)


def _neg(call: OnnxCall) -> View:
    return multiply(call, call.view(), np.array(-1.0))


def _pow(call: OnnxCall) -> View:
    view, exponent = call.view(), call.required(1)
    if exponent.size != 1 or exponent.reshape(-1)[0] not in range(1, _MAX_POWER + 1):
        raise UnsupportedError("its exponent is not a small integer")
    count = int(exponent.reshape(-1)[0])
    return join(call, "mul", [view] * count) if count > 1 else view


def _sum(call: OnnxCall) -> View:
    views = [o for o in call.operands if isinstance(o, View)]
    found = join(call, "add", views) if len(views) > 1 else call.view()
    for value in call.operands:
        if isinstance(value, np.ndarray):
            found = add_constant(call, found, value)
    return found


def _mean(call: OnnxCall) -> View:
    return multiply(call, _sum(call), np.array(1 / len(call.operands)))


def join(call: OnnxCall, layer: str, views: Sequence[View]) -> View:
    """A layer of several branches with their axes in one order."""
    first = views[0]
    if all(v.is_like(first) for v in views):
        nodes = [call.records.use(v) for v in views]
        return replace(first, node=call.emit(layer, nodes), pixels=None)
    rank = max(v.rank for v in views)
    wide = [replace(v, axes=((),) * (rank - v.rank) + v.axes) for v in views]
    for order in _orders(wide, rank):
        try:
            nodes = [call.arrange(v, [v.axes[i] for i in order]) for v in wide]
        except ViewError:
            continue
        return _joined(call, layer, nodes, order, [v.shape for v in wide])
    raise UnsupportedError("its operands have their axes in different orders")


def _orders(views: Sequence[View], rank: int) -> list[tuple[int, ...]]:
    """The orders of the axes to try: those of the operands, the largest first."""
    ranked = sorted(views, key=lambda v: -math.prod(v.shape))
    found = [order for v in ranked if (order := v.order()) is not None]
    usual = (IMAGE_ORDER if rank == 4 else tuple(range(rank)),)
    return list(dict.fromkeys((*found, *usual)))


def _joined(
    call: OnnxCall,
    layer: str,
    nodes: list[str],
    order: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
) -> View:
    if layer == "add" and len(set(shapes)) > 1:
        return _add_broadcast(call, nodes, order)
    node = call.emit(layer, nodes)
    return ordered_view(call, node, order)


def _add_broadcast(call: OnnxCall, nodes: list[str], order: Sequence[int]) -> View:
    """a + b as a - (-b), because `sub` broadcasts."""
    result = nodes[0]
    for node in nodes[1:]:
        constant = call.emit("constant", [node], {"value": -1})
        result = call.emit("sub", [result, call.emit("mul", [node, constant])])
    return ordered_view(call, result, order)


def ordered_view(call: OnnxCall, node: str, order: Sequence[int]) -> View:
    """The view of a node whose axes are those of ONNX in some order."""
    found = row_view(node, call.records.shape(node))
    inverse = [list(order).index(i) for i in range(len(order))]
    return found.transpose(inverse)


def _gelu(call: OnnxCall) -> Mapping[str, Value]:
    form = call.text("approximate", "none")
    return {"approximate": Symbol("tanh")} if form == "tanh" else {}


ELEMENTWISE_RULES: dict[str, Rule] = {
    "Abs": _abs,
    "Add": _add,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _celu,
    "Clip": _clip,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _activation("elu", lambda call: {"alpha": call.number("alpha", 1.0)}),
    "Gelu": _activation("gelu", _gelu),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _activation("hardswish"),
    "LeakyRelu": _activation("leaky_relu", lambda call: {"slope": call.number("alpha", 0.01)}),
    "LogSoftmax": _softmax("log_softmax"),
    "Max": _bound(is_low=True),
    "Mean": _mean,
    "Min": _bound(is_low=False),
    "Mish": _activation("mish"),
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _prelu,
    "Pow": _pow,
    "Relu": _activation("relu"),
    "Selu": _selu,
    "Sigmoid": _activation("sigmoid"),
    "Softmax": _softmax("softmax"),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "Sub": _sub,
    "Sum": _sum,
    "Swish": _swish,
    "Tanh": _activation("tanh"),
    "netdsl.gelu": _activation("gelu", _gelu),
    "netdsl.hardsigmoid": _activation("hardsigmoid"),
    "netdsl.hardswish": _activation("hardswish"),
    "netdsl.mish": _activation("mish"),
    "netdsl.relu6": _activation("relu6"),
    "netdsl.silu": _activation("silu"),
    "netdsl.softmax": _softmax("softmax"),
    "netdsl.softplus": _activation("softplus"),
    "netdsl.softsign": _activation("softsign"),
}
