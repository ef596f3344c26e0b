"""Writing files so that nothing already saved is ever lost: beside, then renamed."""

from __future__ import annotations

import errno
import math
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from netdsl.errors import fail


def cache_folder() -> Path:
    """Where data sets and machine code are kept: $NETDSL_CACHE, else the user's cache folder."""
    own = os.environ.get("NETDSL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "netdsl"


def split(file: str) -> tuple[str, str | None]:
    """`FILE[:NAME]` apart; a colon inside an existing path is no separator."""
    path, colon, name = file.rpartition(":")
    if not colon or Path(file).exists() or "/" in name or "\\" in name:
        return file, None
    return path, name


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading, links followed. Raises NetError where it cannot be read or is no
    regular file: a pipe is not waited for, and nothing is read from a device."""
    try:
        _check_regular(path, os.stat(path).st_mode)  # a device may act when it is merely opened
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _check_regular(path, os.fstat(handle).st_mode)  # it may be another file by now
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as e:
        raise fail(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise fail(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises NetError as `open_regular`
    does, and where the file is larger."""
    with open_regular(path) as f:
        try:
            content = f.read(most + 1)
        except OSError as e:
            raise fail(f"cannot read {path}: {e.strerror or e}") from None
    if len(content) > most:
        raise fail(f"{path} has over {most:,} bytes")
    return content


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """The whole content, its pieces one after the other, or the old file, never a part; its
    permissions stay, a link is followed. Raises NetError if it cannot be."""
    try:
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        if not mode & 0o200:
            raise PermissionError(errno.EACCES, "it is read-only")
        handle, beside = tempfile.mkstemp(prefix=".netdsl-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.writelines(content)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(beside, mode)
            os.replace(beside, target)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as e:
        raise fail(f"cannot write {path}: {getattr(e, 'strerror', None) or e}") from None


def append(path: Path, content: bytes) -> None:
    """Puts content at the end of a file, on the disk when this returns. Raises NetError if it
    cannot be."""
    try:
        with path.open("ab") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise fail(f"cannot write {path}: {e.strerror or e}") from None


def finite(value: Any) -> Any:
    """A value as JSON can hold it: what is no number becomes null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
