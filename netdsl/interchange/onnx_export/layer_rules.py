"""What layers of several operators are in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from netdsl.interchange.onnx_export.builder import (
    TO_NCHW,
    ExportValue,
    StoredLayout,
    per_channel,
    permuted,
    unchanged,
)
from netdsl.interchange.onnx_export.operator_rules import (
    ExportSite,
    emit_layer_by_ops,
    missing_ops,
    window_attributes,
)
from netdsl.interchange.onnx_export.weights import BatchNormStates
from netdsl.types import Node

LayerRule = Callable[[ExportSite, ExportValue], ExportValue]
"""`rule(site, x)` writes a layer of one input, and returns its result."""


def emit_layer(layer: str, site: ExportSite) -> ExportValue:
    """Writes a layer by its rule, else operator by operator."""
    rule = LAYER_RULES.get(layer)
    if rule is None:
        return emit_layer_by_ops(site)
    (x,) = site.inputs.values()
    return rule(site, x)


def find_missing_ops(layer: str, site: ExportSite) -> list[str]:
    """The operators for which a layer cannot be written."""
    return [] if layer in LAYER_RULES else missing_ops(site)


def _pass(site: ExportSite, x: ExportValue) -> ExportValue:
    return x


# ---- products


def _add_product(site: ExportSite, product: Node, layout: StoredLayout) -> list[str]:
    """Adds the weight of a product, and its bias if it has one, with a batch norm folded in."""
    weights, bias = site.weights, site.states.get("bias")
    if site.norm is not None:
        return list(weights.add_folded(product, layout, site.path, bias, site.norm))
    weight = weights.add_weight(site.graph[product.args[1]], layout, site.path)
    return [weight, weights.add_state(bias)] if bias else [weight]


def _conv(site: ExportSite, x: ExportValue) -> ExportValue:
    node = site.find("conv2d")
    shape = site.graph[node.args[1]].type.shape
    operands = _add_product(site, node, permuted(shape, TO_NCHW))
    window = window_attributes(node) | {"kernel_shape": list(shape[1:3])}
    name = site.onnx.emit("Conv", x.name, *operands, group=node.attrs["groups"], **window)
    return ExportValue(name, node.type.shape)


def _convtranspose(site: ExportSite, x: ExportValue) -> ExportValue:
    node = site.find("conv2d_dgrad")
    shape, attrs = site.graph[node.args[1]].type.shape, node.attrs
    operands = _add_product(site, node, permuted(shape, TO_NCHW))
    least = [
        (n - 1) * stride + (k - 1) * dilation + 1 - sum(pad)
        for n, k, stride, dilation, pad in zip(
            x.shape[1:3], shape[1:3], attrs["stride"], attrs["dilation"], attrs["pad"], strict=True
        )
    ]
    added = [size - n for size, n in zip(attrs["size"], least, strict=True)]
    window = window_attributes(node) | {"kernel_shape": list(shape[1:3]), "output_padding": added}
    name = site.onnx.emit("ConvTranspose", x.name, *operands, group=attrs["groups"], **window)
    return ExportValue(name, node.type.shape)


def _fc(site: ExportSite, x: ExportValue) -> ExportValue:
    """A row that was an image has its values in another order, and so has the weight."""
    node, x = site.find("matmul"), site.onnx.flatten(x)
    shape = site.graph[node.args[1]].type.shape
    layout = unchanged(shape)
    if x.flattened is not None:
        layout = StoredLayout(shape, (shape[0], *x.flattened), TO_NCHW, shape)
    operands = _add_product(site, node, layout)
    return ExportValue(site.onnx.emit("Gemm", x.name, *operands, transB=1), node.type.shape)


def _local(site: ExportSite, x: ExportValue) -> ExportValue:
    """A convolution that copies each window into the channels, then a matrix for each position."""
    onnx, node, product = site.onnx, site.find("im2col"), site.find("matmul")
    shape = site.graph[product.args[1]].type.shape
    oh, ow, units, inner = shape
    (r, s), c = node.attrs["kernel"], x.shape[3]
    copies = np.tile(np.eye(r * s), (c, 1)).reshape(c * r * s, 1, r, s)
    taps = onnx.number("taps", copies)
    columns = onnx.emit("Conv", x.name, taps, group=c, **window_attributes(node))
    layout = StoredLayout(
        shape, (oh, ow, units, r, s, c), (0, 1, 5, 3, 4, 2), (oh, ow, inner, units)
    )
    weight = site.weights.add_weight(site.graph[product.args[1]], layout, site.path)
    y = onnx.emit("MatMul", onnx.transpose(columns, (2, 3, 0, 1)), weight)
    y = onnx.transpose(y, (2, 3, 0, 1))
    if "bias" in site.states:
        bias = site.weights.add_state(site.states["bias"], permuted((oh, ow, units), (2, 0, 1)))
        y = onnx.emit("Add", y, bias)
    return ExportValue(y, (x.shape[0], oh, ow, units))


# ---- normalisation


def _channels_first(site: ExportSite, x: ExportValue, emit: Callable[[str], str]) -> ExportValue:
    """Applies `emit` to a value whose channels are on axis 1."""
    x = site.onnx.ordered(x)
    if x.channel_axis == 1:
        return replace(x, name=emit(x.name))
    order = (0, x.rank - 1, *range(1, x.rank - 1))
    y = emit(site.onnx.transpose(x.name, order))
    back = tuple(order.index(a) for a in range(x.rank))
    return replace(x, name=site.onnx.transpose(y, back))


def _affine_operands(site: ExportSite, channels: int) -> list[str]:
    """Factor and offset of each channel."""
    if "gamma" in site.states:
        return [site.weights.add_state(site.states[k]) for k in ("gamma", "beta")]
    return [
        site.onnx.number("gamma", np.ones(channels)),
        site.onnx.number("beta", np.zeros(channels)),
    ]


def _apply_affine(site: ExportSite, x: ExportValue) -> ExportValue:
    """Multiplies and adds what each channel has."""
    for key, op in (("gamma", "Mul"), ("beta", "Add")):
        if key in site.states:
            x = replace(x, name=site.onnx.emit(op, x.name, site.state(key, x.rank)))
    return x


def batch_norm_states(site: ExportSite) -> BatchNormStates:
    states = site.states
    mean, variance = states["running_mean"], states["running_var"]
    eps = float(site.arguments["eps"])
    return BatchNormStates(mean, variance, states.get("gamma"), states.get("beta"), eps)


def _batchnorm(site: ExportSite, x: ExportValue) -> ExportValue:
    norm = batch_norm_states(site)
    operands = _affine_operands(site, x.shape[-1])
    operands += [site.weights.add_state(n) for n in (norm.mean, norm.variance)]
    return _channels_first(
        site,
        x,
        lambda name: site.onnx.emit("BatchNormalization", name, *operands, epsilon=norm.eps),
    )


def _instancenorm(site: ExportSite, x: ExportValue) -> ExportValue:
    operands = _affine_operands(site, x.shape[-1])
    eps = float(site.arguments["eps"])
    return replace(x, name=site.onnx.emit("InstanceNormalization", x.name, *operands, epsilon=eps))


def _normalize_groups(site: ExportSite, x: ExportValue, groups: int) -> ExportValue:
    """Each group of channels becomes one channel, which is normalised by itself."""
    onnx, x = site.onnx, site.onnx.ordered(x)
    ones, zeros = onnx.number("ones", np.ones(groups)), onnx.number("zeros", np.zeros(groups))
    eps = float(site.arguments["eps"])

    def normalize(name: str) -> str:
        split = onnx.reshape(name, 0, groups, -1)
        y = onnx.emit("InstanceNormalization", split, ones, zeros, epsilon=eps)
        rest = x.shape[1:-1] if x.rank != 4 else x.shape[1:3]
        return onnx.reshape(y, 0, x.shape[-1], *rest)

    return _apply_affine(site, _channels_first(site, x, normalize))


def _groupnorm(site: ExportSite, x: ExportValue) -> ExportValue:
    groups = site.arguments["groups"]
    if groups == x.shape[-1] and x.rank > 2:
        operands = _affine_operands(site, x.shape[-1])
        eps = float(site.arguments["eps"])
        return _channels_first(
            site,
            x,
            lambda name: site.onnx.emit("InstanceNormalization", name, *operands, epsilon=eps),
        )
    return _normalize_groups(site, x, groups)


def _layernorm(site: ExportSite, x: ExportValue) -> ExportValue:
    onnx = site.onnx
    if site.arguments["axis"] == "all" and x.rank > 2:
        return _normalize_groups(site, x, 1)
    operands = _affine_operands(site, x.shape[-1])
    eps = float(site.arguments["eps"])
    y = onnx.emit("LayerNormalization", onnx.channels_last(x), *operands, axis=-1, epsilon=eps)
    return ExportValue(onnx.transpose(y, TO_NCHW) if x.rank == 4 else y, x.shape)


def _rmsnorm(site: ExportSite, x: ExportValue) -> ExportValue:
    onnx, x = site.onnx, site.onnx.ordered(x)
    over_all = site.arguments["axis"] == "all"
    axes = list(range(1, x.rank)) if over_all else [x.channel_axis]
    mean = onnx.reduce("ReduceMean", onnx.emit("Mul", x.name, x.name), axes)
    root = onnx.emit(
        "Sqrt", onnx.emit("Add", mean, onnx.number("eps", float(site.arguments["eps"])))
    )
    return _apply_affine(site, replace(x, name=onnx.emit("Div", x.name, root)))


def _scale(site: ExportSite, x: ExportValue) -> ExportValue:
    return _apply_affine(site, site.onnx.ordered(x))


def _prelu(site: ExportSite, x: ExportValue) -> ExportValue:
    x = site.onnx.ordered(x)
    return replace(x, name=site.onnx.emit("PRelu", x.name, site.state("slope", x.rank)))


# ---- moving values


def _flatten(site: ExportSite, x: ExportValue) -> ExportValue:
    return site.onnx.flatten(x)


def _reshape(site: ExportSite, x: ExportValue) -> ExportValue:
    onnx, shape = site.onnx, site.graph[site.result].type.shape
    last = onnx.channels_last(x)
    if len(shape) != 4:
        return ExportValue(onnx.reshape(last, 0, *shape[1:]), shape)
    return ExportValue(onnx.transpose(onnx.reshape(last, 0, *shape[1:]), TO_NCHW), shape)


def _shuffle(site: ExportSite, x: ExportValue) -> ExportValue:
    onnx, groups, c = site.onnx, site.arguments["groups"], x.shape[-1]

    def shuffle(name: str) -> str:
        rest = x.shape[1:-1]
        split = onnx.reshape(name, 0, groups, c // groups, *rest)
        mixed = onnx.transpose(split, (0, 2, 1, *range(3, 3 + len(rest))))
        return onnx.reshape(mixed, 0, c, *rest)

    return _channels_first(site, x, shuffle)


def _pixel_shuffle(site: ExportSite, x: ExportValue) -> ExportValue:
    onnx, (fh, fw) = site.onnx, site.arguments["factor"]
    shape = site.graph[site.result].type.shape
    _, h, w, c = shape
    if fh == fw:
        name = onnx.emit("DepthToSpace", x.name, blocksize=fh, mode="CRD")
        return ExportValue(name, shape)
    split = onnx.reshape(x.name, 0, c, fh, fw, h // fh, w // fw)
    return ExportValue(onnx.reshape(onnx.transpose(split, (0, 1, 4, 2, 5, 3)), 0, c, h, w), shape)


_RESIZE: Mapping[str, Mapping[str, str]] = {
    "nearest": {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "bilinear": {"coordinate_transformation_mode": "half_pixel"},
}


def _upsample(site: ExportSite, x: ExportValue) -> ExportValue:
    shape, mode = site.graph[site.result].type.shape, site.arguments["mode"]
    factors = [
        float(after // before) for after, before in zip(shape[1:3], x.shape[1:3], strict=True)
    ]
    scales = site.onnx.constant(f"{site.path}.scales", [1.0, 1.0, *factors], "float32")
    kind = "nearest" if mode == "nearest" else "linear"
    name = site.onnx.emit("Resize", x.name, "", scales, mode=kind, **_RESIZE[mode])
    return ExportValue(name, shape)


def _pad(site: ExportSite, x: ExportValue) -> ExportValue:
    onnx, a = site.onnx, site.arguments
    sides = [a[k] for k in ("channels", "height", "width")]
    pads = onnx.number("pads", [0, *(s[0] for s in sides), 0, *(s[-1] for s in sides)])
    value = [onnx.number("value", float(a["value"]))] if a["mode"] == "constant" else []
    name = onnx.emit("Pad", x.name, pads, *value, mode=str(a["mode"]))
    return ExportValue(name, site.graph[site.result].type.shape)


def _constant(site: ExportSite, x: ExportValue) -> ExportValue:
    onnx, x = site.onnx, site.onnx.ordered(x)
    value = np.array(site.arguments["value"], np.float64)
    wide = onnx.number("value", per_channel(value.shape, x.rank).store(value))
    return replace(x, name=onnx.emit("Expand", wide, onnx.emit("Shape", x.name)))


LAYER_RULES: dict[str, LayerRule] = {
    "conv": _conv,
    "depthwise": _conv,
    "convtranspose": _convtranspose,
    "local": _local,
    "fc": _fc,
    "flatten": _flatten,
    "identity": _pass,
    "dropout": _pass,
    "drop_path": _pass,
    "batchnorm": _batchnorm,
    "instancenorm": _instancenorm,
    "groupnorm": _groupnorm,
    "layernorm": _layernorm,
    "rmsnorm": _rmsnorm,
    "scale": _scale,
    "prelu": _prelu,
    "reshape": _reshape,
    "shuffle": _shuffle,
    "pixel_shuffle": _pixel_shuffle,
    "upsample": _upsample,
    "pad": _pad,
    "constant": _constant,
}
"""Layers that one operator of ONNX does, or that the IR has as several operators."""
