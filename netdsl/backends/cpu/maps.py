"""Map kernels: elementwise nodes and reductions of one domain, as tasks over its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netdsl.backends.cpu.domain import Walk, chopped, walk
from netdsl.backends.cpu.expression import (
    Expr,
    Operand,
    Place,
    Reader,
    Unsupported,
)
from netdsl.backends.cpu.launch import SHARES, Task, shared, threads
from netdsl.backends.cpu.outline import Sum
from netdsl.backends.cpu.record import Table
from netdsl.backends.cpu.rows import Rows, build
from netdsl.backends.cpu.tasks import (
    LARGEST,
    MEAN,
    MOMENTS,
    NORMALIZE_DMOMENTS,
    SUM,
    BorderArgs,
    FoldArgs,
    FoldResult,
    border,
    fold,
)
from netdsl.ir.views import strip_views
from netdsl.ops import OPS
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array, Node

_GRAIN = 16384
"""Elements that are worth a task of their own."""
_PARTS = 8
"""How many partial sums at most: a number of its own, so that results do not depend on threads."""
_FOLDED = {
    "reduce_sum": SUM,
    "reduce_mean": MEAN,
    "reduce_max": LARGEST,
    "moments": MOMENTS,
    "normalize_dmoments": NORMALIZE_DMOMENTS,
}


@dataclass
class Launch:
    """Stages of tasks, and what their addresses point into. What stands in `early` reads settled
    states alone: it runs when they have changed. `filtered` says that a convolution goes by minimal
    filtering."""

    stages: list[list[Task]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    early: list[Task] = field(default_factory=list)
    filtered: bool = False

    def beside(self, other: Launch) -> None:
        """Joins a launch that does not depend on this one, stage by stage."""
        for i, stage in enumerate(other.stages):
            if i == len(self.stages):
                self.stages.append([])
            self.stages[i] += stage
        self._keep(other)

    def then(self, other: Launch) -> None:
        self.stages += other.stages
        self._keep(other)

    def _keep(self, other: Launch) -> None:
        self.kept += other.kept
        self.early += other.early
        self.filtered |= other.filtered


@dataclass(frozen=True)
class Memory:
    """The buffers of a plan and where values lie in them."""

    plan: Plan
    buffers: Mapping[str, Array]

    def operand(self, name: str) -> Operand:
        place = self.plan.placements[name]
        return Operand(self.address(place), place.layout, place.dtype)

    def settled(self, name: str) -> bool:
        """Whether a value is a settled state, or a view of one."""
        return strip_views(self.plan.graph, name).name in self.plan.frozen_states

    def workers(self, kernel: Kernel) -> int:
        """How many a kernel's tasks are cut for. Each task adds up what it computes, so where there
        are sums, it does not depend on the threads."""
        sums = any(OPS[self.plan.graph[o].op].kind == "reduce" for o in kernel.outputs)
        return SHARES if sums else threads()

    def address(self, place: Placement) -> int:
        """Of a placement's buffer."""
        return int(self.buffers[place.buffer].ctypes.data)


@dataclass(frozen=True)
class Result:
    """A reduction: its node and the sums that it is made of."""

    node: Node
    first: int
    sums: tuple[Sum, ...]


