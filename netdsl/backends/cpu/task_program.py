"""Programs of kernels: stages of tasks that the threads of this process share.

A task is the address of a function, the address of its arguments, and up to five numbers of its
own. The tasks of a stage do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby, pairwise

import numpy as np

from netdsl.backends.cpu.record import pack_records
from netdsl.backends.cpu.thread_pool import TaskEntry, TaskStage, ThreadPool
from netdsl.environment import read_integer
from netdsl.ranks.cores import count_cores
from netdsl.types import Array

Task = tuple[int, ...]
_TASK_FIELDS = tuple(TaskEntry.layout)
REDUCTION_WORKERS = 4
"""How many threads sums are cut for, however many there are: a part is summed by itself, so other
parts would make other bits."""
MAX_THREADS, _MAX_THREADS_PER_CORE = 64, 4
"""As many threads as can be asked for, or so many a core: more than one slow each other down."""
_MAX_TASKS_PER_WORKER = 32
"""What a thread has to do, over the least that a task is worth."""
_MAX_MERGED = 16
"""How many kernels one call runs, at most."""


@cache
def thread_count() -> int:
    """How many threads kernels run on: NETDSL_THREADS, else one a core that is ours, of which ranks
    on a host get equal parts. Raises NetError where that is no such number."""
    cores = count_cores()
    max_threads = max(MAX_THREADS, _MAX_THREADS_PER_CORE * cores)
    return read_integer("NETDSL_THREADS", max_threads, "number of threads") or cores


@cache
def _thread_pool() -> ThreadPool:
    return ThreadPool(thread_count() - 1)


def make_program(stages: Sequence[Sequence[Task]], keepalive: object = None) -> Callable[[], None]:
    """A function that runs these stages one after the other. `keepalive` is what their addresses
    point into: it lives as long as the function does."""
    tables = [_pack_tasks(stage) for stage in stages if stage]
    packed_stages = [TaskStage(tasks=t.ctypes.data, count=len(t)) for t in tables]
    return (
        _Program(_thread_pool(), pack_records(packed_stages), (tables, keepalive))
        if packed_stages
        else _run_nothing
    )


class _Program:
    def __init__(self, pool: ThreadPool, stages: Array, keepalive: object) -> None:
        self._pool = pool
        self.stages = stages
        self._keepalive = keepalive

    def __call__(self) -> None:
        self._pool.run(self.stages)


def merge_programs(
    functions: Sequence[Callable[[], None]],
) -> tuple[Callable[[], None], ...]:
    """The same functions, with up to `_MAX_MERGED` consecutive programs made one. Each call of a
    program takes the interpreter's lock back, for which it waits while another thread runs Python;
    a signal, in turn, waits for the end of a call."""
    found: list[Callable[[], None]] = []
    for is_program, group in groupby(functions, lambda f: isinstance(f, _Program)):
        if not is_program:
            found += group
            continue
        programs = [f for f in group if isinstance(f, _Program)]
        for i in range(0, len(programs), _MAX_MERGED):
            part = programs[i : i + _MAX_MERGED]
            stages = np.concatenate([p.stages for p in part])
            found.append(_Program(_thread_pool(), stages, part))
    return tuple(found)


def _pack_tasks(tasks: Sequence[Task]) -> Array:
    return pack_records(
        [TaskEntry(**dict(zip(_TASK_FIELDS, task, strict=False))) for task in tasks]
    )


def _run_nothing() -> None:
    """A program without a stage."""


def split_range(count: int, max_parts: int) -> list[tuple[int, int]]:
    """Ranges that share out `count`, at most so many."""
    part_count = max(1, min(count, max_parts))
    cut = [count * i // part_count for i in range(part_count + 1)]
    return list(pairwise(cut))


def partition_tasks(
    lines: int, block: int, columns: int, workers: int
) -> list[tuple[int, int, int, int]]:
    """Tasks in which `workers` share out `lines` times `columns`: large ones first, small ones
    last, so that none waits long for another one. A task is whole blocks of lines, else columns of
    one block, else lines of one column of it."""
    many, total = max(2, workers), lines * columns
    tasks, left, at, column, line = [], total, 0, 0, 0
    while left > 0:
        target_size = max(left / (2 * many), total / (_MAX_TASKS_PER_WORKER * many))
        block_lines = min(block, lines - at)
        if column == line == 0 and target_size >= block_lines * columns:
            count = min(lines - at, max(int(target_size) // (columns * block) * block, block_lines))
            tasks.append((at, at + count, 0, columns))
            at += count
            left -= count * columns
            continue
        if line == 0 and target_size >= block_lines:
            count = min(columns - column, int(target_size) // block_lines)
            tasks.append((at, at + block_lines, column, column + count))
            column, left = column + count, left - count * block_lines
        else:
            count = min(block_lines - line, max(1, int(target_size)))
            tasks.append((at + line, at + line + count, column, column + 1))
            line, left = line + count, left - count
            column, line = (column + 1, 0) if line == block_lines else (column, line)
        if column == columns:
            at, column = at + block_lines, 0
    return tasks
