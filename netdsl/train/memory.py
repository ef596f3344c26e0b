"""How much memory a graph will need, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.ops import OPS
from netdsl.types import Graph


@dataclass(frozen=True)
class Memory:
    """Bytes of what stays (weights, and beside them optimizer states and the like) and of what
    lives at once while a step runs."""

    weights: int
    beside: int
    step: int

    @property
    def total(self) -> int:
        return self.weights + self.beside + self.step


def predicted(graph: Graph) -> Memory:
    """What running a graph node after node takes, a value being let go after its last reader."""
    weights = sum(n.type.nbytes for n in graph.states if n.attrs["trainable"])
    beside = sum(n.type.nbytes for n in graph.states) - weights
    return Memory(weights, beside, _most_at_once(graph))


def _most_at_once(graph: Graph) -> int:
    wanted = graph.cone(*graph.roots)
    order = [n for name, n in graph.nodes.items() if name in wanted and n.op != "state"]
    owner: dict[str, str] = {}
    for node in order:  # a view lives in what it is a view of
        view = OPS[node.op].kind == "view" and node.args[0] in owner
        owner[node.name] = owner[node.args[0]] if view else node.name
    last = {owner[a]: i for i, n in enumerate(order) for a in n.args if a in owner}
    last |= {owner[name]: len(order) for name in graph.roots if name in owner}
    live = most = 0
    dying: dict[int, int] = {}
    for i, node in enumerate(order):
        if owner[node.name] == node.name:
            live += node.type.nbytes
            most = max(most, live)
            end = last.get(node.name, i)
            dying[end] = dying.get(end, 0) + node.type.nbytes
        live -= dying.pop(i, 0)
    return most
