"""What is kept on disk since it takes long to make: machine code, which plans were fastest, the
grammar's tables, which pictures are good.

Machine code is run, so nothing is taken that another user can have written: the folder and its
files belong to this user or to root, and only their owner may write to them. A file is a checksum
and the content; the checksum covers what the content was kept as, so that one under another's name
is none. What is damaged is as good as none: it is made again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netdsl import __version__
from netdsl.files import cache_folder
from netdsl.printable import printable_line

_DIGEST = 32
_MOST_BYTES = 2**30
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Untrusted(Exception):
    """A folder or a file that is not used, with the reason."""


@dataclass(frozen=True)
class Kept:
    """What one part of this version keeps, such as an engine, by key. A key is made of all that
    the content depends on (`key_of`), such as the processor that machine code is for."""

    part: str

    @property
    def folder(self) -> Path:
        return cache_folder() / f"{self.part}-{__version__}"

    def read(self, key: str) -> bytes | None:
        """The content under a key; None where there is none, or it is not what was kept so."""
        try:
            with self._open() as folder:
                found = _read(folder, key, self.folder / key)
        except Untrusted as e:
            _warn(str(e))
            return None
        except (OSError, RuntimeError):  # the latter where nobody knows a home
            return None
        digest, content = found[:_DIGEST], found[_DIGEST:]
        return content if digest == self._digest(key, content) else None

    def keep(self, key: str, content: bytes) -> None:
        """Kept where that is possible: a home that cannot be written to only costs time."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.folder.mkdir(mode=0o700)
            with self._open() as folder:
                _replace(folder, key, self._digest(key, content) + content)
        except Untrusted as e:
            _warn(str(e))
        except (OSError, RuntimeError):
            pass

    def _digest(self, key: str, content: bytes) -> bytes:
        digest = hashlib.sha256(repr((self.part, __version__, key, len(content))).encode())
        digest.update(content)
        return digest.digest()

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The folder's handle: whatever its path becomes meanwhile, what was checked is used.

        Raises Untrusted where others can write to it, OSError where there is none."""
        if os.name == "nt":  # it has no such owners and handles: nothing is kept
            raise OSError("no handle of a folder")
        if self.folder.is_symlink():
            raise Untrusted(f"{self.folder} is a link")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self.folder, flags)
        try:
            _check(os.fstat(handle), self.folder)
            yield handle
        finally:
            os.close(handle)


CPU, CUDA, LANGUAGE, PICTURES = map(Kept, ("cpu", "cuda", "language", "pictures"))


def key_of(*parts: object) -> str:
    """A name for what is determined by `parts`, whose texts must tell them apart."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def _read(folder: int, name: str, path: Path) -> bytes:
    """Raises Untrusted where another user can have written the file, or where it is no file; then
    it is not waited for, as a FIFO would be."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise Untrusted(f"{path} cannot be opened as a plain file: {e.strerror}") from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise Untrusted(f"{path} is no plain file")
        _check(about, path)
        if about.st_size > _MOST_BYTES:
            raise Untrusted(f"{path} has {about.st_size:,} bytes")
        with open(handle, "rb", closefd=False) as f:
            return f.read(about.st_size)
    finally:
        os.close(handle)


def _check(about: os.stat_result, path: Path) -> None:
    """Raises Untrusted where somebody but this user and root can write there."""
    if about.st_uid not in (os.geteuid(), 0):
        raise Untrusted(f"{path} belongs to another user")
    if about.st_mode & _WRITABLE_BY_OTHERS:
        raise Untrusted(f"{path} is writable by other users")


def _replace(folder: int, name: str, content: bytes) -> None:
    """The whole content under a name, at once. It is not forced to the disk: what a power cut
    leaves of it fails its checksum."""
    beside = f".{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(beside, flags, 0o600, dir_fd=folder)
    try:
        with open(handle, "wb") as f:
            f.write(content)
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise


_warned: list[str] = []


def _warn(reason: str) -> None:
    """Once a process, if there is anybody to read it."""
    if _warned or sys.stderr is None:
        return
    _warned.append(reason)
    with suppress(OSError, ValueError):
        print(
            f"warning: {printable_line(reason)}, so it is not used, and what it saves is computed "
            "again; remove it, or name another folder in NETDSL_CACHE",
            file=sys.stderr,
        )
