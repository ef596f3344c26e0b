"""Runs a net on random images in float64: the values at its places, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from netdsl.insight.gradcheck import draw_inputs
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_graph
from netdsl.ir.subgraph import extract_subgraph
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.runtime.state import draw_initial_value
from netdsl.types import Array, Graph

BATCH = 4
SEED = 1


def max_difference(program: Program, net: str, a: str, b: str, training: bool) -> float:
    """The largest difference between the values of two places, as a fraction of the largest value
    of both; NaN if both are zero everywhere, which compares nothing. They must have the same
    shape."""
    network = _elaborate_network(program, net, training)
    x, y = _compute_values(network.graph, network.find_node(a).name, network.find_node(b).name)
    largest = max(np.abs(x).max(), np.abs(y).max())
    return float(np.abs(x - y).max() / largest) if largest else math.nan


def deviation(program: Program, net: str, place: str, training: bool) -> float:
    """The standard deviation of a place's output for white noise of deviation 1 as input."""
    network = _elaborate_network(program, net, training)
    return float(_compute_values(network.graph, network.find_node(place).name)[0].std())


def gradient(program: Program, net: str, place: str, training: bool) -> float:
    """The standard deviation of the gradient at a place, for white noise of deviation 1 as the
    gradient of the main output."""
    network = _elaborate_network(program, net, training)
    b = Builder(network.graph, network.dtype)
    output, target = b.nodes[network.graph.outputs["main"]], network.find_node(place)
    g = grad(b, output, [target], cotangent=b.input("u", output.type))[target.name]
    return float(_compute_values(b.build({"g": g}), g.name)[0].std())


def _elaborate_network(program: Program, net: str, training: bool) -> Network:
    return elaborate(program, net, Settings(batch=BATCH, training=training, dtype="float64"))


def _compute_values(graph: Graph, *names: str) -> list[Array]:
    """The values of nodes, for random inputs and initial weights."""
    subgraph = extract_subgraph(graph, graph.backward_slice(*names), {n: n for n in names})
    inputs: Mapping[str, Array] = draw_inputs(subgraph, SEED, np.random.default_rng(SEED))
    values = evaluate_graph(
        subgraph, {**inputs, **{n.name: draw_initial_value(n, SEED) for n in subgraph.states}}
    )
    return [values[name] for name in names]
