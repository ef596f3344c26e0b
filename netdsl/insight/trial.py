"""A net tried on drawn images, in float64: what flows through its places, and back."""

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
    """The largest difference of two places' values, as a share of the largest value of both; NaN
    where both are zero everywhere, which compares nothing. They must have one shape."""
    network = _elaborate_network(program, net, training)
    x, y = _compute_values(network.graph, network.find_node(a).name, network.find_node(b).name)
    largest = max(np.abs(x).max(), np.abs(y).max())
    return float(np.abs(x - y).max() / largest) if largest else math.nan


def deviation(program: Program, net: str, place: str, training: bool) -> float:
    """The standard deviation of all that flows out of a place, where the input is white noise of
    deviation 1."""
    network = _elaborate_network(program, net, training)
    return float(_compute_values(network.graph, network.find_node(place).name)[0].std())


def gradient(program: Program, net: str, place: str, training: bool) -> float:
    """The standard deviation of the gradient that comes back to a place, where the main output's
    is white noise of deviation 1."""
    network = _elaborate_network(program, net, training)
    b = Builder(network.graph, network.dtype)
    output, target = b.nodes[network.graph.outputs["main"]], network.find_node(place)
    g = grad(b, output, [target], cotangent=b.input("u", output.type))[target.name]
    return float(_compute_values(b.build({"g": g}), g.name)[0].std())


def _elaborate_network(program: Program, net: str, training: bool) -> Network:
    return elaborate(program, net, Settings(batch=BATCH, training=training, dtype="float64"))


def _compute_values(graph: Graph, *names: str) -> list[Array]:
    """Values of nodes, with inputs as drawn and weights as training begins with them."""
    subgraph = extract_subgraph(graph, graph.backward_slice(*names), {n: n for n in names})
    inputs: Mapping[str, Array] = draw_inputs(subgraph, SEED, np.random.default_rng(SEED))
    values = evaluate_graph(
        subgraph, {**inputs, **{n.name: draw_initial_value(n, SEED) for n in subgraph.states}}
    )
    return [values[name] for name in names]
