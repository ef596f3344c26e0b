"""Map kernels: elementwise nodes and reductions of one domain, as tasks over its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netdsl.backends.cpu.domain_expressions import trace_domain
from netdsl.backends.cpu.halo_tasks import HaloArgs, clear_halo
from netdsl.backends.cpu.loop_nest import LoopNest, make_loop_nest, remove_channel_period
from netdsl.backends.cpu.memory_ref import KernelOperand, MemoryRef
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.reduction_finalizer import (
    ReductionArgs,
    ReductionResultArgs,
    compile_finalizer,
)
from netdsl.backends.cpu.row_kernel import RowKernel, compile_row_kernel
from netdsl.backends.cpu.row_kernel_spec import RowKernelBody
from netdsl.backends.cpu.row_results import RowResult
from netdsl.backends.cpu.task_program import REDUCTION_WORKERS, Task, split_range, thread_count
from netdsl.ir.views import strip_views
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.trace import Reduction
from netdsl.ops import OPS
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array

_MIN_TASK_ELEMENTS = 16384
"""Elements that are worth a task of their own."""
_MAX_PARTIAL_SUMS = 8
"""How many partial sums at most: a number of its own, so that results do not depend on threads."""
_OPS_WITH_ROWS = ("moments", "normalize_dmoments")
"""Reductions whose results are two rows."""


@dataclass
class KernelTasks:
    """Stages of tasks, and what their addresses point into. What stands in `refresh_tasks` reads
    settled states alone: it runs when they have changed. `is_winograd` says that a convolution goes
    by minimal filtering."""

    stages: list[list[Task]] = field(default_factory=list)
    keepalive: list[Any] = field(default_factory=list)
    refresh_tasks: list[Task] = field(default_factory=list)
    is_winograd: bool = False

    def merge_parallel(self, other: KernelTasks) -> None:
        """Joins a launch that does not depend on this one, stage by stage."""
        for i, stage in enumerate(other.stages):
            if i == len(self.stages):
                self.stages.append([])
            self.stages[i] += stage
        self._merge_resources(other)

    def append_stages(self, other: KernelTasks) -> None:
        self.stages += other.stages
        self._merge_resources(other)

    def _merge_resources(self, other: KernelTasks) -> None:
        self.keepalive += other.keepalive
        self.refresh_tasks += other.refresh_tasks
        self.is_winograd |= other.is_winograd


@dataclass(frozen=True)
class PlanMemory:
    """The buffers of a plan and where values lie in them."""

    plan: Plan
    buffers: Mapping[str, Array]
    _operands: dict[str, KernelOperand] = field(default_factory=dict, repr=False, compare=False)

    def operand(self, name: str) -> KernelOperand:
        if name not in self._operands:
            place = self.plan.placements[name]
            address = self.buffer_address(place)
            self._operands[name] = KernelOperand(address, place.layout, place.dtype)
        return self._operands[name]

    def is_frozen(self, name: str) -> bool:
        """Whether a value is a settled state, or a view of one."""
        return strip_views(self.plan.graph, name).name in self.plan.frozen_states

    def count_workers(self, kernel: Kernel) -> int:
        """How many a kernel's tasks are cut for. Each task adds up what it computes, so where there
        are sums, it does not depend on the threads."""
        sums = any(OPS[self.plan.graph[o].op].kind == "reduce" for o in kernel.outputs)
        return REDUCTION_WORKERS if sums else thread_count()

    def buffer_address(self, place: Placement) -> int:
        """Of a placement's buffer."""
        return int(self.buffers[place.buffer].ctypes.data)


