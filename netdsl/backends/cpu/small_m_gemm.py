"""Products of few rows with a matrix that is read once, along its rows, as it lies: fully connected
layers at small batches, which are as fast as memory is."""

from __future__ import annotations

import math
from functools import cache

from llvmlite import ir

from netdsl.backends.cpu import elementwise_functions as fn
from netdsl.backends.cpu.kernel_problem import (
    OTHER_KIND,
    KernelProblem,
    make_tasks_after_product,
)
from netdsl.backends.cpu.llvm_builder import F32, I32, Lanes, LlvmFunction, Value, const_i64
from netdsl.backends.cpu.llvm_jit import compile_llvm, vector_width
from netdsl.backends.cpu.map_kernels import KernelTasks, make_output_halo_tasks
from netdsl.backends.cpu.record import Record, RecordTable
from netdsl.backends.cpu.stride_collapsing import collapse_strides
from netdsl.backends.cpu.task_program import Task, split_range, thread_count
from netdsl.plan.layout import Layout


class SmallGemmArgs(Record):
    """Rows of x, rows of weights of `depth` elements, rows of results y; bytes from row to row."""

    x: int
    x_row: int
    rows: int
    weights: int
    weight_row: int
    depth: int
    y: int
    y_row: int


_TILE_ROWS = {16: 8, 8: 4, 4: 4}
_TILE_COLUMNS = {16: 3, 8: 2, 4: 2}
"""How many sums a tile has: as many as registers hold beside what is multiplied."""


def explain_small_m(problem: KernelProblem) -> str | None:
    """Why a node is no product of rows with rows of weights that lie without gaps, or None."""
    node = problem.node
    if node.op != "matmul":
        return OTHER_KIND
    x, w = (problem.memory.operand(a).layout for a in node.args)
    if len(w.shape) != 2:
        return "a batch of matrix products"
    if x.strides[-1] != 1 or w.strides[-1] != 1:
        return "the operands are not read along their rows"
    if collapse_strides(x, len(x.shape) - 1) is None:
        return "rows that no stride expresses"
    target = problem.product_layout
    if collapse_strides(target, len(target.shape) - 1) is None or target.strides[-1] != 1:
        return "a product whose columns are not contiguous"
    return problem.reason_after_product


def make_small_m_tasks(problem: KernelProblem) -> KernelTasks:
    """The tasks of such a product, each of some columns; then what else the kernel computes."""
    x, w = (problem.memory.operand(a) for a in problem.node.args)
    rows, (columns, depth) = math.prod(x.layout.shape[:-1]), w.layout.shape
    target = problem.product_target.operand
    tasks = KernelTasks(keepalive=[problem.product_target])
    tile_rows = -(-rows // -(-rows // _TILE_ROWS[vector_width()]))
    tile_columns = min(_TILE_COLUMNS[vector_width()], columns)
    args = RecordTable(tasks.keepalive).add(
        SmallGemmArgs(
            x=x.address + 4 * x.layout.offset,
            x_row=4 * _row_stride(x.layout),
            rows=rows,
            weights=w.address + 4 * w.layout.offset,
            weight_row=4 * w.layout.strides[0],
            depth=depth,
            y=target.address + 4 * target.layout.offset,
            y_row=4 * _row_stride(target.layout),
        )
    )
    ranges = split_range(columns, min(8 * thread_count(), columns // tile_columns))
    stage: list[Task] = [(compile_small_m_gemm(tile_rows, tile_columns), args, *r) for r in ranges]
    if problem.is_product_stored:
        stage += make_output_halo_tasks(problem.memory, [problem.node.name], tasks.keepalive)
    tasks.stages.append(stage)
    tasks.append_stages(make_tasks_after_product(problem))
    return tasks


def _row_stride(layout: Layout) -> int:
    """Elements from row to row of a matrix."""
    return collapse_strides(layout, len(layout.shape) - 1) or 0


@cache
def compile_small_m_gemm(rows: int, columns: int) -> int:
    """Columns `first` to `last`, at least `columns` of them, of all rows; the last tiles lie over
    those before them; args: DotsArgs."""
    f = LlvmFunction("dots")
    b = f.b
    a = f.record(SmallGemmArgs)
    v = Lanes(f)
    whole = b.and_(a.depth, const_i64(-v.count))
    tail_count = b.sub(a.depth, whole)
    tail = Lanes(f)
    tail.mask = tail.prefix_mask(tail_count)
    with b.goto_entry_block():
        sums = [[b.alloca(v.float_type) for _ in range(columns)] for _ in range(rows)]

    def add(lanes: Lanes, at_x: Value, at_w: Value, k: Value) -> None:
        far = b.mul(k, const_i64(4))
        wide = [
            lanes.load(b.add(b.add(at_w, b.mul(a.weight_row, const_i64(j))), far))
            for j in range(columns)
        ]
        for i, line in enumerate(sums):
            one = lanes.load(b.add(b.add(at_x, b.mul(a.x_row, const_i64(i))), far))
            for total, weights in zip(line, wide, strict=True):
                b.store(fn.fma(lanes, one, weights, b.load(total, typ=v.float_type)), total)

    with f.loop(f.args[1], f.args[2], const_i64(columns)) as begin:
        column = f.min_i64(begin, b.sub(f.args[2], const_i64(columns)))
        at_w = b.add(a.weights, b.mul(column, a.weight_row))
        with f.loop(const_i64(0), a.rows, const_i64(rows)) as first:
            row = f.min_i64(first, b.sub(a.rows, const_i64(rows)))
            at_x = b.add(a.x, b.mul(row, a.x_row))
            for line in sums:
                for total in line:
                    b.store(v.const(0), total)
            with f.loop(const_i64(0), whole, const_i64(v.count)) as k:
                add(v, at_x, at_w, k)
            with b.if_then(b.icmp_signed(">", tail_count, const_i64(0))):
                add(tail, at_x, at_w, whole)
            for i, line in enumerate(sums):
                at = b.add(
                    b.add(a.y, b.mul(b.add(row, const_i64(i)), a.y_row)),
                    b.mul(column, const_i64(4)),
                )
                for j, total in enumerate(line):
                    place = b.inttoptr(b.add(at, const_i64(4 * j)), F32.as_pointer())
                    b.store(_horizontal_sum(v, b.load(total, typ=v.float_type)), place)
    return compile_llvm("dots", f.text())


def _horizontal_sum(v: Lanes, x: Value) -> Value:
    """Of all lanes, halves added to halves."""
    b, count = v.f.b, v.count
    undefined = ir.Constant(x.type, ir.Undefined)
    while count > 1:
        count //= 2
        order = [(i + count) % v.count for i in range(v.count)]
        x = b.fadd(x, b.shuffle_vector(x, undefined, ir.Constant(v.vector_type(I32), order)))
    return b.extract_element(x, ir.Constant(I32, 0))
