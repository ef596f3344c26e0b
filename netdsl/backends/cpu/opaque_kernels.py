"""Opaque operators and copies as tasks: pooling, LRN, scores, concatenation."""

from __future__ import annotations

import math
from typing import Any

from netdsl.backends.cpu import softmax_kernels as rows_of_scores
from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.domain import Domain
from netdsl.backends.cpu.loop_nest import make_loop_nest
from netdsl.backends.cpu.map_kernels import (
    KernelTasks,
    PlanMemory,
    make_halo_tasks,
    make_output_halo_tasks,
)
from netdsl.backends.cpu.memory_ref import KernelOperand
from netdsl.backends.cpu.pooling_kernels import (
    LrnArgs,
    PoolingArgs,
    compile_lrn,
    compile_pooling,
    compile_pooling_gradient,
)
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.row_kernel import compile_row_kernel
from netdsl.backends.cpu.row_kernel_spec import RowKernelBody
from netdsl.backends.cpu.softmax_kernels import ScoresArgs, compute_scores
from netdsl.backends.cpu.task_program import Task, split_range, thread_count
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.trace import trace_copy
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout, compute_view_layout
from netdsl.plan.placement import Placement
from netdsl.types import Attrs, Node, TensorType

_SCORES = {
    "softmax": rows_of_scores.SOFTMAX,
    "log_softmax": rows_of_scores.LOG_SOFTMAX,
    "cross_entropy": rows_of_scores.CROSS_ENTROPY,
    "one_hot": rows_of_scores.ONE_HOT,
    "top_hit": rows_of_scores.TOP_HIT,
}
_POOLS = ("max_pool", "avg_pool", "max_pool_grad", "avg_pool_grad")


def make_opaque_tasks(memory: PlanMemory, kernel: Kernel) -> KernelTasks:
    """The tasks of a kernel of one node. Raises Unsupported where there is no code for it."""
    if not kernel.nodes:
        (source,), (target,) = kernel.inputs, kernel.outputs
        return _make_value_copy(memory, source, memory.plan.placements[target])
    node = memory.plan.graph[kernel.nodes[-1]]
    if node.op == "concat":
        combined = KernelTasks()
        for piece in memory.plan.find_concat_copies(kernel.name):
            combined.merge_parallel(_make_value_copy(memory, piece.source, piece.target))
        return combined
    if node.op == "reshape":
        return _make_reshape_copy(memory, node)
    if len(kernel.nodes) != 1 or node.type.dtype != "float32":
        raise UnsupportedKernelError(node.op)
    kernel_tasks = KernelTasks()
    if node.op in _POOLS:
        stage = _make_pooling_tasks(memory, node, kernel_tasks)
    elif node.op in ("lrn", "lrn_grad"):
        stage = _make_lrn_tasks(memory, node, kernel_tasks)
    elif node.op in _SCORES:
        stage = _make_score_tasks(memory, node, kernel_tasks)
    else:
        raise UnsupportedKernelError(node.op)
    kernel_tasks.stages.append(
        stage + make_output_halo_tasks(memory, kernel.outputs, kernel_tasks.keepalive)
    )
    return kernel_tasks


