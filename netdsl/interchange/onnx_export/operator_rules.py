"""What operators of the IR are in ONNX, for layers without a rule of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from netdsl.errors import internal_error
from netdsl.interchange.onnx_export.builder import (
    ExportBuilder,
    ExportValue,
    per_channel,
    stored_axis,
)
from netdsl.interchange.onnx_export.weights import BatchNormStates, ExportWeights
from netdsl.types import Graph, Node

MIN_OPSET = 17
OPSETS = {"gelu": 20, "mish": 18}
"""The first version of ONNX's operators that has an operator of the IR, where that is above the
least that is written."""


@dataclass(frozen=True)
class ExportSite:
    """A layer that is written to an ONNX graph. `states` holds its states by their own names,
    `inputs` the values that its input nodes have, by the names of these; `norm` is a batch norm to
    fold into it."""

    onnx: ExportBuilder
    weights: ExportWeights
    path: str
    result: str
    inputs: Mapping[str, ExportValue]
    arguments: Mapping[str, Any]
    states: Mapping[str, str]
    norm: BatchNormStates | None = None

    @property
    def graph(self) -> Graph:
        return self.weights.graph

    def own_nodes(self) -> list[Node]:
        """The nodes between inputs and result, in an order in which they can run."""
        ordered: dict[str, Node] = {}
        stack = [(self.result, False)]
        while stack:
            name, is_ready = stack.pop()
            if is_ready:
                ordered[name] = self.graph[name]
            elif name not in ordered and name not in self.inputs:
                stack += [(name, True), *((a, False) for a in reversed(self.graph[name].args))]
        return list(ordered.values())

    def find(self, op: str) -> Node:
        """The layer's last node of an operator."""
        return next(n for n in reversed(self.own_nodes()) if n.op == op)

    def state(self, name: str, rank: int) -> str:
        """One of the layer's states with a value for each channel, to broadcast with a value of
        that rank."""
        key = self.states[name]
        return self.weights.add_state(key, per_channel(self.graph[key].type.shape, rank))


def emit_layer_by_ops(site: ExportSite) -> ExportValue:
    """Writes a layer operator by operator."""
    values: dict[str, ExportValue | Node] = dict(site.inputs)
    for node in site.own_nodes():
        operands = [values[a] for a in node.args]
        is_constant = all(isinstance(x, Node) for x in operands)
        values[node.name] = node if is_constant else OP_RULES[node.op](site, node, *operands)
    result = values[site.result]
    if isinstance(result, Node):
        raise internal_error(f"{site.path} does not depend on its input")
    return result


def missing_ops(site: ExportSite) -> list[str]:
    """The operators of a layer that have no rule, or that compute weights from others, from which
    these could not be restored."""
    missing, leaves = set(), dict[str, set[str]]()
    for node in site.own_nodes():
        parts = (leaves.get(a, {"input"}) for a in node.args)
        leaves[node.name] = set().union(*parts) if node.args else {node.op}
        if "input" in leaves[node.name]:
            if node.op not in OP_RULES or not node.attrs.get("keepdims", True):
                missing.add(node.op)
        elif node.args and "state" in leaves[node.name]:
            missing.add(node.op)
    return sorted(missing)


OpRule = Callable[..., ExportValue]
"""`rule(site, node, *operands)` writes a node; an operand is a value of the ONNX graph, or a node
that is a state or a constant."""


