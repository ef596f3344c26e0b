"""Checks a backend's gradients against finite differences of the loss that it computes."""

from __future__ import annotations

import math

import numpy as np

from netdsl.backends.base import Backend
from netdsl.ir.autodiff import grad
from netdsl.ir.numerical_gradient import compute_slope_error
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load_program
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.simplify import simplify
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.step.graphs import build_forward
from netdsl.types import Graph
from tests.graphs import make_values, plain_recipe

STEPS = (1e-4, 1e-5, 3e-5, 1e-6)
"""Step sizes, each tried once: a kink within one of them is not within all."""


def loss_and_gradients(path: str, net: str) -> Graph:
    """The loss of a net at batch 2 and its gradients for all weights, in float64, lowered as for a
    backend."""
    network = elaborate(load_program(path), net, Settings(batch=2, training=True, dtype="float64"))
    f = build_forward(network, plain_recipe())
    gradients = grad(f.b, f.loss, network.parameters)
    outputs = {"loss": f.loss} | {f"d {name}": g for name, g in gradients.items()}
    return simplify(lower_convolutions(f.b.build(outputs, name=net)))


def gradient_errors(path: str, net: str, backend: Backend) -> dict[str, float]:
    """The relative error of each weight's gradient along a random direction."""
    graph, rng = loss_and_gradients(path, net), np.random.default_rng(0)
    values, state = make_values(graph), State(backend)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor = Executor(graph, backend, state)
    out = executor.run(values)
    found = {k: backend.download(v) for k, v in out.items()}
    errors = {}
    for node in graph.states:
        if f"d {node.name}" not in found:
            continue
        direction = rng.standard_normal(node.type.shape)
        direction /= max(1.0, float(np.linalg.norm(direction)))

        def loss(t: float, node=node, direction=direction) -> float:
            moved = {node.name: values[node.name] + t * direction}
            state.load(moved, [node], "the test")
            return float(executor.run(values)["loss"])

        predicted = float((found[f"d {node.name}"] * direction).sum())
        tries = (compute_slope_error(loss, predicted, step=h, kink=math.inf) for h in STEPS)
        errors[node.name] = min(e for e in tries if e is not None)
        state.load(values, [node], "the test")
    return errors
