"""The threads that run tasks: whoever is free takes the next one, and nobody waits for a thread
that has taken none.

Numba's own threading layers meet at a barrier after each loop: where another process holds a core,
each launch then costs a time slice. Here a thread that comes late finds the work done.
"""

from __future__ import annotations

import threading

import numpy as np

from netdsl.backends.cpu.intrinsics import (
    atomic_load,
    atomic_store,
    call_task,
    cpu_pause,
    fetch_and_increment,
    store_i64,
)
from netdsl.backends.cpu.numba_loops import numba_inline, numba_loop
from netdsl.backends.cpu.record import Record

_RING_SIZE = 16
"""How many stages are remembered: more than a thread can fall behind between two looks."""
_MAX_IDLE_SPINS = 20_000
"""How often a thread without work looks for some before it sleeps; about 0.2 ms."""

# the board, a cache line each: the next task (stage << 32 | index), how many are done, then the
# ring of stages
_NEXT_OFFSET, _DONE_OFFSET, _STAGES_OFFSET = 0, 64, 128


class TaskEntry(Record):
    """A task: the address of its function, that of its arguments, and numbers of its own. It fills
    a cache line."""

    function: int
    args: int
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0
    unused: int = 0


class TaskStage(Record):
    """Where the tasks of a stage lie, and how many there are."""

    tasks: int
    count: int


_STAGE_BYTES = TaskStage.dtype.itemsize
_TASKS_OFFSET, _COUNT_OFFSET = (TaskStage.layout[name].offset for name in ("tasks", "count"))


@numba_inline
def _run_task(task):  # type: ignore[no-untyped-def]
    call_task(task.function, task.args, task.a, task.b, task.c, task.d, task.e)


@numba_inline
def _load_stage(board, word):  # type: ignore[no-untyped-def]
    """The stage that a word names."""
    return TaskStage.nth(board + _STAGES_OFFSET, (word >> 32) % _RING_SIZE)


@numba_inline
def _has_task(board, word):  # type: ignore[no-untyped-def]
    """Whether the stage that a word names has a task at its index."""
    return (word & 0xFFFFFFFF) < _load_stage(board, word).count


@numba_inline
def _run_open_tasks(board):  # type: ignore[no-untyped-def]
    """Runs tasks of whatever stage is open until it has none left."""
    while _has_task(board, atomic_load(board + _NEXT_OFFSET)):
        word = fetch_and_increment(board + _NEXT_OFFSET)
        if _has_task(board, word):
            _run_task(TaskEntry.nth(_load_stage(board, word).tasks, word & 0xFFFFFFFF))
            fetch_and_increment(board + _DONE_OFFSET)


@numba_loop
def run_helper(board):  # type: ignore[no-untyped-def]
    """A helper's life until it has found nothing to do for a while."""
    idle = 0
    while idle < _MAX_IDLE_SPINS:
        if _has_task(board, atomic_load(board + _NEXT_OFFSET)):
            _run_open_tasks(board)
            idle = 0
        else:
            cpu_pause()
            idle += 1


@numba_loop
def run_stages(board, stages, count, is_serial):  # type: ignore[no-untyped-def]
    """Runs all tasks of each of `count` stages; every stage is over before the next begins."""
    for s in range(count):
        stage = TaskStage.nth(stages, s)
        if stage.count == 1 or is_serial != 0:
            for i in range(stage.count):
                _run_task(TaskEntry.nth(stage.tasks, i))
            continue
        number = (atomic_load(board + _NEXT_OFFSET) >> 32) + 1
        slot = board + _STAGES_OFFSET + (number % _RING_SIZE) * _STAGE_BYTES
        store_i64(slot + _TASKS_OFFSET, stage.tasks)
        store_i64(slot + _COUNT_OFFSET, stage.count)
        atomic_store(board + _DONE_OFFSET, 0)
        atomic_store(board + _NEXT_OFFSET, number << 32)
        _run_open_tasks(board)
        while atomic_load(board + _DONE_OFFSET) < stage.count:
            cpu_pause()


class ThreadPool:
    """Helpers beside the thread that calls `run`. They look for work while there is some, and
    sleep when there has been none for a while."""

    def __init__(self, helpers: int) -> None:
        self._board = np.zeros((_STAGES_OFFSET + _RING_SIZE * _STAGE_BYTES) // 8 + 16, np.int64)
        skip = -self._board.ctypes.data % 64 // 8
        self._board_address = self._board[skip:].ctypes.data
        self._run_lock = threading.Lock()
        self._is_serial = helpers == 0
        self._sleeping_count, self._is_running = 0, False
        self._wake_condition = threading.Condition(threading.Lock())
        for _ in range(helpers):
            threading.Thread(target=self._helper_main, daemon=True, name="netdsl").start()

    def _helper_main(self) -> None:
        while True:
            run_helper.call(self._board_address)
            with self._wake_condition:
                # whoever begins to run looks for sleepers afterwards, so one of both sees the other
                self._sleeping_count += 1
                if self._is_running:
                    self._sleeping_count -= 1
                else:
                    self._wake_condition.wait()

    def run(self, stages: np.ndarray) -> None:
        """Runs stages to their end; two Python threads take turns."""
        with self._run_lock:
            self._is_running = True
            if self._sleeping_count:
                with self._wake_condition:
                    self._sleeping_count = 0
                    self._wake_condition.notify_all()
            try:
                run_stages.call(
                    self._board_address, stages.ctypes.data, len(stages), self._is_serial
                )
            finally:
                self._is_running = False