class Body:
    """What a kernel computes over a domain: expressions for its outputs, sums for its results."""

    def __init__(
        self,
        memory: Memory,
        kernel: Kernel,
        domain: IntTuple,
        operands: Mapping[str, Operand],
        outputs: Sequence[str],
    ) -> None:
        self.memory, self.domain = memory, domain
        graph = memory.plan.graph
        self.reader = Reader(graph.nodes, operands, domain)
        self.outputs: list[tuple[Expr, Place]] = []
        self.results: list[Result] = []
        self.sums: list[Sum] = []
        for name in outputs:
            node = graph[name]
            if OPS[node.op].kind == "reduce":
                self._reduce(node)
            else:
                self.outputs.append((self.reader.value(name), self._target(name)))
        self.kept = self._kept_axes()

    def _target(self, name: str) -> Place:
        operand = self.memory.operand(name)
        if math.prod(operand.layout.shape) != math.prod(self.domain):
            raise Unsupported("outputs of several sizes")
        size = 4 if operand.dtype == "float32" else 1
        if operand.dtype not in ("float32", "bool"):
            raise Unsupported(f"an output of {operand.dtype}")
        strides = self.reader.aligned(operand.layout, ())
        return Place(operand.address + size * operand.layout.offset, strides, operand.dtype)

    def _reduce(self, node: Node) -> None:
        shape = max((self.reader._shape(a) for a in node.args[:2]), key=math.prod)
        if shape != self.domain and shape[-1] != self.domain[-1]:
            raise Unsupported("a reduction over other axes than the domain's")
        values = [self.reader._stretched(a, self.domain, ()) for a in node.args[:2]]
        if node.op in ("reduce_sum", "reduce_mean"):
            sums: tuple[Sum, ...] = (Sum(values[0]),)
        elif node.op == "reduce_max":
            sums = (Sum(values[0], largest=True),)
        elif node.op == "moments":
            flat = len(shape) - 1 in node.attrs["axes"] or shape[-1] == 1
            sums = (Sum(values[0], squares=True, flat=flat),)
        elif node.op == "normalize_dmoments":
            mean = self.reader._moment(node, node.args[2], 0, ())
            centred = Expr("mul", (values[0], Expr("sub", (values[1], mean))))
            sums = (Sum(values[0]), Sum(centred))
        else:
            raise Unsupported(node.op)
        first = sum(s.count for s in self.sums)
        self.results.append(Result(node, first, sums))
        self.sums += sums

    def _kept_axes(self) -> tuple[bool, bool]:
        """Whether the reductions keep the first axis, and the last."""
        if not self.results:
            return False, False
        node = self.results[0].node
        shape = max((self.reader._shape(a) for a in node.args[:2]), key=math.prod)
        rank, axes = len(shape), node.attrs["axes"]
        kept = [a for a in range(rank) if a not in axes and shape[a] > 1]
        first, last = 0 in kept and rank > 1, rank - 1 in kept
        if len(kept) > first + last or (first and shape[0] != self.domain[0]):
            raise Unsupported(f"a reduction that keeps axes {kept}")
        return first, last

    def places(self) -> list[Place]:
        found = {id(p): p for e, _ in self.outputs for p in e.leaves()}
        found |= {id(p): p for s in self.sums for p in s.value.leaves()}
        found |= {id(p): p for _, p in self.outputs}
        if self.results:
            first, last = self.kept
            strides = [0] * len(self.domain)
            strides[0] = 1 if first else 0
            strides[-1] = 1 if last else strides[-1]
            rows = Place(0, tuple(strides))
            found[id(rows)] = rows
        return list(found.values())

    def walk(self, fixed: int = 0, extend: bool = True) -> Walk:
        first, last = self.kept
        places = self.places()
        found = walk(self.domain, places, max(fixed, int(first)), extend)
        if self.sums and not last and not any(self._vector(found, p) for p in places):
            return chopped(found)
        return found

    def _vector(self, found: Walk, p: Place) -> bool:
        return found.strides[id(p)][1] == 1 and id(p) in found.vectors

    def fold(self, found: Walk, rows: Rows, groups: int, parts: int) -> Launch:
        """The tasks that make the results of the sums."""
        if not self.results:
            return Launch()
        total = math.prod(self.domain) // groups
        single = not self.kept[1]
        count = total if single else total // found.period
        launch = Launch()
        table = Table(launch.kept)
        args = table.add(
            FoldArgs(
                slots=rows.slots.ctypes.data,
                slot=rows.sums * rows.stride * 4,
                sum=rows.stride * 4,
                parts=parts,
                period=found.period,
                repeat=found.repeat,
                single=single,
                results=table.add(*(self._result(r, rows, count) for r in self.results)),
                result_count=len(self.results),
            )
        )
        launch.stages.append([(fold.address, args, *r) for r in shared(groups, 4 * threads())])
        return launch

    def _result(self, r: Result, rows: Rows, count: int) -> FoldResult:
        kind = _FOLDED[r.node.op]
        target = self.memory.operand(r.node.name)
        strides = list(target.layout.strides)
        second = 0
        if kind >= MOMENTS:
            second, strides = strides[0], strides[1:]
        variance = (0, 0, 0)
        if kind == NORMALIZE_DMOMENTS:
            variance = self._variance(self.memory.operand(r.node.args[2]))
        return FoldResult(
            kind=kind,
            first_sum=r.first,
            target=target.address + 4 * target.layout.offset,
            channel=4 * strides[-1] if self.kept[1] else 0,
            second=4 * second,
            group=4 * strides[0] if self.kept[0] else 0,
            count=count,
            shift=rows.shifts[id(r.sums[0])] if kind == MOMENTS else 0,
            variance=variance[0],
            variance_channel=variance[1],
            variance_group=variance[2],
            eps=r.node.attrs.get("eps", 0.0),
        )

    def _variance(self, m: Operand) -> tuple[int, int, int]:
        """Where the variances of moments lie, with bytes to the next channel and group."""
        strides = m.layout.strides
        by_channel = strides[-1] if self.kept[1] else 0
        by_group = strides[1] if self.kept[0] else 0
        return m.address + 4 * (m.layout.offset + strides[0]), 4 * by_channel, 4 * by_group


