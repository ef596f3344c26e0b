"""What this processor can do at most: multiply-adds of the micro-kernel within the first cache, and
copies of arrays that caches hold and of some that no cache holds."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from netdsl.backends.base import time_thunk
from netdsl.backends.cpu.expression import Operand
from netdsl.backends.cpu.launch import program, threads
from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.memory import call_tile
from netdsl.backends.cpu.opaque import copied
from netdsl.backends.cpu.record import Record, Table
from netdsl.backends.cpu.room import floats
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import TileTap, most_rows, tile, widths
from netdsl.backends.roofline import Ceilings
from netdsl.plan.layout import make_contiguous
from netdsl.types import Array

_DEPTH = 128
_TIMES = 1024
_COPIED = 1 << 24
"""Elements of each of both arrays, which no cache holds."""
_CACHED = tuple(1 << i for i in range(13, 24, 2))
"""The same of those that caches may hold."""
_TOGETHER = 1 << 20
"""Elements that are copied in one round, time and again where they are fewer."""
_SECONDS, _LEAST_ROUNDS = 0.06, 4
"""How long rounds are repeated, the first third to warm up; and how often at least."""


class TileArgs(Record):
    """A tile's function; its operands, each with bytes to the next row; taps; columns."""

    function: int
    a: int
    a_row: int
    b: int
    b_row: int
    taps: int
    columns: int


@loop
def _multiply(args, times, result, _c, _d, _e):  # type: ignore[no-untyped-def]
    """A tile, time and again; args: TileArgs."""
    t = TileArgs.at(args)
    for _ in range(times):
        call_tile(
            t.function, t.a, t.a_row, 4, t.b, t.b_row, result, t.b_row, t.taps, 1, _DEPTH, 0,
            t.columns, t.a, 0, 0, 0,
        )  # fmt: skip


def measured() -> Ceilings:
    """The best of many short rounds on all threads, three quarters of a second in all."""
    vectors = widths()[0]
    rows, columns = most_rows(vectors), vectors * width()
    a, b = _ones(rows, _DEPTH), _ones(_DEPTH, columns)
    results, kept = [_ones(rows, columns) for _ in range(threads())], list[Any]()
    table = Table(kept)
    args = table.add(
        TileArgs(
            function=tile(rows, vectors, False),
            a=a.ctypes.data,
            a_row=a.strides[0],
            b=b.ctypes.data,
            b_row=b.strides[0],
            taps=table.add(TileTap(a=0, b=0)),
            columns=columns,
        )
    )
    stage = [(_multiply.address, args, _TIMES, r.ctypes.data) for r in results]
    products = _best(program([stage], (kept, a, b, results)))
    flops = 2 * rows * columns * _DEPTH * _TIMES * threads()
    source, target = (np.ones(_COPIED, np.float32) for _ in range(2))
    cached = tuple((8 * n, _copies(source[:n], target[:n])) for n in _CACHED)
    return Ceilings(flops / products, _copies(source, target), cache_bandwidths=cached)


def _copies(source: Array, target: Array) -> float:
    """Bytes a second that are read and written where one array is copied to another."""
    layout, again = make_contiguous(source.shape), max(1, _TOGETHER // source.size)
    launch = copied(Operand(source.ctypes.data, layout, "float32"), layout, target.ctypes.data)
    seconds = _best(program(launch.stages * again, (launch.kept, source, target)))
    return 2 * source.nbytes * again / seconds


def _ones(rows: int, columns: int) -> Array:
    found = floats(rows * columns)[: rows * columns].reshape(rows, columns)
    found[...] = 1
    return found


def _best(run: Callable[[], None]) -> float:
    begin = perf_counter()
    while perf_counter() - begin < _SECONDS / 3:
        run()
    best, rounds = time_thunk(run), 1
    while rounds < _LEAST_ROUNDS or perf_counter() - begin < _SECONDS:
        best, rounds = min(best, time_thunk(run)), rounds + 1
    return best
