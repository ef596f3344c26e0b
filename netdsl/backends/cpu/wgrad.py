"""Gradients of weights as tasks: products whose depth runs over all pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from netdsl.backends.cpu.aligned_allocator import get_scratch
from netdsl.backends.cpu.blocking import (
    L1_CHUNK_BYTES,
    Blocking,
    choose_blocking,
    choose_row_length,
)
from netdsl.backends.cpu.implicit_gemm import locate_padded_image
from netdsl.backends.cpu.kernel_problem import (
    OTHER_KIND,
    KernelProblem,
    make_tasks_after_product,
)
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.map_kernels import KernelTasks, PlanMemory
from netdsl.backends.cpu.micro_kernel import TileTap, compile_micro_kernel
from netdsl.backends.cpu.operand_packing import PanelArgs, compile_panel_copy
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.stride_collapsing import collapse_strides
from netdsl.backends.cpu.task_program import (
    REDUCTION_WORKERS,
    Task,
    partition_tasks,
    split_range,
    thread_count,
)
from netdsl.backends.cpu.wgrad_loops import (
    PartialSumArgs,
    WgradArgs,
    WgradChunkArgs,
    WgradColumnArgs,
    add_partial_sums,
    add_transposed_partial_sums,
    wgrad_gemm,
)
from netdsl.types import Node

_MAX_PARTIAL_ELEMENTS = 1 << 21
"""Elements of all parts together, about: what is written is read again."""
_MAX_IN_PLACE_STRIDE = 256
"""Bytes between lines that stay in the first cache together as they lie."""
_MAX_ROW_LENGTH, _MAX_TASK_ROWS = 128, 256
"""Rows of results that lie one behind the other, and that a task computes, at most."""


@dataclass(frozen=True)
class ColumnRun:
    """Columns one behind the other: bytes from the first row's operand and the first column's, the
    first column in a line of results, and how many."""

    row: int
    column: int
    out: int
    count: int


@dataclass(frozen=True)
class WgradGemm:
    """A sum of products over pixels: rows of one operand's channels, columns of the other's.

    `rows` says where the first lies, `strides` how many bytes apart they are along `size`, and
    `row_k` and `column_k` how far apart pixels are, of which each tap has `depth`. Results have
    lines of `line` elements; `is_transposed` ones are lines of the weight's last axes, and not of
    its first."""

    rows: int
    strides: tuple[int, int, int]
    size: tuple[int, int, int]
    row_k: int
    columns: int
    column_k: int
    runs: tuple[ColumnRun, ...]
    line: int
    taps: tuple[tuple[int, int], ...]
    depth: int
    is_transposed: bool = False

    @property
    def height(self) -> int:
        images, rows, pixels = self.size
        return images * rows * pixels

    @cached_property
    def blocking(self) -> Blocking:
        return choose_blocking(self.size[2], self.runs[0].count, self._total_depth, self.strides[2])

    @property
    def _total_depth(self) -> int:
        return self.depth * len(self.taps)

    @property
    def estimated_cycles(self) -> float:
        """What it costs, about."""
        images, rows, pixels = self.size
        each = sum(
            self.blocking.estimate_cycles(pixels, r.count, self._total_depth) for r in self.runs
        )
        return images * rows * each + 2 * self.height * self.line * self.is_transposed


def explain_wgrad(problem: KernelProblem) -> str | None:
    """Why the gradient of a weight cannot be computed directly, or None. A matrix product is the
    gradient of a 1x1 convolution if both of its operands are read along their columns."""
    node, memory = problem.node, problem.memory
    if node.op == "matmul":
        x, w = (memory.operand(a).layout for a in node.args)
        if len(x.shape) != 2 or len(w.shape) != 2 or x.strides[0] != 1 or w.strides[0] != 1:
            return "the operands are not read along their columns"
        if not _choose_tap_depth(x.shape[1]):
            return "no divisor of the depth is the depth of a tap"
    elif node.op != "conv2d_wgrad":
        return OTHER_KIND
    else:
        gradient = memory.operand(node.args[0]).layout
        if gradient.strides[3] != 1 and gradient.shape[3] > 1:
            return "a gradient whose channels are not contiguous"
    return explain_wgrad_output(problem)


def explain_wgrad_output(problem: KernelProblem) -> str | None:
    """Why a weight's gradient and what follows it cannot be written, or None."""
    layout = problem.product_layout
    if collapse_strides(layout, len(layout.shape)) != 1:
        return "a weight's gradient with gaps"
    return problem.reason_after_product


