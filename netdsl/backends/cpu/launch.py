"""Programs of kernels: stages of tasks that the threads of this process share.

A task is the address of a function, the address of its arguments, and up to five numbers of its
own. The tasks of a stage do not wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

from netdsl.backends.cpu.pool import Pool, Stage, TaskEntry
from netdsl.backends.cpu.record import packed
from netdsl.environment import read_integer
from netdsl.types import Array

Task = tuple[int, ...]
_FIELDS = tuple(TaskEntry.layout)
SHARES = 4
"""How many threads sums are cut for, however many there are: a part is summed by itself, so other
parts would make other bits."""
MOST_THREADS, _A_CORE = 64, 4
"""As many threads as can be asked for, or so many a core: more than one slow each other down."""
_LAST = 32
"""What a thread has to do, over the least that a task is worth."""


@cache
def threads() -> int:
    """How many threads kernels run on: NETDSL_THREADS, else one a core that is ours. Raises
    NetError where that is no such number."""
    ours = getattr(os, "sched_getaffinity", None)
    cores = len(ours(0)) if ours else os.cpu_count() or 1
    most = max(MOST_THREADS, _A_CORE * cores)
    return read_integer("NETDSL_THREADS", most, "number of threads") or cores


@cache
def _pool() -> Pool:
    return Pool(threads() - 1)


def program(stages: Sequence[Sequence[Task]], keep: object = None) -> Callable[[], None]:
    """A function that runs these stages one after the other. `keep` is what their addresses point
    into: it lives as long as the function does."""
    tables = [_table(stage) for stage in stages if stage]
    whole = [Stage(tasks=t.ctypes.data, count=len(t)) for t in tables]
    return _Program(_pool(), packed(whole), (tables, keep)) if whole else _nothing


class _Program:
    def __init__(self, pool: Pool, stages: Array, kept: object) -> None:
        self._run = pool.run
        self._stages = stages
        self._kept = kept

    def __call__(self) -> None:
        self._run(self._stages)


def _table(tasks: Sequence[Task]) -> Array:
    return packed([TaskEntry(**dict(zip(_FIELDS, task, strict=False))) for task in tasks])


def _nothing() -> None:
    """A program without a stage."""


def shared(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges that share out `count`, at most so many."""
    many = max(1, min(count, most))
    cut = [count * i // many for i in range(many + 1)]
    return list(pairwise(cut))


def cut(lines: int, block: int, columns: int, workers: int) -> list[tuple[int, int, int, int]]:
    """Tasks in which `workers` share out `lines` times `columns`: large ones first, small ones
    last, so that none waits long for another one. A task is whole blocks of lines, else columns of
    one block, else lines of one column of it."""
    many, total = max(2, workers), lines * columns
    found, left, at, column, line = [], total, 0, 0, 0
    while left > 0:
        want = max(left / (2 * many), total / (_LAST * many))
        high = min(block, lines - at)
        if column == line == 0 and want >= high * columns:
            count = min(lines - at, max(int(want) // (columns * block) * block, high))
            found.append((at, at + count, 0, columns))
            at += count
            left -= count * columns
            continue
        if line == 0 and want >= high:
            count = min(columns - column, int(want) // high)
            found.append((at, at + high, column, column + count))
            column, left = column + count, left - count * high
        else:
            count = min(high - line, max(1, int(want)))
            found.append((at + line, at + line + count, column, column + 1))
            line, left = line + count, left - count
            column, line = (column + 1, 0) if line == high else (column, line)
        if column == columns:
            at, column = at + high, 0
    return found