def make_copy_tasks(source: KernelOperand, layout: Layout, address: int) -> KernelTasks:
    """The tasks that copy an operand to a layout that begins at an address."""
    if source.dtype != "float32":
        raise UnsupportedKernelError(f"copies of {source.dtype}")
    target = KernelOperand(address - 4 * layout.offset, layout, source.dtype)
    operands = {"source": source, "target": target}
    places = [Placement(name, o.dtype, o.layout) for name, o in operands.items()]
    domain = Domain(trace_copy(*places), operands, layout.shape)
    loop_nest = make_loop_nest(domain.shape, domain.all_refs())
    row_kernel = compile_row_kernel(loop_nest, RowKernelBody(domain.outputs, (), domain.refs), 1)
    if loop_nest.row_count > 1:
        chunks = [
            (a, b, 0, loop_nest.run)
            for a, b in split_range(loop_nest.row_count, 4 * thread_count())
        ]
    else:
        chunks = [(0, 1, a, b) for a, b in split_range(loop_nest.run, 1 + loop_nest.run // 16384)]
    return KernelTasks(
        [[(row_kernel.function, row_kernel.args, *c, 0) for c in chunks]], [row_kernel]
    )


def _make_value_copy(memory: PlanMemory, name: str, target: Placement) -> KernelTasks:
    source = memory.operand(name)
    if math.prod(source.layout.shape) == 0 or source.layout.shape != target.layout.shape:
        raise UnsupportedKernelError("copies that reshape")
    address = memory.buffer_address(target) + 4 * target.layout.offset
    tasks = make_copy_tasks(source, target.layout, address)
    tasks.stages[0] += make_halo_tasks(memory.buffer_address(target), target, tasks.keepalive)
    return tasks


def _make_reshape_copy(memory: PlanMemory, node: Node) -> KernelTasks:
    """A view that its operand's strides do not express, as a copy."""
    source, place = memory.operand(node.args[0]), memory.plan.placements[node.name]
    shape = source.layout.shape
    back = Node("", "reshape", (), Attrs({"shape": shape}), TensorType(shape))
    layout = compute_view_layout(place.layout, back)
    if layout is None or place.padding is not None:
        raise UnsupportedKernelError("copies that reshape")
    return make_copy_tasks(source, layout, memory.buffer_address(place) + 4 * layout.offset)


def _locate_image(operand: KernelOperand) -> tuple[int, int, int, int]:
    """Where an image begins, and bytes to the next image, row and pixel."""
    layout = operand.layout
    if layout.strides[3] != 1 and layout.shape[3] > 1:
        raise UnsupportedKernelError("an image whose channels lie apart")
    n, h, w, _ = (4 * s for s in layout.strides)
    return operand.address + 4 * layout.offset, n, h, w


def _make_pooling_tasks(memory: PlanMemory, node: Node, kernel_tasks: KernelTasks) -> list[Task]:
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


def _contiguous_address(operand: KernelOperand) -> int:
    """The address of a value without gaps."""
    step = 1
    for size, stride in zip(
        reversed(operand.layout.shape), reversed(operand.layout.strides), strict=True
    ):
        if size > 1 and stride != step:
            raise UnsupportedKernelError("rows with gaps")
        step *= size
    return operand.address + 4 * operand.layout.offset


def _make_lrn_tasks(memory: PlanMemory, node: Node, kernel_tasks: KernelTasks) -> list[Task]:
    a = node.attrs
    gradient = node.op == "lrn_grad"
    x = _contiguous_address(memory.operand(node.args[-1]))
    g = _contiguous_address(memory.operand(node.args[0]))
    channels = node.type.shape[-1]
    ranges = split_range(node.type.size // channels, 8 * thread_count())
    scratch = allocate_floats(len(ranges) * channels)
    y = _contiguous_address(memory.operand(node.name))
    kernel_tasks.keepalive.append(scratch)
    args = RecordTable(kernel_tasks.keepalive).add(
        LrnArgs(x=x, y=y, g=g, spare=scratch.ctypes.data, row=4 * channels, channels=channels)
    )
    function = compile_lrn(a["size"], a["alpha"], a["beta"], a["k"], gradient)
    return [(function, args, *r, i) for i, r in enumerate(ranges)]


def _make_score_tasks(memory: PlanMemory, node: Node, kernel_tasks: KernelTasks) -> list[Task]:
    kind = _SCORES[node.op]
    operands = [memory.operand(v) for v in node.args]
    labels = operands[-1] if kind >= rows_of_scores.CROSS_ENTROPY else None
    if labels is not None and labels.dtype != "int32":
        raise UnsupportedKernelError(f"labels of {labels.dtype}")
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
            scores=_contiguous_address(operands[0]),
            row=4 * classes,
            labels=_contiguous_address(labels) if labels else 0,
            result=_contiguous_address(memory.operand(node.name)),
            result_row=4 * classes if has_full_rows else 4,
            classes=classes,
            k=node.attrs.get("k", 0),
            label_share=1 - smoothing,
            class_share=smoothing / classes,
        )
    )
    max_tasks = 1 + row_count * classes // 4096
    return [(compute_scores.address, args, *r) for r in split_range(row_count, max_tasks)]
