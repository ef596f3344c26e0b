"""The layers that give the class scores, and their first weights behind trained features."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from netdsl.language.network import LayerInfo, Network
from netdsl.types import Attrs, Graph, Node

SCORE_SCALE = 0.01
"""Features of a trained net may be far larger than 1 (those of SqueezeNet are 40), and so would be
the first scores of the usual initialisation: they would be sure of wrong classes, and training
would have to unlearn the draw before it learns. Scores that begin near 0 give all classes the same
probability, whatever the features (Kolesnikov et al. 2020, "Big Transfer", begin with zeros)."""
PASSING_OPS = ("reshape", "cast", "dropout")
"""Operators that leave scores as they are, apart from dropout's zeros."""
POOLING_OPS = ("reduce_mean", "reduce_max", "avg_pool", "max_pool")


def find_score_layer(network: Network, node: Node) -> LayerInfo | None:
    """The layer with weights whose values, perhaps pooled, are those of `node`."""
    layers = {x.result: x for x in network.layers if weight_name(x) in network.graph.nodes}
    while node.name not in layers and node.op in (*PASSING_OPS, *POOLING_OPS):
        node = network.graph[node.args[0]]
    return layers.get(node.name)


def skip_ops(graph: Graph, node: Node, ops: Collection[str]) -> Node:
    """The first node at or before `node`, along first operands, whose operator is none of `ops`."""
    while node.op in ops:
        node = graph[node.args[0]]
    return node


def shrink_score_weights(
    network: Network, drawn: Collection[str], factor: float
) -> tuple[Node, ...]:
    """The states among `drawn` that are weights of a layer of class scores without an initialiser
    in the text, with an initialisation smaller by `factor`."""
    outputs = map(network.graph.__getitem__, network.graph.outputs.values())
    layers = (find_score_layer(network, node) for node in outputs)
    names = {weight_name(x) for x in layers if x and not any(a.name == "weight" for a in x.written)}
    return tuple(_shrink(network.graph[name], factor) for name in sorted(names & set(drawn)))


def weight_name(layer: LayerInfo) -> str:
    """The name of a layer's weights, if it has any."""
    return f"{layer.weight_path}.weight"


def _shrink(state: Node, factor: float) -> Node:
    distribution, scale = state.attrs["init"]
    return replace(state, attrs=Attrs({**state.attrs, "init": (distribution, scale * factor)}))
