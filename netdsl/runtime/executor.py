"""The straight executor: binds every node once, then runs them one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from netdsl.errors import internal
from netdsl.runtime.state import State
from netdsl.types import Array, Backend, Graph, Node


class Executor:
    """Runs one graph on one backend, with the states of one store.

    Only what outputs and updates need is run; a value is let go after its last reader. Updates
    take the place of their states when everything has been computed.
    """

    def __init__(self, graph: Graph, backend: Backend, state: State) -> None:
        self.graph = graph
        self.backend = backend
        self.state = state
        self._inputs, self._states, self._steps = self._bind(graph, backend)

    @property
    def reads(self) -> tuple[str, ...]:
        """The states that a run reads."""
        return tuple(self._states)

    @staticmethod
    def _bind(
        graph: Graph, backend: Backend
    ) -> tuple[list[Node], list[str], list[tuple[str, Callable[..., Array], list[str], list[str]]]]:
        wanted = set(graph.roots)
        last: dict[str, str] = dict.fromkeys(graph.roots, "")
        order: list[Node] = []
        for node in reversed(list(graph.nodes.values())):
            if node.name not in wanted:
                continue
            order.append(node)
            for arg in node.args:
                wanted.add(arg)
                last.setdefault(arg, node.name)
        dying: dict[str, list[str]] = {}
        for value, reader in last.items():
            dying.setdefault(reader, []).append(value)
        inputs = [n for n in order if n.op == "input"]
        states = [n.name for n in order if n.op == "state"]
        steps = [
            (n.name, backend.bind(n), list(n.args), dying.get(n.name, []))
            for n in reversed(order)
            if n.op not in ("input", "state")
        ]
        return inputs, states, steps

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, on the backend; inputs that the graph does not read are ignored."""
        values = {name: self.state.arrays[name] for name in self._states}
        for node in self._inputs:
            array = inputs[node.name]
            if tuple(array.shape) != node.type.shape:
                raise internal(f"{node.name} is given {array.shape}, not {node.type.shape}")
            values[node.name] = self.backend.upload(array)
        for name, compute, args, dead in self._steps:
            values[name] = compute(*[values[a] for a in args])
            for value in dead:
                del values[value]
        results = {label: values[name] for label, name in self.graph.outputs.items()}
        for state, name in self.graph.updates.items():
            self.state.arrays[state] = values[name]
        return results
