"""Opaque operators as tasks: pooling, local response normalization, scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from netdsl.backends.cpu import softmax_kernels as rows_of_scores
from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.kernel_problem import OTHER_KIND, KernelProblem
from netdsl.backends.cpu.map_kernels import KernelTasks, PlanMemory, make_output_halo_tasks
from netdsl.backends.cpu.memory_ref import KernelOperand
from netdsl.backends.cpu.pooling_kernels import (
    LrnArgs,
    PoolingArgs,
    compile_lrn,
    compile_pooling,
    compile_pooling_gradient,
)
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.softmax_kernels import ScoresArgs, compute_scores
from netdsl.backends.cpu.task_program import Task, split_range, thread_count
from netdsl.plan.layout import row_major_strides
from netdsl.types import Node

_SCORES = {
    "softmax": rows_of_scores.SOFTMAX,
    "log_softmax": rows_of_scores.LOG_SOFTMAX,
    "cross_entropy": rows_of_scores.CROSS_ENTROPY,
    "one_hot": rows_of_scores.ONE_HOT,
    "top_hit": rows_of_scores.TOP_HIT,
}
_POOLS = ("max_pool", "avg_pool", "max_pool_grad", "avg_pool_grad")


_StageMaker = Callable[[PlanMemory, Node, KernelTasks], list[Task]]


def explain_pooling(problem: KernelProblem) -> str | None:
    """Why a kernel is no pooling of images, or a gradient of one, or None."""
    reason = _explain_opaque(problem, _POOLS)
    if reason:
        return reason
    node = problem.node
    images = (problem.memory.operand(v).layout for v in (*node.args, node.name))
    if any(image.strides[3] != 1 and image.shape[3] > 1 for image in images):
        return "an image whose channels are not contiguous"
    return None


def make_pooling_tasks(problem: KernelProblem) -> KernelTasks:
    """The tasks of a pooling, or of a gradient of one."""
    return _make_opaque_tasks(problem, _make_pooling_stage)


def explain_lrn(problem: KernelProblem) -> str | None:
    """Why a kernel is no local response normalization, or a gradient of one, or None."""
    reason = _explain_opaque(problem, ("lrn", "lrn_grad"))
    return reason or _explain_rows(problem)


def make_lrn_tasks(problem: KernelProblem) -> KernelTasks:
    """The tasks of a local response normalization, or of a gradient of one."""
    return _make_opaque_tasks(problem, _make_lrn_stage)


def explain_scores(problem: KernelProblem) -> str | None:
    """Why a kernel computes nothing of rows of scores, or None."""
    reason = _explain_opaque(problem, _SCORES)
    if reason:
        return reason
    node = problem.node
    labels = problem.memory.operand(node.args[-1])
    if _SCORES[node.op] >= rows_of_scores.CROSS_ENTROPY and labels.dtype != "int32":
        return f"labels of {labels.dtype}"
    return _explain_rows(problem)


def make_score_tasks(problem: KernelProblem) -> KernelTasks:
    """The tasks of a softmax, a loss or what else is computed of rows of scores."""
    return _make_opaque_tasks(problem, _make_score_stage)


def _explain_opaque(problem: KernelProblem, ops: Collection[str]) -> str | None:
    kernel = problem.kernel
    if len(kernel.nodes) != 1 or kernel.parts or problem.node.op not in ops:
        return OTHER_KIND
    if problem.node.type.dtype != "float32":
        return "types other than float32"
    return problem.halo_reason


def _explain_rows(problem: KernelProblem) -> str | None:
    """Why values are not read and written as rows one behind the other, or None."""
    values = (*problem.node.args, problem.node.name)
    is_contiguous = all(_is_contiguous(problem.memory.operand(v)) for v in values)
    return None if is_contiguous else "rows with gaps"


def _make_opaque_tasks(problem: KernelProblem, make_stage: _StageMaker) -> KernelTasks:
    memory, tasks = problem.memory, KernelTasks()
    stage = make_stage(memory, problem.node, tasks)
    halos = make_output_halo_tasks(memory, problem.kernel.outputs, tasks.keepalive)
    tasks.stages.append(stage + halos)
    return tasks


def _locate_image(operand: KernelOperand) -> tuple[int, int, int, int]:
    """Where an image begins, and bytes to the next image, row and pixel."""
    n, h, w, _ = (4 * s for s in operand.layout.strides)
    return _address(operand), n, h, w


def _make_pooling_stage(memory: PlanMemory, node: Node, kernel_tasks: KernelTasks) -> list[Task]:
    a = node.attrs
    gradient = node.op.endswith("_grad")
    result = memory.operand(node.name)
    if gradient:
        y, d = memory.operand(node.args[0]), result
        x = memory.operand(node.args[1]) if len(node.args) > 1 else d
    else:
        x, y = memory.operand(node.args[0]), result
        d = x
    n, height, wide, channels = x.layout.shape
    (top, _), (left, _) = a["pad"]
    counted = a.get("counted", ((0, 0), (0, 0)))
    (x_at, x_n, x_row, x_pixel), (y_at, y_n, y_row, y_pixel), (d_at, d_n, d_row, d_pixel) = (
        _locate_image(o) for o in (x, y, d)
    )
    args = RecordTable(kernel_tasks.keepalive).add(
        PoolingArgs(
            x=x_at,
            x_n=x_n,
            x_row=x_row,
            x_pixel=x_pixel,
            y=y_at,
            y_n=y_n,
            y_row=y_row,
            y_pixel=y_pixel,
            d=d_at,
            d_n=d_n,
            d_row=d_row,
            d_pixel=d_pixel,
            height=height,
            width=wide,
            rows=y.layout.shape[1],
            columns=y.layout.shape[2],
            kh=a["kernel"][0],
            kw=a["kernel"][1],
            sh=a["stride"][0],
            sw=a["stride"][1],
            top=top,
            left=left,
            c_top=counted[0][0],
            c_bottom=counted[0][1],
            c_left=counted[1][0],
            c_right=counted[1][1],
            channels=channels,
        )
    )
    if gradient:
        return [
            (compile_pooling_gradient(node.op), args, *r)
            for r in split_range(n, 8 * thread_count())
        ]
    rows = n * y.layout.shape[1]
    return [(compile_pooling(node.op), args, *r) for r in split_range(rows, 8 * thread_count())]


def _is_contiguous(operand: KernelOperand) -> bool:
    """Whether a value has no gaps."""
    axes = [
        (size, stride)
        for size, stride in zip(operand.layout.shape, operand.layout.strides, strict=True)
        if size > 1
    ]
    return tuple(stride for _, stride in axes) == row_major_strides([size for size, _ in axes])


def _address(operand: KernelOperand) -> int:
    return operand.address + 4 * operand.layout.offset


def _make_lrn_stage(memory: PlanMemory, node: Node, kernel_tasks: KernelTasks) -> list[Task]:
    a = node.attrs
    gradient = node.op == "lrn_grad"
    x = _address(memory.operand(node.args[-1]))
    g = _address(memory.operand(node.args[0]))
    channels = node.type.shape[-1]
    ranges = split_range(node.type.size // channels, 8 * thread_count())
    scratch = allocate_floats(len(ranges) * channels)
    y = _address(memory.operand(node.name))
    kernel_tasks.keepalive.append(scratch)
    args = RecordTable(kernel_tasks.keepalive).add(
        LrnArgs(x=x, y=y, g=g, spare=scratch.ctypes.data, row=4 * channels, channels=channels)
    )
    function = compile_lrn(a["size"], a["alpha"], a["beta"], a["k"], gradient)
    return [(function, args, *r, i) for i, r in enumerate(ranges)]


def _make_score_stage(memory: PlanMemory, node: Node, kernel_tasks: KernelTasks) -> list[Task]:
    kind = _SCORES[node.op]
    operands = [memory.operand(v) for v in node.args]
    labels = operands[-1] if kind >= rows_of_scores.CROSS_ENTROPY else None
    score_shape: Any = operands[0].layout.shape
    classes = node.attrs["classes"] if node.op == "one_hot" else score_shape[-1]
    row_count = math.prod(score_shape) // (1 if node.op == "one_hot" else classes)
    smoothing = node.attrs.get("smoothing", 0.0)
    has_full_rows = kind in (
        rows_of_scores.SOFTMAX,
        rows_of_scores.LOG_SOFTMAX,
        rows_of_scores.ONE_HOT,
    )
    args = RecordTable(kernel_tasks.keepalive).add(
        ScoresArgs(
            kind=kind,
            scores=_address(operands[0]),
            row=4 * classes,
            labels=_address(labels) if labels else 0,
            result=_address(memory.operand(node.name)),
            result_row=4 * classes if has_full_rows else 4,
            classes=classes,
            k=node.attrs.get("k", 0),
            label_share=1 - smoothing,
            class_share=smoothing / classes,
        )
    )
    max_tasks = 1 + row_count * classes // 4096
    return [(compute_scores.address, args, *r) for r in split_range(row_count, max_tasks)]
