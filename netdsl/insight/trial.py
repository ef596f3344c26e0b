"""A net tried on drawn images, in float64: what flows through its places, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from netdsl.insight.gradcheck import drawn_inputs
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


def difference(program: Program, net: str, a: str, b: str, training: bool) -> float:
    """The largest difference of two places' values, as a share of the largest value of both; NaN
    where both are zero everywhere, which compares nothing. They must have one shape."""
    network = _network(program, net, training)
    x, y = _values(network.graph, network.find_node(a).name, network.find_node(b).name)
    largest = max(np.abs(x).max(), np.abs(y).max())
    return float(np.abs(x - y).max() / largest) if largest else math.nan


def deviation(program: Program, net: str, place: str, training: bool) -> float:
    """The standard deviation of all that flows out of a place, where the input is white noise of
    deviation 1."""
    network = _network(program, net, training)
    return float(_values(network.graph, network.find_node(place).name)[0].std())


def gradient(program: Program, net: str, place: str, training: bool) -> float:
    """The standard deviation of the gradient that comes back to a place, where the main output's
    is white noise of deviation 1."""
    network = _network(program, net, training)
    b = Builder(network.graph, network.dtype)
    out, at = b.nodes[network.graph.outputs["main"]], network.find_node(place)
    g = grad(b, out, [at], cotangent=b.input("u", out.type))[at.name]
    return float(_values(b.build({"g": g}), g.name)[0].std())


def _network(program: Program, net: str, training: bool) -> Network:
    return elaborate(program, net, Settings(batch=BATCH, training=training, dtype="float64"))


def _values(graph: Graph, *names: str) -> list[Array]:
    """Values of nodes, with inputs as drawn and weights as training begins with them."""
    part = extract_subgraph(graph, graph.backward_slice(*names), {n: n for n in names})
    given: Mapping[str, Array] = drawn_inputs(part, SEED, np.random.default_rng(SEED))
    found = evaluate_graph(
        part, {**given, **{n.name: draw_initial_value(n, SEED) for n in part.states}}
    )
    return [found[name] for name in names]
