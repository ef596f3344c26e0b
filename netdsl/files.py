"""Writing files so that nothing already saved is ever lost: beside, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from netdsl.errors import fail


def write_atomically(path: Path, content: bytes) -> None:
    """The whole content or the old file, never a part. Raises NetError if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as e:
        raise fail(f"cannot write {path}: {e.strerror or e}") from None
