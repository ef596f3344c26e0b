"""What a picture is to maximise, as a graph: the activation of a channel, and diversity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.verifier import verify_graph
from netdsl.language.network import Network
from netdsl.ops import OPS
from netdsl.passes import pass_manager
from netdsl.types import Array, Graph, Node, TensorType

CHOSEN, CHOSEN_BEFORE, PAIRS = "chosen", "chosen_before", "pairs"
SCORE, PEAK, GRADIENT = "score", "peak", "gradient"
_SATURATING = ("sigmoid", "hardsigmoid", "softmax", "softsign", "tanh")
"""Activations whose gradient vanishes where they are large: the value before them is climbed, as
Olah et al. 2017 climb the scores of classes before the softmax."""
_MOVING = ("concat", "max_pool", "avg_pool", "reduce_max", "reduce_mean", "reshape", "slice")
"""Operators that only select, move or average values."""


@dataclass(frozen=True)
class FeatureObjective:
    """A place, and whether the value at the centre of its maps counts instead of their mean. If
    `is_diverse`, pictures of the same channel are to differ."""

    place: str
    is_neuron: bool = False
    is_diverse: bool = False


@dataclass(frozen=True)
class AscentGraph:
    """A graph from pictures to `score` [N], the activation of each picture's channel; `peak` [N],
    its largest value; and `gradient`, that of the sum of all objectives with respect to the
    pictures.

    Its inputs are the pictures; `chosen`, the weight of each channel for each picture [N,C]; if
    `has_value_before`, `chosen_before`, the same for the value before the activation function that
    the place ends in; and for a diverse objective `pairs` [N,N], the weight of the similarity of
    two pictures."""

    graph: Graph
    channels: int
    has_value_before: bool
    is_diverse: bool


def build_ascent_graph(network: Network, objective: FeatureObjective) -> AscentGraph:
    """Raises NetError if there is no such place."""
    target, image = network.find_node(objective.place), network.image_input
    outputs = {"value": target.name}
    before = Builder(network.graph, network.dtype)
    unlimited = _strip_activation(before, target, _SATURATING)
    outputs["value"] = unlimited.name
    unblocked = _strip_activation(before, unlimited, _blocking_activations())
    outputs["before"] = unblocked.name
    maps = _find_last_maps(network.graph, target) if objective.is_diverse else None
    if maps is not None:
        outputs["maps"] = maps.name
    forward = pass_manager.run_passes(
        before.build({k: before.nodes[v] for k, v in outputs.items()}, name=network.name),
        pass_manager.FORWARD_PASSES,
    )
    b = Builder(forward, network.dtype)
    value, value_before = (b.nodes[forward.outputs[k]] for k in ("value", "before"))
    has_value_before = value_before.name != value.name
    with b.at(None, "ascent"):
        score = _select_channels(b, value, CHOSEN, objective.is_neuron)
        peak = _select_peaks(b, value, CHOSEN)
        total = b.reduce_sum(score, axes=(0,))
        if has_value_before:
            rest = _select_channels(b, value_before, CHOSEN_BEFORE, objective.is_neuron)
            total = b.add(total, b.reduce_sum(rest, axes=(0,)))
        if maps is not None:
            total = b.sub(total, _weigh_similarities(b, b.nodes[forward.outputs["maps"]]))
    gradient = grad(b, total, [b.nodes[image]])[image]
    graph = b.build({SCORE: score, PEAK: peak, GRADIENT: gradient}, name=f"{network.name}.ascent")
    compiled = pass_manager.run_passes(verify_graph(graph), pass_manager.TRAINING_STEP_PASSES)
    return AscentGraph(compiled, value.type.shape[-1], has_value_before, objective.is_diverse)


def _blocking_activations() -> tuple[str, ...]:
    return tuple(name for name, op in OPS.items() if "activation" in op.traits)


def _strip_activation(b: Builder, node: Node, names: tuple[str, ...]) -> Node:
    """The same value without the activation function of these names that it ends in, looking
    through operators that only move values; the node itself if there is none."""
    if node.op in names:
        return b.nodes[node.args[0]]
    if node.op not in _MOVING:
        return node
    args = [_strip_activation(b, b.nodes[a], names) for a in node.args]
    with b.at(node.span, f"before.{node.name}"):
        return b.emit(node.op, *args, **node.attrs)


def _find_last_maps(graph: Graph, target: Node) -> Node:
    """The last feature maps, larger than one pixel, that a value is computed from, itself
    included."""
    needed = graph.backward_slice(target.name)
    found = [
        n
        for n in graph.nodes.values()
        if n.name in needed and n.type.rank == 4 and n.op != "state" and max(n.type.shape[1:3]) > 1
    ]
    return found[-1]


def _select_channels(b: Builder, value: Node, weights: str, is_neuron: bool) -> Node:
    """The values of the chosen channels, [N]: their means over positions, or those at the
    centre."""
    n, *size, channels = value.type.shape
    if size and is_neuron:
        start = (0, *(s // 2 for s in size), 0)
        stop = (n, *(s // 2 + 1 for s in size), channels)
        value = b.slice(value, start=start, stop=stop, step=(1,) * value.type.rank)
    if size:
        value = b.reduce_mean(value, axes=tuple(range(1, value.type.rank - 1)))
    return _sum_chosen(b, value, weights)


def _select_peaks(b: Builder, value: Node, weights: str) -> Node:
    """The largest values of the chosen channels, [N]."""
    if value.type.rank > 2:
        value = b.reduce_max(value, axes=tuple(range(1, value.type.rank - 1)))
    return _sum_chosen(b, value, weights)


def _sum_chosen(b: Builder, value: Node, weights: str) -> Node:
    chosen = b.input(weights, TensorType(value.type.shape, b.dtype))
    return b.reduce_sum(b.mul(value, chosen), axes=(1,))


def _weigh_similarities(b: Builder, maps: Node) -> Node:
    """The weighted sum of the cosines between the Gram matrices of pictures (Olah et al. 2017,
    section "Diversity")."""
    n, height, width, channels = maps.type.shape
    columns = b.transpose(b.reshape(maps, shape=(n, height * width, channels)), perm=(0, 2, 1))
    grams = b.reshape(b.matmul(columns, columns), shape=(n, channels * channels))
    squares = b.reduce_sum(b.mul(grams, grams), axes=(1,), keepdims=True)
    unit = b.div(grams, b.sqrt(b.add(squares, b.const(1e-20))))
    pairs = b.input(PAIRS, TensorType((n, n), b.dtype))
    return b.reduce_sum(b.mul(b.matmul(unit, unit), pairs), axes=(0, 1))


def weigh_pairs(channels: Array, weights: Array) -> Array:
    """The weights [N,N] of the similarities of pictures: for each picture its own weight, divided
    among the other pictures of its channel."""
    is_pair = (channels[:, None] == channels) & ~np.eye(len(channels), dtype=bool)
    others = np.maximum(is_pair.sum(axis=1, keepdims=True), 1)
    return (is_pair * weights[:, None] / others).astype(np.float32)
