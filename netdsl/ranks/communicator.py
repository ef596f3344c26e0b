"""The communicator: what the ranks of a run exchange, and the run of a single process."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from netdsl.ranks.activity import Activity

Buffer = NDArray[np.generic]


class Communicator(ABC):
    """Collective operations over the ranks of a run.

    Every rank calls the same operations in the same order. Values are bytes and arrays; nothing is
    pickled. An operation that a rank does not join ends in the error that the watchdog raises, not
    in a wait without end.
    """

    rank: int
    hosts: tuple[str, ...]
    """The host of each rank."""
    activity: Activity
    """What this rank does, for the watchdog."""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.hosts)

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    @property
    def is_first_on_host(self) -> bool:
        """Whether this is the first rank of its host."""
        return self.hosts.index(self.hosts[self.rank]) == self.rank

    @abstractmethod
    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        """Starts to replace contiguous arrays by their sums over the ranks: the same bits on each
        of them. Nothing may touch the arrays before the result is there."""

    @abstractmethod
    def all_gather(self, data: bytes) -> list[bytes]:
        """Returns what each rank passes, which may differ in length."""

    @abstractmethod
    def broadcast(self, data: bytes) -> bytes:
        """Returns what rank 0 passes; the others' values are ignored."""

    @abstractmethod
    def broadcast_array(self, array: Buffer) -> None:
        """Fills a contiguous array with the values of rank 0."""

    def all_reduce(self, array: Buffer) -> None:
        """Replaces a contiguous array by its sum over the ranks."""
        self.start_all_reduce([array]).result()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        total = np.array([flag], np.float32)
        self.all_reduce(total)
        return bool(total[0])

    def share(self, make: Callable[[], bytes]) -> bytes:
        """Returns what `make` returns on rank 0, where alone it is called."""
        return self.broadcast(make() if self.is_root else b"")

    def share_flag(self, find: Callable[[], bool]) -> bool:
        """Returns what `find` returns on rank 0, where alone it is called."""
        return bool(self.share(lambda: b"1" if find() else b""))


class OneRank(Communicator):
    """A run of a single process."""

    rank = 0

    def __init__(self) -> None:
        self.hosts = (socket.gethostname(),)
        self.activity = Activity()

    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def all_gather(self, data: bytes) -> list[bytes]:
        return [data]

    def broadcast(self, data: bytes) -> bytes:
        return data

    def broadcast_array(self, array: Buffer) -> None:
        """There is nobody else."""

    def any(self, flag: bool) -> bool:
        return flag


ONE_RANK = OneRank()


def share_path(communicator: Communicator, make: Callable[[], Path]) -> Path:
    """Returns the path that `make` returns on rank 0, where alone it is called."""
    return Path(os.fsdecode(communicator.share(lambda: os.fsencode(make()))))
