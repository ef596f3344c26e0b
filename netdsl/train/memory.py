"""How much memory a graph will need, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.plan.fusion import ALONE, Fusion
from netdsl.plan.plan import make_plan
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


def predicted(graph: Graph, fusion: Fusion = ALONE) -> Memory:
    """What running a graph takes on a backend that offers `fusion`: its plan's arena, and the
    buffers of inputs and constants. What a kernel needs for itself comes on top."""
    plan = make_plan(graph, fusion)
    weights = sum(n.type.nbytes for n in graph.states if n.attrs["trainable"])
    states = sum(n.type.nbytes for n in graph.states)
    beside = (size for name, size in plan.buffers.items() if plan.graph[name].op != "state")
    return Memory(weights, states - weights, plan.arena + sum(beside))
