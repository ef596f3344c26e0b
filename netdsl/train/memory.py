"""How much memory a graph will need, before anything is allocated; and what to do where it is more
than there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from netdsl.errors import NetError, fail
from netdsl.ir.views import shown
from netdsl.ops import OPS
from netdsl.plan.fusion import ALONE, Fusion
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan, make_plan
from netdsl.types import Graph, Node, sized

LARGEST = 6
"""Tensors that are named where memory is short."""


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
    return _of(make_plan(graph, fusion))


def _of(plan: Plan) -> Memory:
    states = plan.graph.states
    weights = sum(n.type.nbytes for n in states if n.attrs["trainable"])
    all_states = sum(n.type.nbytes for n in states)
    beside = (size for name, size in plan.buffers.items() if plan.graph[name].op != "state")
    return Memory(weights, all_states - weights, plan.arena + sum(beside))


def shortage(
    graph: Graph,
    fusion: Fusion,
    room: int | None,
    batch: int,
    at: Callable[[int], Graph],
) -> NetError:
    """What is told where a step does not fit: how much it takes, its largest tensors with their
    lines, and the batch that fits into `room` bytes; `at` gives the step of another batch."""
    plan = make_plan(graph, fusion)
    wanted = _of(plan).total
    there = f", and there are {sized(room)}" if room is not None else ""
    notes = [_line(node) for node in largest(plan)]
    fits = _fitting(wanted, fusion, room, batch, at) if room is not None else None
    help = "a smaller `batch`, `precision = mixed`, or `recompute` takes less"
    if fits:
        help = f"`--set data.batch={fits}` fits; `precision = mixed` or `recompute` takes less"
    return fail(f"a step takes {sized(wanted)} of memory{there}", notes=notes, help=help)


def largest(plan: Plan) -> list[Node]:
    """The largest values that a step keeps in memory, each once, the largest first."""
    kept = {
        shown(plan.graph, name).name
        for name, place in plan.placements.items()
        if place.buffer == ARENA
    }
    nodes = [plan.graph[n] for n in kept if OPS[plan.graph[n].op].kind != "leaf"]
    return sorted(nodes, key=lambda n: (-n.type.nbytes, n.name))[:LARGEST]


def _line(node: Node) -> str:
    where = ""
    if node.span is not None:
        where = f", {node.span.source.name}:{node.span.position[0]}"
    return f"`{node.name}` {node.type}, {sized(node.type.nbytes)}{where}"


def _fitting(
    wanted: int, fusion: Fusion, room: int, batch: int, at: Callable[[int], Graph]
) -> int | None:
    """The largest batch found to fit, by the plans of smaller ones."""
    size = batch
    while size > 1:
        # what does not shrink with the batch makes the guess too large, so it is made again
        size = min(size - 1, max(1, size * room // wanted))
        wanted = predicted(at(size), fusion).total
        if wanted <= room:
            return size
    return None