class DomainBody:
    """What a kernel computes over a domain: expressions for its outputs, sums for its results."""

    def __init__(
        self,
        memory: PlanMemory,
        kernel: Kernel,
        domain: IntTuple,
        operands: Mapping[str, KernelOperand],
        outputs: Sequence[str],
    ) -> None:
        self.memory, self.domain = memory, domain
        graph = memory.plan.graph
        targets = {name: memory.operand(name) for name in outputs}
        self.expressions = trace_domain(graph, kernel.nodes, operands, targets, domain)
        self.reductions = self.expressions.kernel.reductions
        self.row_axes = self._find_row_axes()
        self.reduces_rows = self.row_axes > 0
        self.kept_axes = (False, False) if self.reduces_rows else self._find_kept_axes()
        row_results = self.reductions if self.reduces_rows else ()
        self._loop_nests: dict[tuple[int, bool], LoopNest] = {}
        self.row_body = RowKernelBody(
            self.expressions.outputs,
            self.expressions.kernel.accumulators,
            self.expressions.refs,
            is_flat=not self.kept_axes[1],
            row_results=[self._locate_row_result(r) for r in row_results],
        )
        if self.expressions.is_split and (self.reductions or kernel.kind == "anchor"):
            raise UnsupportedKernelError(
                "values whose axes are split differently from the domain's"
            )

    def _find_row_axes(self) -> int:
        """How many axes the reductions keep if they reduce all that follow, which are a row; 0 if
        they do not, or keep no other than the first."""
        found = set()
        for reduction in self.reductions:
            shape = self.memory.plan.graph[reduction.node.args[0]].type.shape
            kept = [a for a, size in enumerate(shape) if a not in reduction.axes and size > 1]
            reduced = [a for a in reduction.axes if shape[a] > 1 or a == len(shape) - 1]
            last_kept, first_reduced = max(kept, default=0), min(reduced, default=0)
            is_suffix = shape == self.domain and 0 < last_kept < first_reduced
            found.add(first_reduced if is_suffix else 0)
        return found.pop() if len(found) == 1 else 0

    def _find_kept_axes(self) -> tuple[bool, bool]:
        """Whether the reductions keep the first axis, and the last."""
        if not self.reductions:
            return False, False
        graph, found = self.memory.plan.graph, set()
        for reduction in self.reductions:
            node = reduction.node
            shape = graph[node.args[0]].type.shape
            if shape != self.domain and shape[-1:] != self.domain[-1:]:
                raise UnsupportedKernelError("a reduction over axes that differ from the domain's")
            rank = len(shape)
            kept = [a for a in range(rank) if a not in reduction.axes and shape[a] > 1]
            first, last = 0 in kept and rank > 1, rank - 1 in kept
            if len(kept) > first + last or (first and shape[0] != self.domain[0]):
                raise UnsupportedKernelError(f"a reduction that keeps axes {kept}")
            found.add((first, last))
        if len(found) > 1:
            raise UnsupportedKernelError("reductions that keep different axes")
        return found.pop()

    def collect_refs(self) -> list[MemoryRef]:
        found = self.expressions.all_refs()
        if self.reduces_rows:
            found += [p for r in self.row_body.row_results for p in r.refs]
        elif self.reductions:
            first, last = self.kept_axes
            strides = [0] * len(self.domain)
            strides[0] = 1 if first else 0
            strides[-1] = 1 if last else strides[-1]
            found.append(MemoryRef(0, tuple(strides)))
        return found

    def build_loop_nest(self, fixed_axes: int = 0, can_merge_rows: bool = True) -> LoopNest:
        """How the kernel runs over the domain; built once for the same arguments."""
        key = (fixed_axes, can_merge_rows)
        if key not in self._loop_nests:
            self._loop_nests[key] = self._build_loop_nest(fixed_axes, can_merge_rows)
        return self._loop_nests[key]

    def _build_loop_nest(self, fixed_axes: int, can_merge_rows: bool) -> LoopNest:
        first, last = self.kept_axes
        places = self.collect_refs()
        kept_count = self.row_axes or int(first)
        loop_nest = make_loop_nest(
            self.expressions.shape, places, max(fixed_axes, kept_count), can_merge_rows
        )
        if self.reduces_rows and loop_nest.row_count != math.prod(self.domain[:kept_count]):
            raise UnsupportedKernelError("rows that are not contiguous")
        if (
            self.reductions
            and not (last or self.reduces_rows)
            and not any(self._is_channel_vector(loop_nest, p) for p in places)
        ):
            return remove_channel_period(loop_nest)
        return loop_nest

    def _is_channel_vector(self, loop_nest: LoopNest, p: MemoryRef) -> bool:
        return loop_nest.strides[id(p)][1] == 1 and id(p) in loop_nest.periodic_refs

    def make_reduction_tasks(
        self, loop_nest: LoopNest, row_kernel: RowKernel, groups: int, parts: int
    ) -> KernelTasks:
        """The tasks that make the results of the sums; rows make their own."""
        if not self.reductions or self.reduces_rows:
            return KernelTasks()
        period, repeat = loop_nest.period, loop_nest.repeat
        has_columns = self.kept_axes[1]
        total = math.prod(self.domain) // groups
        tasks = KernelTasks()
        table = RecordTable(tasks.keepalive)
        args = table.add(
            ReductionArgs(
                slots=row_kernel.slots.ctypes.data,
                slot=row_kernel.accumulator_count * row_kernel.accumulator_stride * 4,
                sum=row_kernel.accumulator_stride * 4,
                parts=parts,
                channels=period if has_columns else 1,
                repeat=repeat if has_columns else 1,
                period=4 * period,
                width=1 if has_columns else period * repeat,
                count=total // period if has_columns else total,
                results=table.add(*(self._locate_results(r, row_kernel) for r in self.reductions)),
            )
        )
        finalize = compile_finalizer(self.reductions)
        tasks.stages.append([(finalize, args, *r) for r in split_range(groups, 4 * thread_count())])
        return tasks

    def _locate_results(self, reduction: Reduction, row_kernel: RowKernel) -> ReductionResultArgs:
        address, second, channel, group = self._locate_rows(reduction.node.name)
        variance, _, variance_channel, variance_group = (
            self._locate_rows(reduction.node.args[2], row=1) if reduction.moments else (0, 0, 0, 0)
        )
        return ReductionResultArgs(
            target=address,
            channel=channel,
            group=group,
            second=second,
            shift=row_kernel.shift_addresses.get(id(reduction.accumulators[0]), 0),
            variance=variance,
            variance_channel=variance_channel,
            variance_group=variance_group,
        )

    def _locate_row_result(self, reduction: Reduction) -> RowResult:
        node = reduction.node
        row_count = 2 if node.op in _OPS_WITH_ROWS else 1
        targets = [self._align_result(node.name, reduction.axes, i) for i in range(row_count)]
        has_variance = reduction.moments is not None
        variance = self._align_result(node.args[2], reduction.axes, 1) if has_variance else None
        return RowResult(reduction, tuple(targets), variance)

    def _align_result(self, name: str, axes: IntTuple, row: int) -> MemoryRef:
        """Where a row of results lies, along the axes of the domain."""
        address, _, strides = self._locate_row(name, row)
        kept = [a for a in range(len(self.domain)) if a not in axes]
        own = strides if len(strides) == len(kept) else [strides[a] for a in kept]
        aligned = dict(zip(kept, own, strict=True))
        return MemoryRef(address, tuple(aligned.get(a, 0) for a in range(len(self.domain))))

    def _locate_rows(self, name: str, row: int = 0) -> tuple[int, int, int, int]:
        """The address of a row of results, and bytes to the next row, channel and group."""
        address, second, strides = self._locate_row(name, row)
        first, last = self.kept_axes
        return address, 4 * second, 4 * strides[-1] if last else 0, 4 * strides[0] if first else 0

    def _locate_row(self, name: str, row: int) -> tuple[int, int, list[int]]:
        """The address of a row of results, elements to the next row, and strides in a row. Only
        moments have rows."""
        operand = self.memory.operand(name)
        strides = list(operand.layout.strides)
        has_rows = self.memory.plan.graph[name].op in _OPS_WITH_ROWS or row > 0
        second = strides.pop(0) if has_rows else 0
        return operand.address + 4 * (operand.layout.offset + row * second), second, strides


