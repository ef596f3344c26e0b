"""File locks that give each run directory to one process at a time."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from netdsl.errors import fail
from netdsl.ranks.communicator import ONE_RANK, Communicator

_LOCKED = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


_owned: set[tuple[int, int]] = set()
"""Device and inode numbers of the directories that this process has locked."""


@contextmanager
def lock_directories(*folders: Path, communicator: Communicator = ONE_RANK) -> Iterator[None]:
    """Locks `folders` against other processes for the duration of the block; creates missing ones.
    Of several ranks, rank 0 does, before the others go on.

    Raises NetError if another process holds one. The lock is on the directory itself: it leaves no
    file behind and ends with the process, however that exits. On a file system without such locks,
    no lock is taken. A process may lock a directory again that it already holds."""
    with ExitStack() as locks:
        if communicator.is_root:
            for folder in folders:
                locks.enter_context(_lock_directory(folder))
        communicator.share(lambda: b"")
        yield


@contextmanager
def _lock_directory(folder: Path) -> Iterator[None]:
    if os.name == "nt":  # directories cannot be locked
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    handle = _open_directory(folder)
    there = os.fstat(handle)
    key = there.st_dev, there.st_ino
    again = key in _owned
    try:
        if not again:
            _lock(handle, folder)
            _owned.add(key)
        yield
    finally:
        if not again:
            _owned.discard(key)
        os.close(handle)


def _open_directory(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise fail(f"cannot write {folder}: {e.strerror or e}") from None


def _lock(handle: int, folder: Path) -> None:
    fcntl = importlib.import_module("fcntl")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in _LOCKED:
            help = "wait until it ends, or stop it; a second run needs its own directory"
            raise fail(f"another process is training in {folder}", help=help) from None
