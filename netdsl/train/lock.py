"""A run directory is one process's at a time."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netdsl.errors import fail

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """While it lasts, no other process trains in `folder`, which is made if need be.

    Raises NetError where one does. The lock is on the directory itself: it leaves no file behind,
    and goes with the process however that ends. A file system without such locks is trusted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise fail(f"cannot write {folder}: {e.strerror or e}") from None
    if os.name == "nt":  # no lock on a directory
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    fcntl = importlib.import_module("fcntl")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in _TAKEN:
            help = "wait until it is over, or stop it; a second run needs a directory of its own"
            raise fail(f"another process trains in {folder}", help=help) from None