def make_body_tasks(memory: PlanMemory, body: DomainBody, outputs: Sequence[str]) -> KernelTasks:
    """The tasks that compute a body over the whole of its domain."""
    loop_nest = body.build_loop_nest()
    chunks, groups = _partition_domain(loop_nest, body)
    slots = len(chunks) if body.reductions else 1
    row_kernel = compile_row_kernel(loop_nest, body.row_body, slots)
    kernel_tasks = KernelTasks(keepalive=[row_kernel])
    if row_kernel.prepare:
        kernel_tasks.stages.append([(row_kernel.prepare, row_kernel.args)])
    tasks: list[Task] = [
        (row_kernel.function, row_kernel.args, *c, ~i) for i, c in enumerate(chunks)
    ]
    kernel_tasks.stages.append(
        tasks + make_output_halo_tasks(memory, outputs, kernel_tasks.keepalive)
    )
    kernel_tasks.append_stages(
        body.make_reduction_tasks(loop_nest, row_kernel, groups, len(chunks) // groups)
    )
    return kernel_tasks


def find_domain(memory: PlanMemory, kernel: Kernel) -> IntTuple:
    """The index space of a map kernel."""
    graph = memory.plan.graph
    for name in kernel.outputs:
        node = graph[name]
        if OPS[node.op].kind == "reduce":
            return graph[node.args[0]].type.shape
    return graph[kernel.outputs[-1]].type.shape


def _partition_domain(
    loop_nest: LoopNest, body: DomainBody
) -> tuple[list[tuple[int, int, int, int]], int]:
    """Ranges of rows and of the run, one a task, and the number of groups that they make up."""
    size = loop_nest.row_count * loop_nest.run
    if body.kept_axes[0]:
        groups = body.domain[0]
        step = loop_nest.row_count // groups
        return [(g * step, (g + 1) * step, 0, loop_nest.run) for g in range(groups)], groups
    has_parts = body.reductions and not body.reduces_rows
    max_tasks = _MAX_PARTIAL_SUMS if has_parts else 8 * thread_count()
    task_count = max(1, min(max_tasks, size // _MIN_TASK_ELEMENTS))
    if loop_nest.row_count >= task_count or body.reduces_rows:
        return [(*r, 0, loop_nest.run) for r in split_range(loop_nest.row_count, task_count)], 1
    tasks_per_row = -(-task_count // loop_nest.row_count)
    unit = max(
        loop_nest.tile_size if body.reductions or loop_nest.run > loop_nest.period else 1024, 1
    )
    step = -(-loop_nest.run // (tasks_per_row * unit)) * unit
    return [
        (r, r + 1, j, min(j + step, loop_nest.run))
        for r in range(loop_nest.row_count)
        for j in range(0, loop_nest.run, step)
    ], 1


def make_output_halo_tasks(
    memory: PlanMemory, names: Sequence[str], keepalive: list[Any]
) -> list[Task]:
    """What writes the zeros around results that own them."""
    places = [memory.plan.placements[name] for name in names]
    return [
        task for p in places for task in make_halo_tasks(memory.buffer_address(p), p, keepalive)
    ]


def can_clear_halo(place: Placement) -> bool:
    """Whether this engine can write the zeros around a value, if there are any."""
    return place.padding is None or (
        place.padding.channels == place.layout.shape[3] and place.dtype == "float32"
    )


def make_halo_tasks(address: int, place: Placement, keepalive: list[Any]) -> list[Task]:
    """What writes the zeros around one value, whose buffer lies at `address`; `can_clear_halo`."""
    if place.padding is None:
        return []
    padded_layout = place.padded_layout()
    n, rows, columns, channels = padded_layout.shape
    (top, bottom), (left, right) = place.padding.halo
    image, row, pixel = (4 * s for s in padded_layout.strides[:3])
    args = RecordTable(keepalive).add(
        HaloArgs(
            address=address + 4 * padded_layout.offset,
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
    return [(clear_halo.address, args, *r) for r in split_range(n, 4 * thread_count())]