def _unary(op: str, **attrs: Any) -> OpRule:
    def rule(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
        return replace(x, name=site.onnx.emit(op, x.name, **attrs))

    return rule


def _attributes(op: str, **names: str) -> OpRule:
    """An operator whose attributes ONNX has under other names."""

    def rule(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
        attrs = {theirs: float(node.attrs[ours]) for theirs, ours in names.items()}
        return replace(x, name=site.onnx.emit(op, x.name, **attrs))

    return rule


def _gelu(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    kind = node.attrs["approximate"] or "none"
    return replace(x, name=site.onnx.emit("Gelu", x.name, approximate=kind))


def _silu(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    share = site.onnx.emit("Sigmoid", x.name)
    return replace(x, name=site.onnx.emit("Mul", x.name, share))


def _clamp(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    low, high = (site.onnx.number(k, float(node.attrs[k])) for k in ("low", "high"))
    return replace(x, name=site.onnx.emit("Clip", x.name, low, high))


def _cast(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    """To the type of all that is computed."""
    return replace(x, name=site.onnx.emit("Cast", x.name, to=site.onnx.dtype))


def _binary(op: str) -> OpRule:
    def rule(site: ExportSite, node: Node, x: Any, z: Any) -> ExportValue:
        values = [site.onnx.ordered(v) for v in (x, z) if isinstance(v, ExportValue)]
        rank = max(v.rank for v in values)
        names = [
            site.onnx.ordered(v).name if isinstance(v, ExportValue) else _constant(site, v, rank)
            for v in (x, z)
        ]
        return ExportValue(site.onnx.emit(op, *names), node.type.shape)

    return rule


def _constant(site: ExportSite, node: Node, rank: int) -> str:
    """A state or a constant with a value for each channel, or one for all."""
    layout = per_channel(node.type.shape, rank)
    if node.op == "state":
        return site.weights.add_state(node.name, layout)
    return site.onnx.number("value", layout.store(site.weights.evaluate(node.name)))


def _concat(site: ExportSite, node: Node, *xs: ExportValue) -> ExportValue:
    axis = stored_axis(node.type.rank, node.attrs["axis"])
    names = (site.onnx.ordered(x).name for x in xs)
    return ExportValue(site.onnx.emit("Concat", *names, axis=axis), node.type.shape)


def _slice(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    x = site.onnx.ordered(x)
    start, stop, step = (node.attrs[k] for k in ("start", "stop", "step"))
    cut = [
        a
        for a, size in enumerate(x.shape)
        if a > 0 and (start[a], stop[a], step[a]) != (0, size, 1)
    ]
    if not cut:
        return x
    axes = [stored_axis(x.rank, a) for a in cut]
    parts = ([v[a] for a in cut] for v in (start, stop))
    first, last = (site.onnx.number(k, v) for k, v in zip(("starts", "ends"), parts, strict=True))
    more = (site.onnx.number("axes", axes), site.onnx.number("steps", [step[a] for a in cut]))
    return ExportValue(site.onnx.emit("Slice", x.name, first, last, *more), node.type.shape)


def _reduction(over_image: str, over_axes: str) -> OpRule:
    """A reduction whose axes stay with the size 1."""

    def rule(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
        onnx, x, axes = site.onnx, site.onnx.ordered(x), node.attrs["axes"]
        if x.rank == 4 and axes == (1, 2):
            return ExportValue(onnx.emit(over_image, x.name), node.type.shape)
        name = onnx.reduce(over_axes, x.name, [stored_axis(x.rank, a) for a in axes])
        return ExportValue(name, node.type.shape)

    return rule


def window_attributes(node: Node) -> dict[str, Any]:
    """The attributes of a sliding window as ONNX has them."""
    (top, bottom), (left, right) = node.attrs["pad"]
    found = {"strides": list(node.attrs["stride"]), "pads": [top, left, bottom, right]}
    if "kernel" in node.attrs:
        found["kernel_shape"] = list(node.attrs["kernel"])
    if "dilation" in node.attrs:
        found["dilations"] = list(node.attrs["dilation"])
    return found


def _max_pool(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    name = site.onnx.emit("MaxPool", x.name, **window_attributes(node))
    return ExportValue(name, node.type.shape)


def _avg_pool(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    """Padding that counts in part, as in ceil mode, becomes part of the image."""
    window, name = window_attributes(node), x.name
    pad, counted = node.attrs["pad"], node.attrs["counted"]
    if counted not in (pad, ((0, 0), (0, 0))):
        (top, bottom), (left, right) = counted
        amounts = site.onnx.number("pads", [0, 0, top, left, 0, 0, bottom, right])
        name = site.onnx.emit("Pad", name, amounts)
        rest = [p - c for p, c in zip(window["pads"], (top, left, bottom, right), strict=True)]
        window["pads"] = rest
    includes = int(counted == pad and counted != ((0, 0), (0, 0)))
    pooled = site.onnx.emit("AveragePool", name, count_include_pad=includes, **window)
    return ExportValue(pooled, node.type.shape)


def _along_channels(op: str) -> OpRule:
    def rule(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
        x = site.onnx.ordered(x)
        return replace(x, name=site.onnx.emit(op, x.name, axis=x.channel_axis))

    return rule


def _lrn(site: ExportSite, node: Node, x: ExportValue) -> ExportValue:
    """ONNX divides alpha by the size, and takes images alone."""
    onnx, a, x = site.onnx, node.attrs, site.onnx.ordered(x)
    size = a["size"]
    attrs = {"size": size, "alpha": a["alpha"] * size, "beta": a["beta"], "bias": a["k"]}
    if x.rank == 4:
        return replace(x, name=onnx.emit("LRN", x.name, **attrs))
    # each position of each sample becomes a sample of one pixel
    rows = onnx.reshape(x.name, 0 if x.rank == 2 else -1, x.shape[-1], 1, 1)
    found = onnx.emit("LRN", rows, **attrs)
    return replace(x, name=onnx.reshape(found, 0 if x.rank == 2 else -1, *x.shape[1:]))


OP_RULES: dict[str, OpRule] = {
    "relu": _unary("Relu"),
    "leaky_relu": _attributes("LeakyRelu", alpha="slope"),
    "elu": _attributes("Elu", alpha="alpha"),
    "gelu": _gelu,
    "clamp": _clamp,
    "sigmoid": _unary("Sigmoid"),
    "tanh": _unary("Tanh"),
    "softsign": _unary("Softsign"),
    "hardswish": _unary("HardSwish"),
    "silu": _silu,
    "hardsigmoid": _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "selu": _unary("Selu"),
    "softplus": _unary("Softplus"),
    "mish": _unary("Mish"),
    "softmax": _along_channels("Softmax"),
    "log_softmax": _along_channels("LogSoftmax"),
    "lrn": _lrn,
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "cast": _cast,
    "concat": _concat,
    "slice": _slice,
    "reduce_mean": _reduction("GlobalAveragePool", "ReduceMean"),
    "reduce_max": _reduction("GlobalMaxPool", "ReduceMax"),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
}
