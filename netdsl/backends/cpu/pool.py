"""The threads that run tasks: whoever is free takes the next one, and nobody waits for a thread
that has taken none.

Numba's own threading layers meet at a barrier after each loop: where another process holds a core,
each launch then costs a time slice. Here a thread that comes late finds the work done.
"""

from __future__ import annotations

import threading

import numpy as np

from netdsl.backends.cpu.loops import inlined, loop
from netdsl.backends.cpu.memory import (
    call_task,
    peek,
    publish,
    put_long,
    rest,
    take,
)
from netdsl.backends.cpu.record import Record

_RING = 16
"""How many stages are remembered: more than a thread can fall behind between two looks."""
_PATIENCE = 20_000
"""How often a thread without work looks for some before it sleeps; about 0.2 ms."""

# the board, a cache line each: the next task (stage << 32 | index), how many are done, then the
# ring of stages
_NEXT, _DONE, _STAGES = 0, 64, 128


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


class Stage(Record):
    """Where the tasks of a stage lie, and how many there are."""

    tasks: int
    count: int


_STAGE = Stage.dtype.itemsize
_TASKS, _COUNT = (Stage.layout[name].offset for name in ("tasks", "count"))


@inlined
def _one(task):  # type: ignore[no-untyped-def]
    call_task(task.function, task.args, task.a, task.b, task.c, task.d, task.e)


@inlined
def _stage(board, word):  # type: ignore[no-untyped-def]
    """The stage that a word names."""
    return Stage.nth(board + _STAGES, (word >> 32) % _RING)


@inlined
def _left(board, word):  # type: ignore[no-untyped-def]
    """Whether the stage that a word names has a task at its index."""
    return (word & 0xFFFFFFFF) < _stage(board, word).count


@inlined
def _share(board):  # type: ignore[no-untyped-def]
    """Runs tasks of whatever stage is open until it has none left."""
    while _left(board, peek(board + _NEXT)):
        word = take(board + _NEXT)
        if _left(board, word):
            _one(TaskEntry.nth(_stage(board, word).tasks, word & 0xFFFFFFFF))
            take(board + _DONE)


@loop
def help_out(board):  # type: ignore[no-untyped-def]
    """A helper's life until it has found nothing to do for a while."""
    idle = 0
    while idle < _PATIENCE:
        if _left(board, peek(board + _NEXT)):
            _share(board)
            idle = 0
        else:
            rest()
            idle += 1


@loop
def run_stages(board, stages, count, alone):  # type: ignore[no-untyped-def]
    """Runs all tasks of each of `count` stages; every stage is over before the next begins."""
    for s in range(count):
        stage = Stage.nth(stages, s)
        if stage.count == 1 or alone != 0:
            for i in range(stage.count):
                _one(TaskEntry.nth(stage.tasks, i))
            continue
        number = (peek(board + _NEXT) >> 32) + 1
        slot = board + _STAGES + (number % _RING) * _STAGE
        put_long(slot + _TASKS, stage.tasks)
        put_long(slot + _COUNT, stage.count)
        publish(board + _DONE, 0)
        publish(board + _NEXT, number << 32)
        _share(board)
        while peek(board + _DONE) < stage.count:
            rest()


class Pool:
    """Helpers beside the thread that calls `run`. They look for work while there is some, and
    sleep when there has been none for a while."""

    def __init__(self, helpers: int) -> None:
        self._board = np.zeros((_STAGES + _RING * _STAGE) // 8 + 16, np.int64)
        skip = -self._board.ctypes.data % 64 // 8
        self._place = self._board[skip:].ctypes.data
        self._turn = threading.Lock()
        self._alone = helpers == 0
        self._sleeping, self._running = 0, False
        self._wake = threading.Condition(threading.Lock())
        for _ in range(helpers):
            threading.Thread(target=self._help, daemon=True, name="netdsl").start()

    def _help(self) -> None:
        while True:
            help_out.call(self._place)
            with self._wake:
                # whoever begins to run looks for sleepers afterwards, so one of both sees the other
                self._sleeping += 1
                if self._running:
                    self._sleeping -= 1
                else:
                    self._wake.wait()

    def run(self, stages: np.ndarray) -> None:
        """Runs stages to their end; two Python threads take turns."""
        with self._turn:
            self._running = True
            if self._sleeping:
                with self._wake:
                    self._sleeping = 0
                    self._wake.notify_all()
            try:
                run_stages.call(self._place, stages.ctypes.data, len(stages), self._alone)
            finally:
                self._running = False
