"""Locates the first NaN or infinity of a run: the value, its layer and its source line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from netdsl.errors import NetError, fail
from netdsl.ir.interpreter import evaluate_graph
from netdsl.language.network import Network
from netdsl.training.step.loss_scale import SCALE, SKIP_FLAG, is_exhausted
from netdsl.types import FLOAT_DTYPES, Array, Graph, Node

Values = Mapping[str, Array]


class Diverged(Exception):
    """The loss or a weight is no longer finite."""


@dataclass(frozen=True)
class ReplayedBatch:
    """A replayed batch of a run: the graph, its inputs, the states before and after, and whether
    its outputs allow the run to continue."""

    graph: Graph
    inputs: Values
    states_before: Values
    can_continue: bool
    states_after: Values


@dataclass(frozen=True)
class Fault:
    """The first non-finite value, and whether it is a NaN or an infinity."""

    node: Node
    kind: str


def is_finite(values: Values) -> bool:
    """Whether all values of all arrays are finite."""
    return all(np.isfinite(v).all() for v in values.values() if v.dtype.name in FLOAT_DTYPES)


def can_continue(out: Values) -> bool:
    """Whether a run can continue after a step with these outputs. A scaled loss may be infinite as
    long as a smaller scale can help: the step was then skipped."""
    if SCALE in out:
        return not (float(out[SKIP_FLAG]) and is_exhausted(float(out[SCALE])))
    return math.isfinite(float(out["loss"]))


def find_first_fault(replay: Iterator[ReplayedBatch]) -> tuple[int, Fault | None] | None:
    """Returns the number of good batches in a replay and the fault in the next one, if it can be
    located: of several ranks, it may be in the batch of another one."""
    for number, batch in enumerate(replay):
        if not batch.can_continue or not is_finite(batch.states_after):
            return number, find_fault(batch.graph, {**batch.states_before, **batch.inputs})
    return None


def find_fault(graph: Graph, given: Values) -> Fault | None:
    """The first node in graph order whose value is not finite."""
    known = {k: v for k, v in given.items() if k in graph.nodes}
    values, wanted = evaluate_graph(graph, known), graph.backward_slice(*graph.roots)
    for name, node in graph.nodes.items():
        if (
            name in wanted
            and node.type.dtype in FLOAT_DTYPES
            and not np.isfinite(values[name]).all()
        ):
            return Fault(node, "NaN" if np.isnan(values[name]).any() else "an infinity")
    return None


_PREFIXES = {
    "d.": "the gradient of ",
    "reduce.": "the gradient of ",
    "update.": "the update of ",
    "": "",
}


def describe_node(node: Node, network: Network) -> str:
    """Describes which part of a step a node belongs to, in terms of the net's layers."""
    for prefix, words in _PREFIXES.items():
        for layer in network.layers:
            names = (*layer.nodes, layer.path)
            if any(f"{node.name}.".startswith(f"{prefix}{n}.") for n in names):
                return f"{words}`{layer.path}`"
    return "the loss" if node.name.startswith("loss") else f"`{node.name}`"


def divergence_error(
    network: Network, fault: Fault | None, where: str, rate: float, last_checkpoint: str | None
) -> NetError:
    """The error that ends a diverged run."""
    help = (
        f"the rate was {rate:.3g}: lower it, add a warm-up, or clip the gradients with `clip = 1`"
    )
    notes = [
        f"the last good checkpoint is {last_checkpoint}"
        if last_checkpoint
        else "no epoch has been completed yet"
    ]
    if fault is None:
        message = f"the loss is no longer finite, in {where}"
        return fail(message, help=help, notes=notes)
    part = describe_node(fault.node, network)
    message = f"{fault.kind} in {where}, first in {part}, by `{fault.node.op}`"
    return fail(message, fault.node.span, help=help, notes=notes)
