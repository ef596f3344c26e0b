"""ONNX operators with weights, normalisation and pooling as layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from netdsl.interchange.onnx_import.axis_views import Axis, View, axis_size, flat
from netdsl.interchange.onnx_import.call import (
    OnnxCall,
    Pair,
    Rule,
    UnsupportedError,
    full,
    new_axis,
    per_channel,
)
from netdsl.interchange.onnx_import.elementwise_rules import multiply
from netdsl.interchange.onnx_import.local_idiom import LOCAL
from netdsl.interchange.padding_text import pair, write_padding
from netdsl.ops.windows import Pads, dilated_size
from netdsl.types import Array
from netdsl.values import Size, Symbol, Value


def _pads(
    call: OnnxCall, size: Pair, rank: int, kernel: Pair, stride: Pair, dilation: Pair
) -> Pads:
    """Padding in pixels: given, or computed so that the output is the input over the stride."""
    how = call.text("auto_pad", "NOTSET")
    if how.startswith("SAME"):
        sides = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + dilated_size(k, d) - n)
            less, more = total // 2, total - total // 2
            sides.append((less, more) if how == "SAME_UPPER" else (more, less))
        return sides[0], sides[1]
    given = tuple(call.integers("pads") or ()) if how == "NOTSET" else ()
    given = given or (0,) * 2 * (rank - 2)
    if len(given) != 2 * (rank - 2):
        raise UnsupportedError("its padding does not fit its axes")
    if rank == 3:
        return (given[0], given[1]), (0, 0)
    return (given[0], given[2]), (given[1], given[3])


def _window(call: OnnxCall, view: View, node: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Kernel, stride, padding and dilation of a convolution or pooling."""
    rank = view.rank
    kernel = call.spatial(sizes, rank, 1)
    stride = call.spatial(call.integers("strides"), rank, 1)
    dilation = call.spatial(call.integers("dilations"), rank, 1)
    _, h, w, _ = call.records.shape(node)
    pads = _pads(call, (h, w), rank, kernel, stride, dilation)
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}


def _written_window(window: Mapping[str, Any]) -> dict[str, Value]:
    if min(*window["pads"][0], *window["pads"][1]) < 0:
        raise UnsupportedError("its padding is negative")
    return {
        "kernel": Size(window["kernel"]),
        "stride": pair(window["stride"]),
        "dilation": pair(window["dilation"]),
        "pad": write_padding(window["pads"], window["kernel"], window["dilation"]),
    }


def _kernel_weights(call: OnnxCall, rank: int) -> Array:
    """Weights with height and width at the end, also those of a row."""
    weights = call.required(1)
    if weights.ndim == rank == 5:
        raise UnsupportedError("it is three-dimensional; convolutions here move over images")
    if weights.ndim != rank or rank not in (3, 4):
        raise UnsupportedError(f"its weights have {weights.ndim} axes, its input {rank}")
    return weights if rank == 4 else weights[..., None]


def _with_bias(states: dict[str, Array], bias: Array | None) -> tuple[dict[str, Array], Value]:
    return ({**states, "bias": bias.reshape(-1)}, True) if bias is not None else (states, False)


def _conv(call: OnnxCall) -> View:
    view = call.view()
    weights = _kernel_weights(call, view.rank)
    node = call.image(view)
    groups, channels = call.integer("group", 1), weights.shape[0]
    window = _window(call, view, node, weights.shape[2 : view.rank])
    states, bias = _with_bias({"weight": weights.transpose(0, 2, 3, 1)}, call.constant(2))
    arguments = {**_written_window(window), "bias": bias}
    inner = call.records.shape(node)[3]
    if groups == inner > 1 and channels % inner == 0:
        arguments["multiplier"] = channels // inner
        return call.image_result(call.emit("depthwise", [node], arguments, states), view)
    arguments |= {"channels": channels, "groups": groups}
    return call.image_result(call.emit("conv", [node], arguments, states), view)


def _local(call: OnnxCall) -> View:
    """Matrices [OH,OW,C*R*S,K] become weights [OH,OW,K,R*S*C]."""
    view = call.view()
    node, matrices = call.image(view), call.required(1)
    oh, ow, _, units = matrices.shape
    kernel = call.integers("kernel_shape") or ()
    window = _written_window(_window(call, view, node, kernel))
    split = matrices.reshape(oh, ow, -1, *kernel, units)
    weights = split.transpose(0, 1, 5, 3, 4, 2).reshape(oh, ow, units, -1)
    states, offsets = {"weight": weights}, call.constant(2)
    if offsets is not None:
        states["bias"] = offsets.transpose(1, 2, 0)
    arguments = {k: v for k, v in window.items() if k != "dilation"}
    arguments |= {"channels": units, "bias": offsets is not None}
    return call.image_result(call.emit("local", [node], arguments, states), view)


