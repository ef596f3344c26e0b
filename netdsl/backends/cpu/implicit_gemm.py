"""What a convolution, its gradient for the image and a matrix product have in common: passes over
pixels, taps and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.blocking import choose_row_length
from netdsl.backends.cpu.copy_kernels import make_copy_loops, make_copy_tasks
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.map_kernels import KernelTasks, PlanMemory
from netdsl.backends.cpu.stride_collapsing import collapse_strides
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple, Layout
from netdsl.types import Node

_MAX_ROW_PIXELS = 112
_MAX_UNPACKED_ROWS = 32
"""Rows of a product that are too few for packing its weights to be worth while."""


@dataclass(frozen=True)
class GemmTap:
    """A run of weights beside a run of the image: `offset` bytes from the first pixel, and the
    pieces of weight (bytes from a block's first) that lie one behind the other in it."""

    offset: int
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class GemmPass:
    """Pixels that are computed alike: where they begin, their strides, and the taps of each."""

    image: int
    image_strides: tuple[int, int, int]
    out: int
    out_strides: tuple[int, int, int]
    rows: int
    pixels: int
    taps: tuple[GemmTap, ...]


@dataclass(frozen=True)
class GemmWeights:
    """Where weights lie: bytes from column to column and along the depth; `depth` of a piece."""

    address: int
    column_stride: int
    depth_stride: int
    depth: int


@dataclass(frozen=True)
class ColumnGroup:
    """Columns that read the same channels: offsets in bytes."""

    image: int
    weight: int
    out: int
    columns: int


@dataclass
class ImplicitGemm:
    """A whole product, before it is cut into tasks; `scale`: rows and columns of the result for
    each of a pass."""

    image_count: int
    height: int
    scale: tuple[int, int]
    passes: list[GemmPass]
    weights: GemmWeights
    groups: list[ColumnGroup]
    image_depth_stride: int
    has_unpacked_weights: bool = False
    input_tasks: KernelTasks = field(default_factory=KernelTasks)

    @property
    def multiplications(self) -> int:
        """Of all groups together."""
        taps = sum(p.rows * p.pixels * len(t.pieces) for p in self.passes for t in p.taps)
        return self.image_count * taps * self.weights.depth * sum(g.columns for g in self.groups)


def explain_gemm(memory: PlanMemory, node: Node) -> str | None:
    """Why a node is no implicit GEMM, or None."""
    if node.op not in GEMM_MAKERS:
        return f"no implicit GEMM for {node.op}"
    if node.op == "matmul":
        x, w = (memory.operand(a).layout for a in node.args)
        if len(w.shape) != 2:
            return "a batch of matrix products"
        if len(x.shape) != 4 and collapse_strides(x, len(x.shape) - 1) is None:
            return "rows that no stride expresses"
    return None


# the makers of all products that `explain_gemm` has nothing against


def make_conv_gemm(memory: PlanMemory, kernel: Kernel, node: Node) -> tuple[ImplicitGemm, IntTuple]:
    w, a = memory.operand(node.args[1]), node.attrs
    (top, bottom), (left, right) = a["pad"]
    input_tasks = KernelTasks()
    at, (sn, sh, sw) = locate_padded_image(
        memory, node.args[0], (top, bottom, left, right), input_tasks
    )
    k, r, s, c = w.layout.shape
    n, oh, ow, _ = node.type.shape
    dh, dw = a["dilation"]
    st = [4 * t for t in w.layout.strides]
    taps = []
    for i in range(r):
        columns = [(j * dw * sw, i * st[1] + j * st[2]) for j in range(s)]
        merged = sw == 4 * c and a["groups"] == 1
        taps += _merge_taps(columns, i * dh * sh, 4 * c if merged else 0)
    image = at - top * sh - left * sw
    strides = (sn, a["stride"][0] * sh, a["stride"][1] * sw)
    gemm_pass = GemmPass(
        image, strides, 0, (oh * ow * k * 4, ow * k * 4, k * 4), oh, ow, tuple(taps)
    )
    weights = GemmWeights(w.address + 4 * w.layout.offset, st[0], st[3], c)
    columns_per_group = k // a["groups"]
    groups = [
        ColumnGroup(
            g * c * 4, g * columns_per_group * st[0], g * columns_per_group * 4, columns_per_group
        )
        for g in range(a["groups"])
    ]
    return ImplicitGemm(
        n, oh, (1, 1), [gemm_pass], weights, groups, 4, input_tasks=input_tasks
    ), node.type.shape


def _merge_taps(columns: list[tuple[int, int]], row: int, pixel: int) -> list[GemmTap]:
    """Taps of one row of a kernel; one tap where their pixels lie one behind the other."""
    columns = sorted(columns)
    steps = {b[0] - a[0] for a, b in pairwise(columns)}
    if columns and steps <= {pixel}:
        return [GemmTap(row + columns[0][0], tuple(piece for _, piece in columns))]
    return [GemmTap(row + offset, (piece,)) for offset, piece in columns]


def make_dgrad_gemm(
    memory: PlanMemory, kernel: Kernel, node: Node
) -> tuple[ImplicitGemm, IntTuple]:
    g, w = (memory.operand(a) for a in node.args)
    a = node.attrs
    k, r, s, c = w.layout.shape
    n, h, wide, channels = node.type.shape
    dy, dx = a["stride"]
    (top, _), (left, _) = a["pad"]
    rows = [_find_phase_taps(p, top, r, a["dilation"][0], dy) for p in range(dy)]
    columns = [_find_phase_taps(p, left, s, a["dilation"][1], dx) for p in range(dx)]
    required_halo = (
        *_compute_required_halo(rows, h, dy, g.layout.shape[1]),
        *_compute_required_halo(columns, wide, dx, g.layout.shape[2]),
    )
    input_tasks = KernelTasks()
    at, (sn, sh, sw) = locate_padded_image(memory, node.args[0], required_halo, input_tasks)
    st = [4 * t for t in w.layout.strides]
    columns_per_group = k // a["groups"]
    pixel = 4 * columns_per_group if sw == 4 * k and a["groups"] == 1 else 0
    passes = []
    for ph, down in enumerate(rows[:h]):
        for pw, right in enumerate(columns[:wide]):
            taps = []
            for i, oi in down:
                across = [(oj * sw, i * st[1] + j * st[2]) for j, oj in right]
                taps += _merge_taps(across, oi * sh, pixel)
            strides = (h * wide * channels * 4, dy * wide * channels * 4, dx * channels * 4)
            first = (ph * wide + pw) * channels * 4
            size = (-(-(h - ph) // dy), -(-(wide - pw) // dx))
            passes.append(GemmPass(at, (sn, sh, sw), first, strides, *size, tuple(taps)))
    weights = GemmWeights(w.address + 4 * w.layout.offset, st[3], st[0], columns_per_group)
    groups = [
        ColumnGroup(q * columns_per_group * 4, q * columns_per_group * st[0], q * c * 4, c)
        for q in range(a["groups"])
    ]
    return ImplicitGemm(
        n, h, (dy, dx), passes, weights, groups, 4, input_tasks=input_tasks
    ), node.type.shape


def _find_phase_taps(
    p: int, pad: int, kernel: int, dilation: int, stride: int
) -> list[tuple[int, int]]:
    """Which taps reach the pixels p, p + stride, ...: and how far from theirs the gradient lies."""
    reached = ((i, p + pad - i * dilation) for i in range(kernel))
    return [(i, far // stride) for i, far in reached if far % stride == 0]


def _compute_required_halo(
    phases: list[list[tuple[int, int]]], size: int, stride: int, gradient_size: int
) -> IntTuple:
    """Zeros that are read before and behind."""
    low = high = 0
    for p, taps in enumerate(phases):
        count = -(-(size - p) // stride)
        for _, far in taps:
            low, high = max(low, -far), max(high, far + count - gradient_size)
    return low, high


def locate_padded_image(
    memory: PlanMemory, name: str, required_halo: IntTuple, input_tasks: KernelTasks
) -> tuple[int, tuple[int, int, int]]:
    """Where an image begins that has at least these zeros around it: its own place, or a copy."""
    place = memory.plan.placements[name]
    operand = memory.operand(name)
    halo = tuple(v for side in place.padding.halo for v in side) if place.padding else (0,) * 4
    layout = operand.layout
    has_required_halo = all(h >= n for h, n in zip(halo, required_halo, strict=True))
    if has_required_halo and (layout.strides[3] == 1 or layout.shape[3] == 1):
        sn, sh, sw, _ = layout.strides
        return operand.address + 4 * layout.offset, (4 * sn, 4 * sh, 4 * sw)
    n, h, w, c = layout.shape
    top, bottom, left, right = required_halo
    high, wide = h + top + bottom, w + left + right
    copy = allocate_floats(n * high * wide * c)
    strides = (high * wide * c, wide * c, c, 1)
    address = copy.ctypes.data + 4 * (top * strides[1] + left * strides[2])
    input_tasks.keepalive.append(copy)
    copy = make_copy_loops(operand, Layout((n, h, w, c), strides), address)
    input_tasks.append_stages(make_copy_tasks(copy))
    return address, (4 * strides[0], 4 * strides[1], 4 * strides[2])


def make_matmul_gemm(
    memory: PlanMemory, kernel: Kernel, node: Node
) -> tuple[ImplicitGemm, IntTuple]:
    x, w = (memory.operand(a) for a in node.args)
    depth = x.layout.shape[-1]
    columns = w.layout.shape[0]
    axes = _split_leading_axes(x.layout, columns, memory, kernel)
    (n, sn), (rows, sr), (pixels, sp) = axes
    out = (rows * pixels * columns * 4, pixels * columns * 4, columns * 4)
    sc, sk = (4 * t for t in w.layout.strides)
    sc = 4 if columns == 1 else sc
    is_unpacked = sc == 4 and n * rows * pixels <= _MAX_UNPACKED_ROWS
    gemm_pass = GemmPass(
        x.address + 4 * x.layout.offset,
        (4 * sn, 4 * sr, 4 * sp),
        0,
        out,
        rows,
        pixels,
        (GemmTap(0, (0,)),),
    )
    weights = GemmWeights(w.address + 4 * w.layout.offset, sc, sk, depth)
    step = 4 * x.layout.strides[-1]
    gemm = ImplicitGemm(
        n, rows, (1, 1), [gemm_pass], weights, [ColumnGroup(0, 0, 0, columns)], step, is_unpacked
    )
    return gemm, (n, rows, pixels, columns)


def _split_leading_axes(
    layout: Layout, columns: int, memory: PlanMemory, kernel: Kernel
) -> list[tuple[int, int]]:
    """The axes before the last as three: images, rows, pixels; each with its stride."""
    lead = layout.shape[:-1]
    step = collapse_strides(layout, len(lead))
    if step is None and len(lead) == 3:
        return [(s, t) for s, t in zip(lead, layout.strides, strict=False)]
    assert step is not None
    layouts = [memory.operand(v).layout for v in (*kernel.inputs, *kernel.outputs)]
    images = [v for v in layouts if len(v.shape) == 4 and v.shape[:3] == lead]
    if len(lead) == 3 and any(collapse_strides(v, 3) is None for v in images):
        return [(s, t) for s, t in zip(lead, layout.strides, strict=False)]
    count = math.prod(lead)
    workers = memory.count_workers(kernel)
    max_pixels = max(6, min(_MAX_ROW_PIXELS, count // (2 * workers)))
    # few pixels are one row where there are columns enough for all threads
    is_single_row = count <= _MAX_ROW_PIXELS and columns >= 8 * vector_width() * workers
    pixels = (
        count
        if is_single_row
        else choose_row_length(count, max_pixels, columns, layout.shape[-1], 4 * step)
    )
    return [(1, 0), (count // pixels, pixels * step), (pixels, step)]


GEMM_MAKERS = {
    "conv2d": make_conv_gemm,
    "conv2d_dgrad": make_dgrad_gemm,
    "matmul": make_matmul_gemm,
}
