"""The communicator on MPI: a thread that calls mpi4py, one collective after the other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from netdsl.ranks.activity import Activity
from netdsl.ranks.communicator import Buffer, Communicator

T = TypeVar("T")
_MIN_SEPARATE_BYTES = 1 << 16
"""Arrays that are reduced in place; copying a smaller one is faster than a call of its own."""


class CollectiveThread:
    """A thread that makes calls in the order in which they are submitted.

    MPI progresses a collective only while a thread is inside a call of it, so this one stays there
    while others compute. It is a daemon: a rank that must end does not wait for the others.
    """

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name="collectives", daemon=True).start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        self._calls.put((call, done))
        return done

    def _run(self) -> None:
        while True:
            call, done = self._calls.get()
            try:
                with self._activity.collective():
                    result = call()
                done.set_result(result)
            except BaseException as e:
                done.set_exception(e)


class MpiCommunicator(Communicator):
    """The ranks of MPI's world, on `mpi`, the module mpi4py.MPI."""

    def __init__(self, mpi: Any) -> None:
        self._mpi, self._world = mpi, mpi.COMM_WORLD
        self.activity = Activity()
        self._thread = CollectiveThread(self.activity)
        self.rank = int(self._world.Get_rank())
        self.hosts = ("",) * int(self._world.Get_size())
        names = self.all_gather(socket.gethostname().encode())
        self.hosts = tuple(name.decode(errors="replace") for name in names)

    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        return self._thread.submit(lambda: self._reduce(arrays))

    def _reduce(self, arrays: Sequence[Buffer]) -> None:
        """Reduces large arrays in place, and the small ones of a type together: each call has its
        latency."""
        small: dict[str, list[Buffer]] = {}
        for array in arrays:
            if array.nbytes < _MIN_SEPARATE_BYTES:
                small.setdefault(array.dtype.str, []).append(array)
            else:
                self._world.Allreduce(self._mpi.IN_PLACE, array)
        for parts in small.values():
            joined = np.concatenate([a.reshape(-1) for a in parts])
            self._world.Allreduce(self._mpi.IN_PLACE, joined)
            ends = np.cumsum([a.size for a in parts])
            for a, values in zip(parts, np.split(joined, ends[:-1]), strict=True):
                a[...] = values.reshape(a.shape)

    def all_gather(self, data: bytes) -> list[bytes]:
        return self._thread.submit(lambda: self._gather(data)).result()

    def _gather(self, data: bytes) -> list[bytes]:
        lengths = np.zeros(self.size, np.int64)
        self._world.Allgather(np.array([len(data)], np.int64), lengths)
        ends = np.cumsum(lengths)
        found = bytearray(int(ends[-1]))
        parts = (lengths.tolist(), (ends - lengths).tolist())
        self._world.Allgatherv(np.frombuffer(data, np.uint8), [found, parts, self._mpi.BYTE])
        return [bytes(found[end - n : end]) for n, end in zip(lengths, ends, strict=True)]

    def broadcast(self, data: bytes) -> bytes:
        return self._thread.submit(lambda: self._broadcast(data)).result()

    def _broadcast(self, data: bytes) -> bytes:
        length = np.array([len(data)], np.int64)
        self._world.Bcast(length)
        content = bytearray(data) if self.is_root else bytearray(int(length[0]))
        self._world.Bcast([content, self._mpi.BYTE])
        return bytes(content)

    def broadcast_array(self, array: Buffer) -> None:
        self._thread.submit(lambda: self._world.Bcast(array)).result()


class MpiMailbox:
    """Messages between the ranks on a communicator of their own, which no collective uses."""

    def __init__(self, mpi: Any) -> None:
        self._mpi, self._world = mpi, mpi.COMM_WORLD.Dup()
        self._pending: list[tuple[Any, bytes]] = []
        """Messages that are being sent, which must stay in memory until then."""

    def send(self, rank: int, data: bytes) -> None:
        self._pending = [(request, kept) for request, kept in self._pending if not request.Test()]
        self._pending.append((self._world.Isend([data, self._mpi.BYTE], dest=rank), data))

    def receive(self) -> tuple[int, bytes] | None:
        status = self._mpi.Status()
        if not self._world.Iprobe(status=status):
            return None
        source, content = status.Get_source(), bytearray(status.Get_count(self._mpi.BYTE))
        self._world.Recv([content, self._mpi.BYTE], source=source)
        return source, bytes(content)
