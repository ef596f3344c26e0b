"""What this processor can do at most: multiply-adds of the micro-kernel within the first cache, and
copies of arrays that caches hold and of some that no cache holds."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from netdsl.backends.base import time_thunk
from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.copy_kernels import make_copy_loops, make_copy_tasks
from netdsl.backends.cpu.intrinsics import call_tile
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.memory_ref import KernelOperand
from netdsl.backends.cpu.micro_kernel import (
    TileTap,
    compile_micro_kernel,
    list_vector_counts,
    max_rows,
)
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.backends.cpu.record import Record, RecordTable
from netdsl.backends.cpu.task_program import make_program, thread_count
from netdsl.backends.roofline import Ceilings
from netdsl.plan.layout import make_contiguous
from netdsl.types import Array

_DEPTH = 128
_MICRO_KERNEL_CALLS = 1024
_UNCACHED_ELEMENTS = 1 << 24
"""Elements of each of both arrays, which no cache holds."""
_CACHED_ELEMENTS = tuple(1 << i for i in range(13, 24, 2))
"""The same of those that caches may hold."""
_ROUND_ELEMENTS = 1 << 20
"""Elements that are copied in one round, time and again where they are fewer."""
_MIN_SECONDS, _MIN_ROUNDS = 0.06, 4
"""How long rounds are repeated, the first third to warm up; and how often at least."""


class MicroKernelArgs(Record):
    """A tile's function; its operands, each with bytes to the next row; taps; columns."""

    function: int
    a: int
    a_row: int
    b: int
    b_row: int
    taps: int
    columns: int


@numba_loop
def _run_micro_kernel(args, times, result, _c, _d, _e):  # type: ignore[no-untyped-def]
    """A tile, time and again; args: TileArgs."""
    t = MicroKernelArgs.at(args)
    for _ in range(times):
        call_tile(
            t.function, t.a, t.a_row, 4, t.b, t.b_row, result, t.b_row, t.taps, 1, _DEPTH, 0,
            t.columns, t.a, 0, 0, 0,
        )  # fmt: skip


def measure_cpu_ceilings() -> Ceilings:
    """The best of many short rounds on all threads, three quarters of a second in all."""
    vectors = list_vector_counts()[0]
    rows, columns = max_rows(vectors), vectors * vector_width()
    a, b = _allocate_ones(rows, _DEPTH), _allocate_ones(_DEPTH, columns)
    results, kept = [_allocate_ones(rows, columns) for _ in range(thread_count())], list[Any]()
    table = RecordTable(kept)
    args = table.add(
        MicroKernelArgs(
            function=compile_micro_kernel(rows, vectors, False),
            a=a.ctypes.data,
            a_row=a.strides[0],
            b=b.ctypes.data,
            b_row=b.strides[0],
            taps=table.add(TileTap(a=0, b=0)),
            columns=columns,
        )
    )
    stage = [(_run_micro_kernel.address, args, _MICRO_KERNEL_CALLS, r.ctypes.data) for r in results]
    multiply_seconds = _measure_best_seconds(make_program([stage], (kept, a, b, results)))
    flops = 2 * rows * columns * _DEPTH * _MICRO_KERNEL_CALLS * thread_count()
    source, target = (np.ones(_UNCACHED_ELEMENTS, np.float32) for _ in range(2))
    cached = tuple(
        (8 * n, _measure_copy_bandwidth(source[:n], target[:n])) for n in _CACHED_ELEMENTS
    )
    return Ceilings(
        flops / multiply_seconds, _measure_copy_bandwidth(source, target), cache_bandwidths=cached
    )


def _measure_copy_bandwidth(source: Array, target: Array) -> float:
    """Bytes a second that are read and written where one array is copied to another."""
    layout, repeats = make_contiguous(source.shape), max(1, _ROUND_ELEMENTS // source.size)
    operand = KernelOperand(source.ctypes.data, layout, "float32")
    tasks = make_copy_tasks(make_copy_loops(operand, layout, target.ctypes.data))
    seconds = _measure_best_seconds(
        make_program(tasks.stages * repeats, (tasks.keepalive, source, target))
    )
    return 2 * source.nbytes * repeats / seconds


def _allocate_ones(rows: int, columns: int) -> Array:
    found = allocate_floats(rows * columns)[: rows * columns].reshape(rows, columns)
    found[...] = 1
    return found


def _measure_best_seconds(run: Callable[[], None]) -> float:
    begin = perf_counter()
    while perf_counter() - begin < _MIN_SECONDS / 3:
        run()
    best, rounds = time_thunk(run), 1
    while rounds < _MIN_ROUNDS or perf_counter() - begin < _MIN_SECONDS:
        best, rounds = min(best, time_thunk(run)), rounds + 1
    return best
