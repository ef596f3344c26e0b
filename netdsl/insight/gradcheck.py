"""Checks the gradients of a whole net against finite differences, layer by layer, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder, is_float
from netdsl.ir.interpreter import evaluate_graph
from netdsl.ir.numerical_gradient import compute_directional_error
from netdsl.language.elaborate import Settings, elaborate, shrink_settings
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.runtime.state import draw_initial_value
from netdsl.types import Array, Graph, Node

TOLERANCE = 1e-5
GRADCHECK_SETTINGS = Settings(batch=2, training=True, dtype="float64")
_MIN_SCALE = 0.02
"""Weights with a smaller scale are enlarged for the check: a gradient near 0 proves nothing."""
_STEPS = (1e-4, 1e-5, 1e-5, 1e-6, 1e-6)
"""Steps of the differences, one try each: a ReLU's kink that affects one need not affect all."""


@dataclass(frozen=True)
class LayerCheck:
    """The largest relative error of a layer's gradients, by its inputs and by its weights."""

    name: str
    error: float

    @property
    def ok(self) -> bool:
        return self.error < TOLERANCE


def gradcheck(
    program: Program, net: str | None = None, seed: int = 1, shrink: int | None = None
) -> Iterator[LayerCheck]:
    """Yields the errors of all layers in order, of a net elaborated as a training step at batch 2;
    `shrink` divides its channels.

    Each layer is checked in place, on the values that reach it; the last row is the gradient of the
    whole net by all weights together.
    """
    network = elaborate(program, net, replace(GRADCHECK_SETTINGS, shrink=shrink_settings(shrink)))
    rng = np.random.default_rng(seed)
    values = evaluate_graph(network.graph, _draw_values(network.graph, seed, rng))
    for layer in network.layers:
        if layer.result in layer.nodes:
            error = _compute_layer_error(network.graph, layer.nodes, layer.result, values, rng)
            if error is not None:
                yield LayerCheck(layer.path, error)
    network_check = _check_network(network, values, rng)
    if network_check is not None:
        yield network_check


def _draw_values(graph: Graph, seed: int, rng: np.random.Generator) -> dict[str, Array]:
    """Initial states (constant ones perturbed, so that no gradient hides behind a 0) and random
    inputs."""
    values: dict[str, Array] = {}
    for node in graph.states:
        value = draw_initial_value(node, seed)
        distribution, scale = node.attrs["init"]
        if node.attrs["trainable"] and distribution == "constant":
            value = value + 0.1 * rng.standard_normal(value.shape)
        elif 0 < scale < _MIN_SCALE:
            value = value * (_MIN_SCALE / scale)
        values[node.name] = value
    return values | draw_inputs(graph, seed, rng)


def draw_inputs(graph: Graph, seed: int, rng: np.random.Generator) -> dict[str, Array]:
    """Every input of a graph: white noise for images, and `seed` for counters and seeds."""
    return {
        n.name: rng.standard_normal(n.type.shape)
        if is_float(n.type)
        else np.asarray(seed % 1000, dtype=n.type.dtype)
        for n in graph.inputs
    }


def _compute_layer_error(
    graph: Graph,
    nodes: Sequence[str],
    result: str,
    values: Mapping[str, Array],
    rng: np.random.Generator,
) -> float | None:
    """The largest error of one layer cut out of its net; None if nothing in it has a gradient."""
    b = Builder(dtype="float64")
    required = _find_required_nodes(graph, nodes, result)
    for name in required:
        for operand in graph[name].args:
            if operand not in required and operand not in b.nodes:
                _add_leaf(b, graph[operand])
        _copy_node(b, graph[name])
    y = b.nodes[result]
    leaves = [n for n in b.nodes.values() if n.op in ("input", "state") and is_float(n.type)]
    u = b.input("u", y.type)
    gradients = grad(b, y, leaves, cotangent=u)
    inputs = {n.name: values[n.name] for n in b.nodes.values() if n.name in values}
    for n in leaves:
        # zeros left by a ReLU are ties for a maximum, which is not differentiable there
        if n.op == "input":
            inputs[n.name] = inputs[n.name] + 1e-2 * rng.standard_normal(n.type.shape)
    inputs = {k: v for k, v in inputs.items() if b.nodes[k].op in ("input", "state")}
    inputs["u"] = rng.standard_normal(y.type.shape)
    subgraph = b.build({"y": y})
    errors = [
        _find_smallest_error(subgraph, inputs, {n.name: gradients[n.name].name}, rng)
        for n in leaves
    ]
    return max(errors) if errors else None


def _find_required_nodes(graph: Graph, nodes: Sequence[str], result: str) -> list[str]:
    """The nodes of a layer that its result depends on, in order."""
    required = {result}
    for name in reversed(nodes):
        if name in required:
            required.update(graph[name].args)
    return [n for n in nodes if n in required]


def _add_leaf(b: Builder, node: Node) -> None:
    if node.op in ("const", "state"):
        _copy_node(b, node)
    else:
        b.input(node.name, node.type)


def _copy_node(b: Builder, node: Node) -> None:
    b.emit(node.op, *(b.nodes[a] for a in node.args), name=node.name, **node.attrs)


def _find_smallest_error(
    graph: Graph,
    inputs: Mapping[str, Array],
    gradients: Mapping[str, str],
    rng: np.random.Generator,
) -> float:
    """The smallest error of a few tries, each with its own direction and step."""
    best = float("inf")
    for step in _STEPS:
        error = compute_directional_error(graph, inputs, gradients, rng, step, kink=np.inf)
        best = min(best, error if error is not None else best)
        if best < TOLERANCE / 10:
            break
    return best


def _check_network(
    network: Network, values: Mapping[str, Array], rng: np.random.Generator
) -> LayerCheck | None:
    """The gradient of the net's main output by all its weights, through every layer at once."""
    b = Builder(network.graph, dtype="float64")
    y = b.nodes[network.graph.outputs["main"]]
    if not network.parameters:
        return None
    gradients = grad(b, y, network.parameters, cotangent=b.input("u", y.type))
    names = {state: g.name for state, g in gradients.items()}
    inputs = {n.name: values[n.name] for n in (*network.graph.inputs, *network.graph.states)}
    inputs["u"] = rng.standard_normal(y.type.shape)
    return LayerCheck("the whole net", _find_smallest_error(b.build({"y": y}), inputs, names, rng))
