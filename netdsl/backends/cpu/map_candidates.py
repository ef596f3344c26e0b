"""Candidates for kernels that compute or move values element by element: maps and copies."""

from __future__ import annotations

import math
from collections.abc import Iterable

from netdsl.backends.cpu.copy_kernels import (
    CopyLoops,
    make_copy_loops,
    make_copy_tasks,
    make_split_copy_loops,
)
from netdsl.backends.cpu.kernel_problem import (
    OTHER_KIND,
    Attempt,
    KernelProblem,
    attempt,
    explain_halos,
)
from netdsl.backends.cpu.map_kernels import (
    KernelTasks,
    PlanMemory,
    make_body_tasks,
    make_halo_tasks,
)
from netdsl.plan.layout import compute_view_layout
from netdsl.plan.memory_traffic import count_moved_bytes
from netdsl.plan.placement import Placement
from netdsl.plan.plan import ConcatCopy
from netdsl.types import Attrs, Node, TensorType

BYTES_PER_CYCLE = 8
"""What a core reads or writes of memory, about."""


def estimate_traffic(problem: KernelProblem) -> float:
    """Cycles to read the inputs of a kernel and to write its outputs."""
    return count_moved_bytes(problem.memory.plan.graph, problem.kernel) / BYTES_PER_CYCLE


# maps


def explain_map(problem: KernelProblem) -> str | None:
    """Why a kernel is no map that this engine computes, or None."""
    kernel, graph = problem.kernel, problem.memory.plan.graph
    if kernel.kind != "map" or kernel.parts:
        return OTHER_KIND
    if any(graph[n].type.dtype not in ("float32", "bool") for n in kernel.nodes):
        return "types other than float32"
    return problem.map_body.reason or problem.halo_reason


def make_map_tasks(problem: KernelProblem) -> KernelTasks:
    """The tasks of a map."""
    return make_body_tasks(problem.memory, problem.map_body.unwrap(), problem.kernel.outputs)


def explain_batched_maps(problem: KernelProblem) -> str | None:
    """Why a kernel is no launch over several domains, or one of its parts is no map, or None."""
    if not problem.parts:
        return OTHER_KIND
    reasons = ((part.kernel.name, explain_map(part)) for part in problem.parts)
    return next((f"{name}: {reason}" for name, reason in reasons if reason), None)


def make_batched_map_tasks(problem: KernelProblem) -> KernelTasks:
    """The tasks of several maps that do not depend on each other."""
    return _merge(make_map_tasks(part) for part in problem.parts)


def _merge(launches: Iterable[KernelTasks]) -> KernelTasks:
    combined = KernelTasks()
    for tasks in launches:
        combined.merge_parallel(tasks)
    return combined


# copies


def _explain_copy_of(memory: PlanMemory, copy: ConcatCopy) -> str | None:
    source = memory.operand(copy.source)
    if source.dtype != "float32":
        return f"a copy of {source.dtype}"
    if math.prod(source.layout.shape) == 0 or source.layout.shape != copy.target.layout.shape:
        return "a copy to another shape"
    return explain_halos([copy.target])


def _make_loops(memory: PlanMemory, copy: ConcatCopy) -> CopyLoops:
    address = memory.buffer_address(copy.target)
    return make_copy_loops(memory.operand(copy.source), copy.target.layout, address)


def _list_copies(problem: KernelProblem) -> tuple[ConcatCopy, ...]:
    """What a kernel copies: its input as a whole, or branches of a concatenation."""
    kernel, plan = problem.kernel, problem.memory.plan
    if kernel.nodes:
        return plan.find_concat_copies(kernel.name)
    (source,), (target,) = kernel.inputs, kernel.outputs
    return (ConcatCopy(source, plan.placements[target]),)


def _attempt_copies(problem: KernelProblem) -> Attempt[list[CopyLoops]]:
    memory, copies = problem.memory, problem.once(_list_copies)
    reasons = (_explain_copy_of(memory, copy) for copy in copies)
    reason = next(filter(None, reasons), None)
    if reason:
        return Attempt(reason=reason)
    return attempt(lambda: [_make_loops(memory, copy) for copy in copies])


def explain_copy(problem: KernelProblem) -> str | None:
    """Why a kernel does not copy one value as it is, or None."""
    if problem.kernel.nodes or problem.parts:
        return OTHER_KIND
    return problem.once(_attempt_copies).reason


def explain_concat(problem: KernelProblem) -> str | None:
    """Why a kernel is no concatenation that this engine copies, or None."""
    if not _has_last_op(problem, "concat"):
        return OTHER_KIND
    return problem.once(_attempt_copies).reason


def make_copies(problem: KernelProblem) -> KernelTasks:
    """The tasks of all copies of a kernel, with the halos of their targets."""
    copies = zip(problem.once(_list_copies), problem.once(_attempt_copies).unwrap(), strict=True)
    return _merge(_make_copy(problem.memory, copy.target, loops) for copy, loops in copies)


def _make_copy(memory: PlanMemory, target: Placement, loops: CopyLoops) -> KernelTasks:
    tasks = make_copy_tasks(loops)
    tasks.stages[0] += make_halo_tasks(memory.buffer_address(target), target, tasks.keepalive)
    return tasks


def _has_last_op(problem: KernelProblem, op: str) -> bool:
    kernel = problem.kernel
    is_opaque = kernel.kind in ("opaque", "copy") and kernel.nodes and not kernel.parts
    return bool(is_opaque) and problem.node.op == op


def explain_reshape_copy(problem: KernelProblem) -> str | None:
    """Why a kernel is no reshape that this engine copies, or None."""
    if not _has_last_op(problem, "reshape"):
        return OTHER_KIND
    return problem.once(_attempt_reshape).reason


def _attempt_reshape(problem: KernelProblem) -> Attempt[list[CopyLoops]]:
    """A view that its operand's strides do not express, as a copy."""
    memory, node = problem.memory, problem.node
    source, target = memory.operand(node.args[0]), memory.plan.placements[node.name]
    shape = source.layout.shape
    back = Node("", "reshape", (), Attrs({"shape": shape}), TensorType(shape))
    layout = compute_view_layout(target.layout, back)
    if layout is None:
        return Attempt(reason="a copy to another shape")
    if halo_reason := explain_halos([target]):
        return Attempt(reason=halo_reason)
    if source.dtype != "float32":
        return Attempt(reason=f"a copy of {source.dtype}")
    address = memory.buffer_address(target)
    return attempt(lambda: make_split_copy_loops(source, layout, address))


def make_reshape_copy(problem: KernelProblem) -> KernelTasks:
    """The tasks of a copy under another shape, with the halo of its result."""
    memory, target = problem.memory, problem.memory.plan.placements[problem.node.name]
    tasks = _merge(map(make_copy_tasks, problem.once(_attempt_reshape).unwrap()))
    tasks.stages[0] += make_halo_tasks(memory.buffer_address(target), target, tasks.keepalive)
    return tasks