def map_launch(memory: Memory, kernel: Kernel) -> Launch:
    """A map kernel as tasks. Raises Unsupported where there is no code for it."""
    graph = memory.plan.graph
    if any(graph[n].type.dtype not in ("float32", "bool") for n in kernel.nodes):
        raise Unsupported("other types than float32")
    operands = {name: memory.operand(name) for name in kernel.inputs}
    body = Body(memory, kernel, _domain(memory, kernel), operands, kernel.outputs)
    return body_launch(memory, body, kernel.outputs)


def body_launch(memory: Memory, body: Body, outputs: Sequence[str]) -> Launch:
    """The tasks that compute a body over the whole of its domain."""
    found = body.walk()
    chunks, groups = _chunks(found, body)
    slots = len(chunks) if body.sums else 1
    rows = build(found, body.outputs, body.sums, slots)
    launch = Launch(kept=[rows])
    if rows.prepare:
        launch.stages.append([(rows.prepare, rows.args)])
    tasks: list[Task] = [(rows.function, rows.args, *c, ~i) for i, c in enumerate(chunks)]
    launch.stages.append(tasks + border_tasks(memory, outputs, launch.kept))
    launch.then(body.fold(found, rows, groups, len(chunks) // groups))
    return launch


def _domain(memory: Memory, kernel: Kernel) -> IntTuple:
    graph = memory.plan.graph
    for name in kernel.outputs:
        node = graph[name]
        if OPS[node.op].kind == "reduce":
            return graph[node.args[0]].type.shape
    return graph[kernel.outputs[-1]].type.shape


def _chunks(found: Walk, body: Body) -> tuple[list[tuple[int, int, int, int]], int]:
    """Ranges of rows and of the run, one a task, and the number of groups that they make up."""
    size = found.rows * found.run
    if body.kept[0]:
        groups = body.domain[0]
        step = found.rows // groups
        return [(g * step, (g + 1) * step, 0, found.run) for g in range(groups)], groups
    most = _PARTS if body.sums else 8 * threads()
    want = max(1, min(most, size // _GRAIN))
    if found.rows >= want:
        return [(*r, 0, found.run) for r in shared(found.rows, want)], 1
    each = -(-want // found.rows)
    unit = max(found.tile if body.sums or found.run > found.period else 1024, 1)
    step = -(-found.run // (each * unit)) * unit
    return [
        (r, r + 1, j, min(j + step, found.run))
        for r in range(found.rows)
        for j in range(0, found.run, step)
    ], 1


def border_tasks(memory: Memory, names: Sequence[str], kept: list[Any]) -> list[Task]:
    """What writes the zeros around results that own them."""
    places = [memory.plan.placements[name] for name in names]
    return [task for p in places for task in border_task(memory.address(p), p, kept)]


def border_task(address: int, place: Placement, kept: list[Any]) -> list[Task]:
    """What writes the zeros around one value, whose buffer lies at `address`."""
    if place.padding is None:
        return []
    whole = place.padded_layout()
    n, rows, columns, channels = whole.shape
    if place.padding.channels != place.layout.shape[3] or place.dtype != "float32":
        raise Unsupported("images with other channels around them")
    (top, bottom), (left, right) = place.padding.halo
    image, row, pixel = (4 * s for s in whole.strides[:3])
    args = Table(kept).add(
        BorderArgs(
            address=address + 4 * whole.offset,
            image=image,
            row=row,
            pixel=pixel,
            rows=rows,
            columns=columns,
            top=top,
            bottom=bottom,
            left=left,
            right=right,
            channels=channels,
        )
    )
    return [(border.address, args, *r) for r in shared(n, 4 * threads())]
