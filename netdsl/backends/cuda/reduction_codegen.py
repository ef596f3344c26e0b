"""Generates deterministic two-stage reductions: blocks reduce rows, then partial results are
reduced; a block that has all rows of a result does both.

Moments are taken around the first element of each group, which avoids cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from netdsl.backends.cuda.c_expression import MEMORY_TYPES, render_tree
from netdsl.backends.cuda.cuda_launch import (
    SCRATCH,
    THREADS_PER_BLOCK,
    Address,
    DeviceFunction,
    KernelArgument,
    element_address,
)
from netdsl.backends.cuda.geometry import Geometry
from netdsl.backends.cuda.map_codegen import MapCodegen, device_function_source
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.reduction import ReductionResults
from netdsl.lower.trace import Reduction, TracedKernel
from netdsl.plan.layout import Layout, row_major_strides
from netdsl.plan.placement import Placement

_MAX_FINISH_THREADS = 512
_MIN_PARALLEL_COLUMNS = 4
_PITCH = THREADS_PER_BLOCK + 8
_SHARED_BYTES = 40 << 10


class Accumulators:
    """The accumulators of a kernel; a block writes one partial result for each of them."""

    def __init__(self, traced: TracedKernel, g: Geometry) -> None:
        self.reductions = traced.reductions
        self.result_columns = g.lanes * g.width if g.is_column_reduction else 1
        self.is_column_reduction = g.is_column_reduction
        self.width = g.width
        self.values = [(a.value, a.kind) for a in traced.accumulators]
        self.first_numbers = {}
        at = 0
        for i, (_, mode) in enumerate(self.values):
            self.first_numbers[i] = at
            at += 3 if mode == "moments" else 1
        self.count = at
        self.ctype = "double" if any(v.dtype == "float64" for v, _ in self.values) else "float"

    def declare(self) -> list[str]:
        if not self.count:
            return []
        starts = []
        for i, (_, mode) in enumerate(self.values):
            q = self.first_numbers[i]
            start = "-INFINITY" if mode == "max" else "0"
            starts.append(f"a[{q}][j] = {start};")
            if mode == "moments":
                starts.append(f"a[{q + 1}][j] = 0; a[{q + 2}][j] = 0;")
        each = "UNROLL for (int j = 0; j < V; j++)"
        return [f"{self.ctype} a[{self.count}][V];", f"{each} {{ {' '.join(starts)} }}"]

    def compute_shifts(
        self, codegen: MapCodegen, raw: list[str], loads: list[str], decode: list[str]
    ) -> list[str]:
        """Returns the lines that load the first row, around which moments are taken."""
        assigned = [
            f"a[{self.first_numbers[i] + 2}][j] = {codegen.element(v)};"
            for i, (v, mode) in enumerate(self.values)
            if mode == "moments"
        ]
        if not assigned:
            return []
        return [
            "{ const int u = 0; const i64 row = begin;",
            *raw,
            *decode,
            *loads,
            *codegen.unpack_loads(codegen.expressions),
            "UNROLL for (int j = 0; j < V; j++) {",
            *codegen.compute(codegen.expressions),
            *assigned,
            "} }",
            *self._share_shift(),
        ]

    def _share_shift(self) -> list[str]:
        """Returns the lines that share the first lane's shift, if lanes are reduced too."""
        if self.is_column_reduction:
            return []
        moments = [
            self.first_numbers[i] + 2
            for i, (_, mode) in enumerate(self.values)
            if mode == "moments"
        ]
        return [f"UNROLL for (int j = 1; j < V; j++) a[{q}][j] = a[{q}][0];" for q in moments]

    def accumulate(self, codegen: MapCodegen) -> list[str]:
        lines = []
        for i, (value, mode) in enumerate(self.values):
            q, v = self.first_numbers[i], codegen.element(value)
            if mode == "max":
                lines.append(
                    f"a[{q}][j] = a[{q}][j] >= {v} || a[{q}][j] != a[{q}][j] ? a[{q}][j] : {v};"
                )
            elif mode == "moments":
                lines.append(f"{{ const {self.ctype} m = {v} - a[{q + 2}][j];")
                lines.append(f"a[{q}][j] += m; a[{q + 1}][j] += m * m; }}")
            else:
                lines.append(f"a[{q}][j] += {v};")
        return lines

    def combine(self, part: str, across: int) -> list[str]:
        """Returns the lines that reduce a block's rows and write to the scratch buffer."""
        if not self.count:
            return []
        head = [f"{self.ctype}* part = ({self.ctype}*){part};"]
        if self.is_column_reduction and across >= _MIN_PARALLEL_COLUMNS:
            return [*head, *self._combine_columns()]
        lines = [*head, f"__shared__ {self.ctype} sm[V * {THREADS_PER_BLOCK}];"]
        for q, merge_mode in self.merge_modes():
            lines += self._combine_tree(q, merge_mode)
        return lines

    def merge_modes(self) -> list[tuple[int, str]]:
        """Returns the number of each accumulator and how its partial results are merged."""
        found = []
        for i, (_, mode) in enumerate(self.values):
            q = self.first_numbers[i]
            found.append((q, "max" if mode == "max" else "add"))
            if mode == "moments":
                found += [(q + 1, "add"), (q + 2, "first")]
        return found

    def _combine_columns(self) -> list[str]:
        """Reduces all columns of a block at once, one thread per column."""
        max_accumulators = max(
            1, _SHARED_BYTES // (_PITCH * self.width * (8 if self.ctype == "double" else 4))
        )
        merge_modes = self.merge_modes()
        shared_size = min(max_accumulators, len(merge_modes)) * self.width * _PITCH
        lines = [f"__shared__ {self.ctype} sm[{shared_size}];"]
        for first in range(0, len(merge_modes), max_accumulators):
            group = merge_modes[first : first + max_accumulators]
            lines.append("__syncthreads();")
            for k, (q, _) in enumerate(group):
                at = f"sm[({k} * V + j) * {_PITCH} + t]"
                lines.append(f"UNROLL for (int j = 0; j < V; j++) {at} = a[{q}][j];")
            lines += [
                "__syncthreads();",
                f"for (int o = t; o < {len(group)} * V * across; o += down * across) {{",
                "const int x = o % across, kj = o / across, k = kj / V, j = kj % V;",
                f"const {self.ctype}* s = sm + kj * {_PITCH} + x; {self.ctype} v = s[0];",
            ]
            # a conditional expression, since an array would be in memory
            modes = [("add", "max", "first").index(merge_mode) for _, merge_mode in group]
            chain = "".join(f"k == {k} ? {mode} : " for k, mode in enumerate(modes[:-1]))
            lines += [
                f"const int mode = {chain}{modes[-1]};",
                f"if (mode < 2) for (int r = 1; r < down; r++) {{ const {self.ctype} z = s[r * across];",
                "v = mode == 0 ? v + z : v >= z || v != v ? v : z; }",
                "const int column = by * across + x;",
                "if (column < lanes)",
                f"part[(((i64)bx * {self.count} + {first} + k) * lanes + column) * V + j] = v; }}",
            ]
        return lines

    def _combine_tree(self, q: int, merge_mode: str) -> list[str]:
        merged = {
            "add": "x + y",
            "max": "x >= y || x != x ? x : y",
            "first": "x",
        }[merge_mode]
        lines = [
            "__syncthreads();",
            f"UNROLL for (int j = 0; j < V; j++) sm[j * {THREADS_PER_BLOCK} + t] = a[{q}][j];",
            "__syncthreads();",
            "for (int n = down; n > 1;) { const int half = (n + 1) / 2;",
            f"if (r0 < n - half) UNROLL for (int j = 0; j < V; j++) {{ const int k = j * {THREADS_PER_BLOCK} + t;",
            f"const {self.ctype} x = sm[k], y = sm[k + half * across]; sm[k] = {merged}; }}",
            "n = half; __syncthreads(); }",
        ]
        if self.is_column_reduction:
            at = f"((i64)bx * {self.count} + {q}) * lanes * V + c + j"
            write = (
                f"UNROLL for (int j = 0; j < V; j++) part[{at}] = sm[j * {THREADS_PER_BLOCK} + t];"
            )
            return [*lines, f"if (r0 == 0 && lane < lanes) {write}"]
        return [
            *lines,
            f"if (t == 0) {{ {self.ctype} x = sm[0];",
            f"UNROLL for (int j = 1; j < V; j++) {{ const {self.ctype} y = sm[j * {THREADS_PER_BLOCK}]; x = {merged}; }}",
            f"part[(i64)bx * {self.count} + {q}] = x; }}",
        ]