def _conv_transpose(call: OnnxCall) -> View:
    view = call.view()
    weights = _kernel_weights(call, view.rank)
    node, rank = call.image(view), view.rank
    groups = call.integer("group", 1)
    kernel = call.spatial(weights.shape[2:rank], rank, 1)
    stride = call.spatial(call.integers("strides"), rank, 1)
    dilation = call.spatial(call.integers("dilations"), rank, 1)
    extra = call.spatial(call.integers("output_padding"), rank, 0)
    pads = _transposed_pads(call, node, rank, kernel, stride, dilation, extra)
    states, bias = _with_bias({"weight": weights.transpose(0, 2, 3, 1)}, call.constant(2))
    (top, bottom), (left, right) = pads
    arguments: dict[str, Value] = {
        "channels": weights.shape[1] * groups,
        "kernel": Size(kernel),
        "stride": pair(stride),
        "dilation": pair(dilation),
        "groups": groups,
        "output_pad": pair(extra),
        "bias": bias,
        "pad": pair((top, left)) if (top, left) == (bottom, right) else (top, bottom, left, right),
    }
    return call.image_result(call.emit("convtranspose", [node], arguments, states), view)


def _transposed_pads(
    call: OnnxCall, node: str, rank: int, kernel: Pair, stride: Pair, dilation: Pair, extra: Pair
) -> Pads:
    """What is cut off the result: given, or computed from the size that is wanted."""
    size = call.records.shape(node)[1:3]
    how, wanted = call.text("auto_pad", "NOTSET"), call.integers("output_shape")
    if wanted is None and how.startswith("SAME"):
        wanted = tuple(n * s for n, s in zip(size, stride, strict=True))[: rank - 2]
    if wanted is None:
        pads = _pads(call, (size[0], size[1]), rank, kernel, stride, dilation)
        if min(*pads[0], *pads[1]) < 0:
            raise UnsupportedError("its padding is negative")
        return pads
    sides = []
    for i, out in enumerate(call.spatial(wanted[-(rank - 2) :], rank, 1)):
        total = stride[i] * (size[i] - 1) + extra[i] + dilated_size(kernel[i], dilation[i]) - out
        if total < 0:
            raise UnsupportedError("`output_shape` is larger than what it computes")
        less, more = total // 2, total - total // 2
        sides.append((less, more) if how == "SAME_UPPER" else (more, less))
    return sides[0], sides[1]


def linear(call: OnnxCall, view: View, weights: Array, bias: Array | None) -> View:
    """x @ weights + bias along the last axis: fully connected, or a convolution of 1x1."""
    if weights.ndim != 2 or not view.rank or view.shape[-1] != weights.shape[0]:
        raise UnsupportedError("its second operand is not a matrix that fits the first")
    last, units = view.axes[-1], weights.shape[1]
    inside = {a for axis in view.base[1:] for a in axis}
    out = new_axis(units)
    if set(last) == inside:
        matrix = view.reorder_values(weights.T, last)
        states, has_bias = _with_bias({"weight": matrix}, bias)
        arguments = {"units": units, "bias": has_bias}
        node = call.emit("fc", [call.records.use(view)], arguments, states)
        return View(node, (view.base[0], out), (*view.axes[:-1], out))
    view = _as_pixels(call, view)
    states, has_bias = _with_bias({"weight": weights.T.reshape(units, 1, 1, -1)}, bias)
    arguments = {"channels": units, "kernel": Size((1, 1)), "bias": has_bias}
    node = call.emit("conv", [call.records.use(view)], arguments, states)
    return View(node, (*view.base[:-1], out), (*view.axes[:-1], out))


def _as_pixels(call: OnnxCall, view: View) -> View:
    """The same values as an image whose channels are the last axis."""
    last = view.axes[-1]
    if len(view.base) == 4 and view.base[3] == last:
        return view
    batch, *middle = view.axes[:-1]
    if len(middle) > 2:
        raise UnsupportedError(f"its input has {view.rank} axes")
    wanted = (batch, *middle, *((),) * (2 - len(middle)), last)
    return replace(view, node=call.arrange(view, wanted), base=wanted, pixels=None)


def _gemm(call: OnnxCall) -> View:
    if call.integer("transA", 0):
        raise UnsupportedError("its first operand is transposed")
    weights, factor = call.required(1), call.number("alpha", 1.0)
    weights = weights.T if call.integer("transB", 0) else weights
    weights = weights if factor == 1 else weights * np.float32(factor)
    bias = call.constant(2)
    return linear(call, call.view(), weights, _gemm_bias(bias, weights, call.number("beta", 1.0)))


