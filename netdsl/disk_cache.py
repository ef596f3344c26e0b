"""The on-disk cache of results that are slow to compute: machine code, the fastest plans, the
grammar's tables, which pictures are valid.

Cached machine code is executed, so nothing is loaded that another user could have written: the
directory and its files must belong to this user or to root, and only their owner may write to them.
A file holds a checksum and the content. The checksum covers the namespace, version and key, so a
file stored under another key's name is rejected. Damaged entries are treated as missing and
computed again.
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
from netdsl.file_io import cache_directory
from netdsl.text_escaping import escape_line

_DIGEST_BYTES = 32
_MAX_BYTES = 2**30
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UntrustedFileError(Exception):
    """A directory or file that is not used, with the reason."""


@dataclass(frozen=True)
class DiskCache:
    """The cache of one component of this version, such as an engine, by key. A key covers
    everything that the content depends on (`make_key`), such as the processor that machine code is
    compiled for."""

    namespace: str

    @property
    def directory(self) -> Path:
        return cache_directory() / f"{self.namespace}-{__version__}"

    def load(self, key: str) -> bytes | None:
        """Returns the content stored under a key, or None if it is missing or damaged."""
        try:
            with self._open_directory() as handle:
                stored = _read_file(handle, key, self.directory / key)
        except UntrustedFileError as e:
            _warn_once(str(e))
            return None
        except (OSError, RuntimeError):  # RuntimeError if the home directory is unknown
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        return content if digest == self._digest(key, content) else None

    def store(self, key: str, content: bytes) -> None:
        """Stores the content if possible. If the cache directory is not writable, the only cost is
        time."""
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
            with self._open_directory() as handle:
                _replace_file(handle, key, self._digest(key, content) + content)
        except UntrustedFileError as e:
            _warn_once(str(e))
        except (OSError, RuntimeError):
            pass

    def _digest(self, key: str, content: bytes) -> bytes:
        digest = hashlib.sha256(repr((self.namespace, __version__, key, len(content))).encode())
        digest.update(content)
        return digest.digest()

    @contextmanager
    def _open_directory(self) -> Iterator[int]:
        """Yields a handle of the directory, so that the directory that was checked is the one used
        even if its path changes meanwhile.

        Raises UntrustedFileError if other users can write to it, OSError if it does not exist.
        """
        if os.name == "nt":  # no such owners and handles: nothing is cached
            raise OSError("cannot open a directory handle")
        if self.directory.is_symlink():
            raise UntrustedFileError(f"{self.directory} is a symbolic link")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self.directory, flags)
        try:
            _check_permissions(os.fstat(handle), self.directory)
            yield handle
        finally:
            os.close(handle)


CPU_CACHE, CUDA_CACHE, LANGUAGE_CACHE, IMAGE_CACHE = map(
    DiskCache, ("cpu", "cuda", "language", "pictures")
)


def make_key(*parts: object) -> str:
    """Returns a key for whatever `parts` determine; their reprs must distinguish them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def _read_file(directory: int, name: str, path: Path) -> bytes:
    """Raises UntrustedFileError if another user could have written the file, or if it is not a
    regular file. Opening it never blocks, as opening a FIFO would."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise UntrustedFileError(f"{path} cannot be opened as a plain file: {e.strerror}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedFileError(f"{path} is not a regular file")
        _check_permissions(status, path)
        if status.st_size > _MAX_BYTES:
            raise UntrustedFileError(f"{path} has {status.st_size:,} bytes")
        with open(handle, "rb", closefd=False) as f:
            return f.read(status.st_size)
    finally:
        os.close(handle)


def _check_permissions(status: os.stat_result, path: Path) -> None:
    """Raises UntrustedFileError if anyone but this user and root can write to it."""
    if status.st_uid not in (os.geteuid(), 0):
        raise UntrustedFileError(f"{path} belongs to another user")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise UntrustedFileError(f"{path} is writable by other users")


def _replace_file(directory: int, name: str, content: bytes) -> None:
    """Writes the whole content under a name, atomically. It is not synced to disk: a file truncated
    by a power cut fails its checksum."""
    temporary_name = f".{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(temporary_name, flags, 0o600, dir_fd=directory)
    try:
        with open(handle, "wb") as f:
            f.write(content)
        os.replace(temporary_name, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary_name, dir_fd=directory)
        raise


_shown_warnings: list[str] = []


def _warn_once(reason: str) -> None:
    """Warns once per process, if there is a standard error."""
    if _shown_warnings or sys.stderr is None:
        return
    _shown_warnings.append(reason)
    with suppress(OSError, ValueError):
        print(
            f"warning: {escape_line(reason)}, so it is not used, and cached results are computed "
            f"again; remove it, or set NETDSL_CACHE to another directory",
            file=sys.stderr,
        )