def build_second_stage(
    traced: TracedKernel, g: Geometry, chunks: int, scratch_offset: int, threads: int | None
) -> DeviceFunction:
    """Returns the second stage, which merges the partial results of blocks."""
    accumulators = Accumulators(traced, g)
    width = accumulators.result_columns
    across = 8 if chunks > 8 else 64
    while across > 1 and across // 2 >= width:
        across //= 2
    arguments: list[KernelArgument] = [
        Address(SCRATCH, scratch_offset),
        chunks,
        width,
        across,
        g.rows_per_result * _elements_per_row(g),
    ]

    def add_argument(value: KernelArgument) -> str:
        arguments.append(value)
        return f"w{len(arguments) - 1}"

    lines = [
        "const i64 chunks = w1, width = w2; const int t = threadIdx.x, across = (int)w3;",
        "const int x = t % across, y = t / across, down = blockDim.x / across;",
        "const i64 tiles = (width + across - 1) / across, outer = bx / tiles;",
        "const i64 col = (bx % tiles) * across + x, i = outer * width + col; (void)by; (void)nbx;",
        "const double count = (double)w4; (void)count; (void)i;",
        f"const {accumulators.ctype}* part = (const {accumulators.ctype}*)w0; __shared__ double sm[{_MAX_FINISH_THREADS}];",
    ]
    for q, merge_mode in accumulators.merge_modes():
        lines += _gather_partials(q, merge_mode, accumulators)
    lines += [
        "if (y == 0 && col < width) {",
        *_write_results(traced, accumulators, add_argument),
        "}",
    ]
    source = device_function_source(lines, len(arguments))
    blocks = g.outer_size * -(-width // across)
    down = 1
    while down < chunks and down * across < _MAX_FINISH_THREADS:
        down *= 2
    return DeviceFunction(source, (blocks, 1), threads or across * down, tuple(arguments))


def finish_in_block(
    traced: TracedKernel,
    g: Geometry,
    accumulators: Accumulators,
    add_argument: Callable[[KernelArgument], str],
) -> list[str]:
    """Returns the lines that write the results of a block that has all rows, from the partial
    results that it left in the scratch buffer."""
    column_count = "across * V" if g.is_column_reduction else "1"
    partial_loads = [
        f"const double s{q} = part[(outer * {accumulators.count} + {q}) * width + col];"
        for q, _ in accumulators.merge_modes()
    ]
    return [
        "__syncthreads();",
        f"const i64 width = {add_argument(accumulators.result_columns)};",
        f"const double count = (double){add_argument(g.rows_per_result * _elements_per_row(g))}; (void)count;",
        f"for (int x = t; x < {column_count}; x += across * down) {{",
        f"const i64 col = (i64)by * {column_count} + x, i = outer * width + col; (void)i;",
        *[
            "if (col < width) {",
            *partial_loads,
            *_write_results(traced, accumulators, add_argument),
            "} }",
        ],
    ]


def _write_results(
    traced: TracedKernel, accumulators: Accumulators, add_argument: Callable[[KernelArgument], str]
) -> list[str]:
    """Returns the lines that write each reduction's result from the sums `s0`, `s1`, ..."""
    lines, number = list[str](), 0
    for r in traced.reductions:
        lines += _write_result(r, accumulators, number, add_argument)
        number += len(r.accumulators)
    return lines


def _elements_per_row(g: Geometry) -> int:
    return 1 if g.is_column_reduction else g.lanes * g.width


def _gather_partials(q: int, merge_mode: str, accumulators: Accumulators) -> list[str]:
    at = f"part[((outer * chunks + k) * {accumulators.count} + {q}) * width + col]"
    if merge_mode == "first":
        return [f"double s{q} = 0; if (col < width) {{ const i64 k = 0; s{q} = {at}; }}"]
    start, merged = (
        ("-INFINITY", "v >= z || v != v ? v : z") if merge_mode == "max" else ("0", "v + z")
    )
    return [
        f"double s{q} = {start};",
        "if (col < width) for (i64 k = y; k < chunks; k += down) {",
        f"const double v = s{q}, z = {at}; s{q} = {merged}; }}",
        f"__syncthreads(); sm[t] = s{q}; __syncthreads();",
        "for (int n = down; n > 1;) { const int half = (n + 1) / 2;",
        "if (y < n - half) { const double v = sm[t], z = sm[t + half * across];",
        f"sm[t] = {merged}; }} n = half; __syncthreads(); }}",
        f"s{q} = sm[x];",
    ]


def _write_result(
    r: Reduction,
    accumulators: Accumulators,
    number: int,
    add_argument: Callable[[KernelArgument], str],
) -> list[str]:
    """Returns the lines that write one reduction's results from its sums."""
    if r.place.padding is not None or not _is_contiguous(r.place.layout):
        raise UnsupportedKernelError(f"{r.node.name} is not contiguous")
    kind = MEMORY_TYPES[r.place.dtype]
    out = f"(({kind}*){add_argument(element_address(r.place, r.place.layout.offset))})"
    q = accumulators.first_numbers[number]
    results = ReductionResults(r)
    names = {id(e): f"s{q + i}" for i, e in enumerate(results.sums)}
    names |= {id(results.count): "count", id(results.shift): f"s{q + 2}"}
    if r.moments is not None:
        names[id(results.variance)] = _load_variance(r.moments, add_argument)
    lines, row = [], out
    for e in results.values:
        lines.append(f"{{ const double r = {render_tree(e, names)}; store<1>({row} + i, &r); }}")
        if e is not results.values[-1]:
            row = f"{out} + {add_argument(math.prod(r.place.layout.shape) // 2)}"
    return lines


def _load_variance(moments: Placement, add_argument: Callable[[KernelArgument], str]) -> str:
    layout = moments.layout
    if not _is_contiguous(layout):
        raise UnsupportedKernelError("the moments are not contiguous")
    row = add_argument(element_address(moments, layout.offset + math.prod(layout.shape) // 2))
    return f"(double)widen((({MEMORY_TYPES[moments.dtype]} const*){row})[i])"


def _is_contiguous(layout: Layout) -> bool:
    return layout.strides == row_major_strides(layout.shape)