def _gemm_bias(bias: Array | None, weights: Array, factor: float) -> Array | None:
    if bias is None:
        return None
    rows = np.atleast_2d(bias)
    if rows.ndim > 2 or rows.shape[1] not in (1, weights.shape[-1]) or (rows != rows[0]).any():
        raise UnsupportedError("its bias differs from sample to sample")
    wide = np.broadcast_to(rows[0], weights.shape[-1:])
    return np.ascontiguousarray(wide, np.float32) * np.float32(factor)


def _matmul(call: OnnxCall) -> View:
    return linear(call, call.view(), call.required(1), None)


def _channels_second(call: OnnxCall, view: View) -> View:
    """A view whose second axis is the last of its base."""
    if view.rank < 2:
        raise UnsupportedError(f"its input has {view.rank} axes")
    return view if view.axes[1] == view.base[-1] else call.image_sized(view)


def _batch_norm(call: OnnxCall) -> View:
    if call.integer("training_mode", 0) or len(list(filter(None, call.node.outputs))) > 1:
        raise UnsupportedError("it is in training mode")
    names = ("gamma", "beta", "running_mean", "running_var")
    states = {n: call.required(i + 1).reshape(-1) for i, n in enumerate(names)}
    momentum = round(1 - call.number("momentum", 0.9), 6)
    arguments = {"eps": call.number("epsilon", 1e-5), "momentum": momentum}
    return call.emit_like(_channels_second(call, call.view()), "batchnorm", arguments, states)


def _instance_norm(call: OnnxCall) -> View:
    """Of the channels of an image; of groups of them, where a reshape has made these the second
    axis."""
    view, eps = call.view(), call.number("epsilon", 1e-5)
    gamma, beta = (call.required(i).reshape(-1) for i in (1, 2))
    groups = axis_size(view.axes[1]) if view.rank > 2 else 0
    if view.base[-1] != view.axes[1] and len(view.base) == 4:
        return _group_norm_of_view(call, view, groups, eps, gamma, beta)
    arguments, states = {"eps": eps}, {"gamma": gamma, "beta": beta}
    image = call.image_sized(view)
    return call.emit_like(image, "instancenorm", arguments, states)


def _group_norm_of_view(
    call: OnnxCall, view: View, groups: int, eps: float, gamma: Array, beta: Array
) -> View:
    channels = view.base[3]
    if channels[: len(view.axes[1])] != view.axes[1] or (gamma != 1).any() or beta.any():
        raise UnsupportedError("its second axis does not consist of groups of channels")
    arguments: dict[str, Value] = {"groups": groups, "eps": eps, "affine": False}
    return call.emit_like(view, "groupnorm", arguments)