def _choose_tap_depth(pixels: int) -> int:
    """Steps of a tap: a divisor, few enough that their pages are known to the TLB."""
    return next((d for d in range(64, 15, -1) if pixels % d == 0), 0)


def _make_matmul_wgrad(memory: PlanMemory, node: Node) -> WgradGemm:
    g, x = (memory.operand(a) for a in node.args)
    pixels = g.layout.shape[1]
    depth = _choose_tap_depth(pixels)
    operands = [
        (o.address + 4 * o.layout.offset, 4 * o.layout.strides[1], o.layout.shape[0])
        for o in (g, x)
    ]

    def make_gemm(turned: bool) -> WgradGemm:
        (rows, row_k, height), (columns, column_k, line) = (
            reversed(operands) if turned else operands
        )
        row = choose_row_length(height, _MAX_ROW_LENGTH, line, pixels, 4)
        return WgradGemm(
            rows,
            (0, 4 * row, 4),
            (1, height // row, row),
            row_k,
            columns,
            column_k,
            (ColumnRun(0, 0, 0, line),),
            line,
            tuple((i * row_k, i * column_k) for i in range(0, pixels, depth)),
            depth,
            turned,
        )

    return min(make_gemm(False), make_gemm(True), key=lambda found: found.estimated_cycles)


def _make_conv_wgrad(memory: PlanMemory, node: Node, input_tasks: KernelTasks) -> WgradGemm:
    """conv2d's: a line of results for each channel of the gradient, or for each element of a
    filter where its lines are too short for vectors."""
    a = node.attrs
    g = memory.operand(node.args[0])
    (top, bottom), (left, right) = a["pad"]
    at, (sn, sh, sw) = locate_padded_image(
        memory, node.args[1], (top, bottom, left, right), input_tasks
    )
    n, oh, ow, k = g.layout.shape
    _, r, s, c = node.type.shape
    groups = a["groups"]
    columns_per_group = k // groups
    image, gradient = at - top * sh - left * sw, g.address + 4 * g.layout.offset
    gn, gh, gw = (4 * t for t in g.layout.strides[:3])
    image_k = a["stride"][1] * sw
    taps = tuple(
        (i * sn + j * a["stride"][0] * sh, i * gn + j * gh) for i in range(n) for j in range(oh)
    )
    down, across = a["dilation"][0] * sh, a["dilation"][1] * sw
    # pixels of one line of a filter may lie one behind the other
    merged = groups == 1 and across == 4 * c
    pieces, length = (1, s * c) if merged else (s, c)
    line = r * s * c
    row = choose_row_length(columns_per_group, _MAX_ROW_LENGTH, length, ow * len(taps), 4)
    by_image = WgradGemm(
        gradient,
        (0, 4 * row, 4),
        (1, columns_per_group // row, row),
        gw,
        image,
        image_k,
        tuple(
            ColumnRun(
                4 * q * columns_per_group,
                4 * q * c + i * down + j * across,
                q * columns_per_group * line + (i * s + j) * c,
                length,
            )
            for q in range(groups)
            for i in range(r)
            for j in range(pieces)
        ),
        line,
        tuple((of_gradient, of_image) for of_image, of_gradient in taps),
        ow,
    )
    by_gradient = WgradGemm(
        image,
        (0, down, 4) if merged else (down, across, 4),
        (1, r, s * c) if merged else (r, s, c),
        image_k,
        gradient,
        gw,
        tuple(
            ColumnRun(
                4 * q * c, 4 * q * columns_per_group, q * columns_per_group, columns_per_group
            )
            for q in range(groups)
        ),
        k,
        taps,
        ow,
        is_transposed=True,
    )
    return min(by_image, by_gradient, key=lambda found: found.estimated_cycles)


class WgradKernel:
    """Tasks for a weight's gradient: what all ways to compute it have in common."""

    def __init__(self, problem: KernelProblem) -> None:
        self.problem, self.memory, self.node = problem, problem.memory, problem.node
        self.kernel_tasks = KernelTasks(keepalive=[problem.product_target])
        self.table = RecordTable(self.kernel_tasks.keepalive)

    def _locate_output(self) -> int:
        """Where the result is written."""
        operand = self.problem.product_target.operand
        return operand.address + 4 * operand.layout.offset

    def _add_partials(self, raw: int, parts: int, target: int) -> None:
        """Parts summed that lie in the weight's order."""
        size = math.prod(self.node.type.shape)
        self._append_stage(
            add_partial_sums.address, self._make_partial_sum_args(raw, parts, target, 0), size
        )

    def _add_transposed_partials(self, raw: int, parts: int, target: int, columns: int) -> None:
        """Parts summed whose columns are the weight's first axis."""
        rows = math.prod(self.node.type.shape) // columns
        self._append_stage(
            add_transposed_partial_sums.address,
            self._make_partial_sum_args(raw, parts, target, columns),
            rows,
        )

    def _make_partial_sum_args(self, raw: int, parts: int, target: int, columns: int) -> int:
        size = 4 * math.prod(self.node.type.shape)
        return self.table.add(
            PartialSumArgs(
                parts=raw,
                count=parts,
                size=size,
                target=target,
                columns=columns,
                column=size // columns if columns else 0,
            )
        )

    def _append_stage(self, function: int, args: int, count: int) -> None:
        many = min(4 * thread_count(), math.prod(self.node.type.shape) // 4096)
        self.kernel_tasks.stages.append([(function, args, *r) for r in split_range(count, many)])

    def _append_epilogue(self) -> None:
        """What else the kernel does."""
        self.kernel_tasks.append_stages(make_tasks_after_product(self.problem))


class DirectWgrad(WgradKernel):
    """A weight's gradient cut into tasks. Parts of the depth are summed apart where there is too
    little else to share."""

    def __init__(self, problem: KernelProblem) -> None:
        super().__init__(problem)
        self.gemm = (
            _make_matmul_wgrad(self.memory, self.node)
            if self.node.op == "matmul"
            else _make_conv_wgrad(self.memory, self.node, self.kernel_tasks)
        )
        tiles = self.gemm.blocking
        self.column_blocks = [
            (run, *b) for run in self.gemm.runs for b in tiles.split_columns(run.count)
        ]
        self.line_bytes = max(v for _, _, v, _ in self.column_blocks) * vector_width() * 4
        self.is_read_in_place = self.gemm.column_k <= _MAX_IN_PLACE_STRIDE
        self.lines_per_group = max(1, _MAX_TASK_ROWS // self.gemm.size[2])
        self.taps_per_chunk = max(1, L1_CHUNK_BYTES // (self.line_bytes * self.gemm.depth))

    def launch(self) -> KernelTasks:
        gemm, size = self.gemm, math.prod(self.node.type.shape)
        lines = gemm.size[0] * gemm.size[1]
        groups = -(-lines // self.lines_per_group)
        parts = self._choose_part_count(groups, size)
        tasks = [
            (g, *some)
            for first, last, *some in partition_tasks(
                parts * groups, 1, len(self.column_blocks), thread_count()
            )
            for g in range(first, last)
        ]
        target = self._locate_output()
        is_final = parts == 1 and not gemm.is_transposed
        partial_bytes = 0 if is_final else -(-parts * size // 16) * 64 + 256
        scratch_memory = get_scratch(partial_bytes + len(tasks) * self._compute_panel_bytes()[-1])
        self.kernel_tasks.keepalive.append(scratch_memory)
        partial_sums = scratch_memory.ctypes.data
        args = [
            self._make_args(
                gemm.taps[a:b],
                target if is_final else partial_sums + 4 * i * size,
                partial_sums + partial_bytes,
            )
            for i, (a, b) in enumerate(split_range(len(gemm.taps), parts))
        ]
        rows = split_range(lines, groups)
        stage: list[Task] = [
            (wgrad_gemm.address, args[g // groups], *rows[g % groups], *some, slot)
            for slot, (g, *some) in enumerate(tasks)
        ]
        self.kernel_tasks.stages.append(stage)
        if gemm.is_transposed:
            self._add_transposed_partials(partial_sums, parts, target, gemm.line)
        elif not is_final:
            self._add_partials(partial_sums, parts, target)
        self._append_epilogue()
        return self.kernel_tasks

    def _choose_part_count(self, groups: int, size: int) -> int:
        """How many sums of some of the depth are added at last: whatever the threads."""
        chunks = -(-len(self.gemm.taps) // self.taps_per_chunk)
        parts = 1
        while 2 * parts <= min(8, chunks) and size * parts < _MAX_PARTIAL_ELEMENTS:
            each = groups * parts
            if (
                each >= 2 * REDUCTION_WORKERS
                and each * len(self.column_blocks) >= 8 * REDUCTION_WORKERS
            ):
                break
            parts *= 2
        return parts

    def _compute_panel_bytes(self) -> tuple[int, int, int]:
        """Bytes of a strip of rows that is copied, of all strips, and of a task's copies."""
        longer, length, shorter = self.gemm.blocking.split_strips(self.gemm.size[2])
        depth = self.taps_per_chunk * self.gemm.depth
        strip = 4 * length * depth + 4 * _count_vectors(length) * vector_width()
        rows = -(-self.lines_per_group * (longer + shorter) * strip // 64) * 64
        return strip, rows, rows + depth * self.line_bytes + 256

    def _make_args(self, taps: tuple[tuple[int, int], ...], target: int, panels: int) -> int:
        """The arguments of the tasks of one part; see wgrad_loops.py."""
        gemm, add = self.gemm, self.table.add
        longer, length, shorter = gemm.blocking.split_strips(gemm.size[2])
        strip, rows, panel_size = self._compute_panel_bytes()
        line, column_k = 4 * gemm.line, gemm.column_k if self.is_read_in_place else self.line_bytes
        steps = (4 * length, column_k)
        columns = [
            WgradColumnArgs(
                rows=run.row,
                columns=gemm.columns + run.column + 4 * first,
                out=4 * (run.out + first),
                count=count,
                long_tile=compile_micro_kernel(
                    length, vectors, count < vectors * vector_width(), steps
                ),
                short_tile=compile_micro_kernel(
                    length - 1, vectors, count < vectors * vector_width(), steps
                )
                if shorter
                else 0,
                copy=0 if self.is_read_in_place else compile_panel_copy(vectors),
            )
            for run, first, vectors, count in self.column_blocks
        ]
        chunks = [
            self._make_chunk(taps[i : i + self.taps_per_chunk], length)
            for i in range(0, len(taps), self.taps_per_chunk)
        ]
        long_pieces = PanelArgs(
            depth=gemm.depth,
            step=gemm.row_k,
            pieces=longer,
            piece=4 * length,
            line=4 * length,
            strip=strip,
        )
        return add(
            WgradArgs(
                rows=gemm.rows,
                rows_n=gemm.strides[0],
                row=gemm.strides[1],
                lines=gemm.size[1],
                out=target,
                out_line=gemm.size[2] * line,
                out_pixel=line,
                columns=add(*columns),
                chunks=add(*chunks),
                chunk_count=len(chunks),
                long_strips=longer,
                length=length,
                short_strips=shorter,
                panels=panels,
                panel=panel_size,
                column_panel=rows,
                strip=strip,
                column_k=column_k,
                copy_rows=compile_panel_copy(_count_vectors(length)),
                long_pieces=add(long_pieces),
                short_pieces=add(long_pieces.with_fields(pieces=shorter, piece=4 * (length - 1))),
                column_pieces=add(
                    PanelArgs(
                        depth=gemm.depth,
                        step=gemm.column_k,
                        pieces=1,
                        piece=0,
                        line=self.line_bytes,
                        strip=0,
                    )
                ),
            )
        )

    def _make_chunk(self, some: Sequence[tuple[int, int]], length: int) -> WgradChunkArgs:
        """A chunk of the depth; it has one tap where all is copied."""
        rows, columns = ([t[side] for t in some] for side in (0, 1))
        depth, taps = self.gemm.depth, [TileTap(a=0, b=0)]
        if self.is_read_in_place:
            taps = [TileTap(a=4 * length * depth * i, b=at) for i, at in enumerate(columns)]
        return WgradChunkArgs(
            row_places=self.table.add_i64s(rows),
            column_places=self.table.add_i64s(columns),
            count=len(some),
            taps=self.table.add(*taps),
            tap_count=len(taps),
            tap_depth=depth if self.is_read_in_place else len(some) * depth,
        )


def _count_vectors(count: int) -> int:
    return -(-count // vector_width())
