"""Ranks as threads of one process: a communicator for tests, which needs no MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import reduce
from typing import TypeVar

import numpy as np

from netdsl.ranks.activity import Activity
from netdsl.ranks.communicator import Buffer, Communicator
from netdsl.ranks.mpi import CollectiveThread

T = TypeVar("T")
SECONDS = 60.0
"""After which a rank that waits for the others fails."""


class ThreadWorld:
    """What the ranks meet at: a slot for the value of each, and a barrier."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[tuple[str, object]] = [("", None)] * size
        self.barrier = threading.Barrier(size, timeout=SECONDS)

    def exchange(self, rank: int, operation: str, value: T) -> list[T]:
        """Returns the value of each rank; all must be in the same operation."""
        self.slots[rank] = (operation, value)
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()  # before anybody writes the next value
        operations = [name for name, _ in found]
        assert len(set(operations)) == 1, f"the ranks call different collectives: {operations}"
        return [v for _, v in found]  # type: ignore[misc]


class ThreadCommunicator(Communicator):
    """One of several threads. Sums are in the order of the ranks: the same bits on all."""

    def __init__(self, world: ThreadWorld, rank: int) -> None:
        self.rank = rank
        self.hosts = tuple(f"host{r}" for r in range(world.size))
        self.activity = Activity()
        self._world, self._thread = world, CollectiveThread(self.activity)

    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        assert all(a.flags.c_contiguous for a in arrays)
        return self._thread.submit(lambda: self._reduce(arrays))

    def _reduce(self, arrays: Sequence[Buffer]) -> None:
        kinds = [(a.dtype.str, a.shape) for a in arrays]
        copies = [a.copy() for a in arrays]
        parts = self._world.exchange(self.rank, f"all_reduce {kinds}", copies)
        for array, values in zip(arrays, zip(*parts, strict=True), strict=True):
            array[...] = reduce(np.add, values)

    def all_gather(self, data: bytes) -> list[bytes]:
        return self._exchange("all_gather", data)

    def broadcast(self, data: bytes) -> bytes:
        return self._exchange("broadcast", data)[0]

    def broadcast_array(self, array: Buffer) -> None:
        operation = f"broadcast_array {array.dtype.str} {array.shape}"
        array[...] = self._exchange(operation, array.copy())[0]

    def _exchange(self, operation: str, value: T) -> list[T]:
        exchange = self._world.exchange
        return self._thread.submit(lambda: exchange(self.rank, operation, value)).result()


def run_ranks(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """Runs `work` on each rank, in a thread of its own, and returns what each returns. An error
    on one rank ends the others, and is raised here."""
    world = ThreadWorld(size)
    results: list[Future[T]] = [Future() for _ in range(size)]

    def run(rank: int) -> None:
        try:
            results[rank].set_result(work(ThreadCommunicator(world, rank)))
        except BaseException as e:
            results[rank].set_exception(e)
            world.barrier.abort()

    threads = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [e for r in results if (e := r.exception()) is not None]
    own = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    for e in (*own, *errors):
        raise e
    return [r.result() for r in results]
