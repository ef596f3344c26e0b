"""The straight executor: binds every node once, then runs them one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from netdsl.errors import internal
from netdsl.runtime.state import State
from netdsl.types import Array, Backend, Graph, Node


@dataclass(frozen=True)
class _Step:
    """One node, bound: what computes it, from what, and which values nobody reads afterwards."""

    name: str
    compute: Callable[..., Array]
    args: tuple[str, ...]
    dead: tuple[str, ...]


class Executor:
    """Runs one graph on one backend, with the states of one store.

    Only what outputs and updates need is run; constants are computed once; a value is let go after
    its last reader. Updates take the place of their states when everything has been computed.
    """

    def __init__(self, graph: Graph, backend: Backend, state: State) -> None:
        self.graph = graph
        self.backend = backend
        self.state = state
        order, dying = _needed(graph)
        self._inputs = [n for n in order if n.op == "input"]
        self.reads = tuple(n.name for n in order if n.op == "state")
        self._constants = {n.name: backend.bind(n)() for n in order if n.op == "const"}
        self._steps = [
            _Step(n.name, backend.bind(n), n.args, tuple(dying.get(n.name, ())))
            for n in order
            if n.op not in ("input", "state", "const")
        ]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, on the backend; inputs that the graph does not read are ignored."""
        # overflow and NaN are seen in the results, not told by NumPy in the middle
        with np.errstate(all="ignore"):
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = self._constants | {name: self.state.arrays[name] for name in self.reads}
        for node in self._inputs:
            array = inputs[node.name]
            if tuple(array.shape) != node.type.shape:
                raise internal(f"{node.name} is given {array.shape}, not {node.type.shape}")
            values[node.name] = self.backend.upload(array)
        for step in self._steps:
            values[step.name] = step.compute(*[values[a] for a in step.args])
            for name in step.dead:
                del values[name]
        results = {label: values[name] for label, name in self.graph.outputs.items()}
        for state, name in self.graph.updates.items():
            self.state.arrays[state] = values[name]
        return results


def _needed(graph: Graph) -> tuple[list[Node], dict[str, list[str]]]:
    """The nodes that outputs and updates need, in order, and the values each reads last."""
    wanted = set(graph.roots)
    order: list[Node] = []
    dying: dict[str, list[str]] = {}
    for node in reversed(list(graph.nodes.values())):
        if node.name not in wanted:
            continue
        order.append(node)
        for arg in dict.fromkeys(node.args):
            if arg not in wanted:
                dying.setdefault(node.name, []).append(arg)
            wanted.add(arg)
    return order[::-1], dying