def _group_norm(call: OnnxCall) -> View:
    view = _channels_second(call, call.view())
    groups, channels = call.integer("num_groups", 1), view.shape[1]
    gamma, beta = (call.required(i).reshape(-1) for i in (1, 2))
    if gamma.size == groups != channels and channels % groups == 0:  # before opset 21
        gamma, beta = (np.repeat(v, channels // groups) for v in (gamma, beta))
    arguments: dict[str, Value] = {"groups": groups, "eps": call.number("epsilon", 1e-5)}
    states = {"gamma": gamma, "beta": beta}
    return call.emit_like(view, "groupnorm", arguments, states)


def _layer_norm(call: OnnxCall) -> View:
    if len(list(filter(None, call.node.outputs))) > 1:
        raise UnsupportedError("its moments are used")
    view = call.view()
    first = call.axis(call.integer("axis", -1), view.rank)
    gamma, beta = call.required(1), call.constant(2)
    axes = tuple(range(first, view.rank))
    return _normalize(call, "layernorm", axes, call.number("epsilon", 1e-5), (gamma, beta))


def _normalize(
    call: OnnxCall,
    layer: str,
    axes: Sequence[int],
    eps: float,
    affine: tuple[Array | None, Array | None] = (None, None),
) -> View:
    """Normalisation over some axes: the channels, or all of a sample."""
    view = call.view()
    inside = set(flat([view.axes[call.axis(a, view.rank)] for a in axes]))
    if inside == set(view.base[-1]):
        axis = "channels" if len(view.base) > 2 else "all"
    elif inside == set(flat(view.base[1:])):
        axis = "all"
    else:
        raise UnsupportedError("it normalises over axes other than the channels or a whole sample")
    arguments: dict[str, Value] = {"axis": Symbol(axis), "eps": eps}
    gamma, beta = (v if v is None else per_channel(view, v) for v in affine)
    if affine[0] is None:
        arguments["affine"] = False
        return call.emit_like(view, layer, arguments)
    if gamma is None or (beta is None and affine[1] is not None):
        raise UnsupportedError("its factors differ from pixel to pixel")
    offset = full(np.zeros(1) if beta is None else beta, view)
    states = {"gamma": full(gamma, view), "beta": offset}
    return call.emit_like(view, layer, arguments, states)


def _normalize_idiom(layer: str) -> Rule:
    def rule(call: OnnxCall) -> View:
        return _normalize(call, layer, call.integers("axes") or (), call.number("eps", 1e-5))

    return rule


def _lrn(call: OnnxCall) -> View:
    """In ONNX `alpha` is divided by the size."""
    size = call.integer("size", 1)
    arguments: dict[str, Value] = {
        "size": size,
        "alpha": call.number("alpha", 1e-4) / size,
        "beta": call.number("beta", 0.75),
        "k": call.number("bias", 1.0),
    }
    return call.emit_like(_channels_second(call, call.view()), "lrn", arguments)


def _pool(layer: str) -> Rule:
    def rule(call: OnnxCall) -> View:
        view = call.view()
        node = call.image(view)
        sizes = call.integers("kernel_shape") or ()
        window = _window(call, view, node, sizes)
        if window["dilation"] != (1, 1):
            raise UnsupportedError("its windows are dilated")
        if len(list(filter(None, call.node.outputs))) > 1:
            raise UnsupportedError("its indices are used")
        arguments = _written_window(window)
        del arguments["dilation"]
        if window["stride"] == window["kernel"]:
            del arguments["stride"]
        arguments["ceil"] = bool(call.integer("ceil_mode", 0))
        if layer == "avgpool" and call.integer("count_include_pad", 0):
            arguments["include_pad"] = any(map(sum, window["pads"]))
        if window["kernel"] == (1, 1) == window["stride"]:
            return call.image_result(node, view)
        return call.image_result(call.emit(layer, [node], arguments), view)

    return rule


def _global_pool(layer: str) -> Rule:
    def rule(call: OnnxCall) -> View:
        view = call.view()
        return call.image_result(call.emit(layer, [call.image(view)]), view)

    return rule


def _reduce(global_layer: str, layer: str) -> Rule:
    """A reduction over height and width, or one of them."""

    def rule(call: OnnxCall) -> View:
        view = call.view()
        axes = call.integers("axes", 1) or ()
        if not axes and not call.integer("noop_with_empty_axes", 0):
            axes = tuple(range(view.rank))
        chosen = {call.axis(a, view.rank) for a in axes}
        inside = set(flat([view.axes[a] for a in chosen]))
        if inside:
            view = _reduce_pixels(call, view, inside, global_layer, layer)
        keep = call.integer("keepdims", 1)
        gone: list[Axis] = [() if i in chosen else a for i, a in enumerate(view.axes)]
        return replace(view, axes=tuple(a for i, a in enumerate(gone) if keep or i not in chosen))

    return rule


def _reduce_pixels(
    call: OnnxCall, view: View, inside: set[Any], global_layer: str, layer: str
) -> View:
    if len(view.base) == 3:  # a row
        wanted = (*view.base[:2], (), view.base[2])
        view = replace(view, node=call.arrange(view, wanted), base=wanted, pixels=None)
    if len(view.base) != 4:
        raise UnsupportedError("it reduces axes other than height and width")
    height, width = set(view.base[1]), set(view.base[2])
    node, shape = call.records.use(view), call.records.shape(view.node)
    if inside == height | width:
        found = call.emit(global_layer, [node])
    elif inside == height:
        found = call.emit(layer, [node], {"kernel": Size((shape[1], 1))})
    elif inside == width:
        found = call.emit(layer, [node], {"kernel": Size((1, shape[2]))})
    else:
        raise UnsupportedError("it reduces axes other than height and width")
    base = tuple(() if axis and set(axis) <= inside else axis for axis in view.base)
    axes = tuple(tuple(a for a in axis if a not in inside) for axis in view.axes)
    return View(found, base, axes)


def _reduce_sum(call: OnnxCall) -> View:
    """The mean times the number of values."""
    mean = _reduce("globalavgpool", "avgpool")(call)
    count = math.prod(call.view().shape) // max(1, math.prod(mean.shape))
    return multiply(call, mean, np.array(count))


LAYER_RULES: dict[str, Rule] = {
    "AveragePool": _pool("avgpool"),
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool("globalavgpool"),
    "GlobalMaxPool": _global_pool("globalmaxpool"),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MaxPool": _pool("maxpool"),
    "ReduceMax": _reduce("globalmaxpool", "maxpool"),
    "ReduceMean": _reduce("globalavgpool", "avgpool"),
    "ReduceSum": _reduce_sum,
    LOCAL: _local,
    "netdsl.layernorm": _normalize_idiom("layernorm"),
    "netdsl.rmsnorm": _normalize_idiom("rmsnorm"),
}
