"""Numerical derivatives: the reference against which every gradient is checked.

A gradient is checked along a random direction v with a random cotangent u: <u, J v> by central
differences against <J' u, v> by the emitted IR, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_graph
from netdsl.ir.subgraph import extract_subgraph
from netdsl.ops import OPS
from netdsl.ops.example_values import draw_operands
from netdsl.ops.op import Example
from netdsl.types import Array, Graph

STEP_SIZE = 1e-3
KINK_TOLERANCE = 1e-4


def compute_slope_error(
    f: Callable[[float], float],
    predicted: float,
    floor: float = 1e-2,
    step: float = STEP_SIZE,
    kink: float = KINK_TOLERANCE,
) -> float | None:
    """Returns the relative error of `predicted` as the slope of `f` at 0, or None if f has a kink
    there.

    Two central differences, at h and h/2, agree to O(h^2) if f is smooth, and are extrapolated
    (Richardson) to O(h^4). If they differ by more than `kink`, the step crossed a kink.
    """
    wide = (f(step) - f(-step)) / (2 * step)
    narrow = (f(step / 2) - f(-step / 2)) / step
    scale = max(abs(wide), abs(narrow), abs(predicted), floor)
    if abs(wide - narrow) > kink * scale:
        return None
    return abs((4 * narrow - wide) / 3 - predicted) / scale


def compute_vjp_error(
    op: str, example: Example, operand: int, rng: np.random.Generator
) -> float | None:
    """Returns the relative error of one vjp of `op` on an example, or None if the example is at a
    kink."""
    b = Builder(dtype="float64")
    operands = [b.input(f"x{i}", o.type) for i, o in enumerate(example.operands)]
    y = b.emit(op, *operands, **example.attrs)
    target, u = operands[operand], b.input("u", y.type)
    g = grad(b, y, [target], cotangent=u)[target.name]
    feeds = {n.name: a for n, a in zip(operands, draw_operands(example, rng), strict=True)}
    feeds["u"] = rng.standard_normal(y.type.shape)
    return compute_directional_error(b.build({"y": y}), feeds, {target.name: g.name}, rng)


def compute_directional_error(
    graph: Graph,
    feeds: Mapping[str, Array],
    gradients: Mapping[str, str],
    rng: np.random.Generator,
    step: float = STEP_SIZE,
    kink: float = KINK_TOLERANCE,
) -> float | None:
    """Returns the error of `gradients` (input or state -> the node claimed to be its gradient)
    along one joint random direction. The graph's output is `y`, and `u` is y's cotangent."""
    directions = {name: rng.standard_normal(feeds[name].shape) for name in gradients}
    length = np.sqrt(sum(float((v * v).sum()) for v in directions.values()))
    directions = {name: v / max(1.0, length) for name, v in directions.items()}
    y = graph.outputs["y"]
    forward = extract_subgraph(graph, graph.backward_slice(y), {"y": y})

    def evaluate_along(t: float) -> float:
        moved = {name: feeds[name] + t * v for name, v in directions.items()}
        return float((evaluate_graph(forward, {**feeds, **moved})[y] * feeds["u"]).sum())

    values = evaluate_graph(graph, feeds)
    predicted = sum(float((values[gradients[n]] * v).sum()) for n, v in directions.items())
    return compute_slope_error(evaluate_along, predicted, step=step, kink=kink)


def find_differentiable_operands(op: str) -> list[int]:
    """Returns the operands of an operator that have a gradient, by index."""
    operator = OPS[op]
    return [i for i in range(len(operator.operands)) if operator.vjp_of(i) is not None]
