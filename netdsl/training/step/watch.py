"""Graphs that measure gradients and activations, layer by layer, for `--watch`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.errors import fail, suggest_name
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.verifier import verify_graph
from netdsl.language.network import Network
from netdsl.ops import OPS
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.step.graphs import build_forward, trainable_weights
from netdsl.training.step.rank_reduction import reduce_gradients, sort_by_readiness
from netdsl.types import Array, Graph, Node

WATCHABLE = ("gradients", "activations")


@dataclass(frozen=True)
class WatchRequest:
    """The quantities to watch, and the number of updates between two measurements."""

    quantities: tuple[str, ...]
    every: int = 100


def parse_watch(text: str, every: int) -> WatchRequest:
    """Parses a list such as `gradients,activations`. Raises NetError for an unknown quantity."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in WATCHABLE:
            help = suggest_name(name, WATCHABLE, "what can be watched")
            raise fail(f"`{name}` cannot be watched", help=help)
    return WatchRequest(names, every)


def build_watch_graph(network: Network, recipe: Recipe, what: Sequence[str]) -> Graph:
    """The training step without its updates. Its outputs are moments, named `gradients WEIGHT` and
    `activations LAYER`, and `dead LAYER`."""
    f = build_forward(network, recipe)
    b, outputs = f.b, {}
    with b.at(None, "watch"):
        if "activations" in what:
            for path, node in _activations(network).items():
                outputs[f"activations {path}"] = _moments(b, node)
                outputs[f"dead {path}"] = _dead(b, node)
    if "gradients" in what:
        gradients = grad(b, f.loss, trainable_weights(network, recipe))
        if network.ranks > 1:
            gradients = reduce_gradients(b, sort_by_readiness(b, gradients), network.ranks)
        with b.at(None, "watch"):
            outputs |= {f"gradients {name}": _moments(b, g) for name, g in gradients.items()}
    return verify_graph(b.build(outputs, name=f"{network.name}.watch"))


def _activations(network: Network) -> dict[str, Node]:
    """The outputs of all layers that compute something."""
    nodes = ((x.path, network.graph[x.result]) for x in network.layers)
    return {path: node for path, node in nodes if OPS[node.op].kind not in ("view", "leaf")}


def _moments(b: Builder, x: Node) -> Node:
    return b.moments(x, axes=tuple(range(x.type.rank)))


def _dead(b: Builder, x: Node) -> Node:
    """The share of units (channels) that are zero at every position of every image of the batch."""
    most = b.reduce_max(b.mul(x, x), axes=tuple(range(x.type.rank - 1)))
    return b.reduce_mean(b.cast(b.equal(most, b.const(0.0)), dtype=b.dtype), axes=(0,))


def summarise_watch(graph: Graph, out: Mapping[str, Array], network: Network) -> dict[str, Any]:
    """Norm, mean and standard deviation of everything watched, and the share of dead units, by
    layer."""
    sizes = {f"activations {p}": n.type.size for p, n in _activations(network).items()}
    sizes |= {f"gradients {n.name}": n.type.size for n in network.parameters}
    found: dict[str, Any] = {}
    for label in graph.outputs:
        kind, path = label.split(" ", 1)
        if kind == "dead":
            continue
        mean, variance = (float(v) for v in out[label])
        entry = {
            "norm": math.sqrt(sizes[label] * (variance + mean * mean)),
            "mean": mean,
            "deviation": math.sqrt(variance),
        }
        if kind == "activations":
            entry["dead"] = float(out[f"dead {path}"])
        found.setdefault(kind, {})[path] = entry
    return found
