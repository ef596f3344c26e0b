"""The reference interpreter: defines what a graph computes, node by node on an array module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from netdsl.ops import OPS
from netdsl.types import Array, Graph


def evaluate_graph(graph: Graph, feeds: Mapping[str, Array], xp: Any = np) -> dict[str, Array]:
    """Returns the value of every node. `feeds` holds inputs and states by name, and any other
    values to use instead of computing them."""
    values: dict[str, Array] = {}
    with np.errstate(all="ignore"):
        for name, node in graph.nodes.items():
            if name in feeds:
                values[name] = feeds[name]
            else:
                args = (values[a] for a in node.args)
                values[name] = OPS[node.op].reference(xp, *args, **node.attrs)
    return values


def evaluate_results(graph: Graph, feeds: Mapping[str, Array], xp: Any = np) -> dict[str, Array]:
    """Returns the outputs by name and the updates as `update STATE`."""
    values = evaluate_graph(graph, feeds, xp)
    outputs = {label: values[name] for label, name in graph.outputs.items()}
    return outputs | {f"update {state}": values[name] for state, name in graph.updates.items()}
