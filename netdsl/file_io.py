"""File I/O: reads only regular files and writes atomically, so that saved data is never lost."""

from __future__ import annotations

import errno
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from netdsl.errors import fail


def cache_directory() -> Path:
    """Returns the directory for data sets and machine code: $NETDSL_CACHE, else the user's cache
    directory."""
    configured = os.environ.get("NETDSL_CACHE")
    xdg_cache_home = os.environ.get("XDG_CACHE_HOME")
    return (
        Path(configured)
        if configured
        else (Path(xdg_cache_home) if xdg_cache_home else Path.home() / ".cache") / "netdsl"
    )


def split_file_and_name(file: str) -> tuple[str, str | None]:
    """Splits `FILE[:NAME]`; a colon inside an existing path is not a separator."""
    path, colon, name = file.rpartition(":")
    if not colon or Path(file).exists() or "/" in name or "\\" in name:
        return file, None
    return path, name


_FILE_TYPE_NAMES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular_file(path: Path) -> BinaryIO:
    """Opens a file for reading, following links. Raises NetError if it cannot be read or is not a
    regular file: it never blocks on a pipe and reads nothing from a device."""
    try:
        _check_regular(path, os.stat(path).st_mode)  # merely opening a device may have effects
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _check_regular(path, os.fstat(handle).st_mode)  # the path may name another file by now
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as e:
        raise fail(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise fail(
            f"{path} is {_FILE_TYPE_NAMES.get(stat.S_IFMT(mode), 'something else')}, not a file"
        )


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a regular file of at most `max_bytes` bytes. Raises NetError as
    `open_regular_file` does, and if the file is larger."""
    with open_regular_file(path) as f:
        try:
            size = os.fstat(f.fileno()).st_size  # `read` takes memory for all it may return
            content = f.read(min(size, max_bytes) + 1)
        except OSError as e:
            raise fail(f"cannot read {path}: {e.strerror or e}") from None
    if len(content) > max_bytes:
        raise fail(f"{path} has more than {max_bytes:,} bytes")
    return content


class AtomicFile:
    """Writes a file piece by piece: at the end of the block it takes its place, with the
    permissions of the file that it replaces, and follows a link; if the block raises, nothing has
    changed. Raises NetError if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> AtomicFile:
        with self._name_errors():
            self._target = self.path.resolve()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            present = self._target.exists()
            self._mode = self._target.stat().st_mode & 0o777 if present else 0o644
            if not self._mode & 0o200:
                raise PermissionError(errno.EACCES, "it is read-only")
            folder = self._target.parent
            handle, self._temporary_path = tempfile.mkstemp(prefix=".netdsl-", dir=folder)
            self._file = os.fdopen(handle, "wb")
        return self

    def write(self, content: bytes | memoryview) -> None:
        with self._name_errors():
            self._file.write(content)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._name_errors(), self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                with self._name_errors():
                    os.chmod(self._temporary_path, self._mode)
                    os.replace(self._temporary_path, self._target)
        finally:
            Path(self._temporary_path).unlink(missing_ok=True)

    @contextmanager
    def _name_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or e
            raise fail(f"cannot write {self.path}: {reason}") from None


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Writes the pieces of the content one after the other; the file then holds either all of it or
    its old content, never a part. Keeps its permissions and follows a link. Raises NetError on
    failure."""
    with AtomicFile(path) as file:
        for piece in content:
            file.write(piece)


def append_to_file(path: Path, content: bytes) -> None:
    """Appends content to a file and syncs it to disk before returning. Raises NetError on
    failure."""
    try:
        with path.open("ab") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise fail(f"cannot write {path}: {e.strerror or e}") from None


def replace_non_finite(value: Any) -> Any:
    """Returns a value that JSON can represent: NaN and infinities become null."""
    if isinstance(value, dict):
        return {k: replace_non_finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
