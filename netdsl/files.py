"""Writing files so that nothing already saved is ever lost: beside, then renamed."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from netdsl.errors import fail


def cache_folder() -> Path:
    """Where data sets and machine code are kept: $NETDSL_CACHE, else the user's cache folder."""
    own = os.environ.get("NETDSL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "netdsl"


def write_atomically(path: Path, content: bytes) -> None:
    """The whole content or the old file, never a part; its permissions stay, a link is followed.

    Raises NetError if it cannot be."""
    try:
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        if not mode & 0o200:
            raise PermissionError(errno.EACCES, "it is read-only")
        handle, beside = tempfile.mkstemp(prefix=".netdsl-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(content)
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
