"""What the engine keeps on disk: compiled kernels, and which plans were fastest.

A file is its content behind the content's checksum. One that is damaged is as good as none: it is
made again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from netdsl import __version__
from netdsl.errors import NetError
from netdsl.files import cache_folder, write_atomically

_DIGEST = 32


def folder() -> Path:
    return cache_folder() / f"cuda-{__version__}"


def key_of(*parts: object) -> str:
    """A name for what is determined by `parts`, whose texts must tell them apart."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def read(key: str) -> bytes | None:
    """The content under a key; None where there is none, or it is not what was written."""
    try:
        found = (folder() / key).read_bytes()
    except OSError:
        return None
    digest, content = found[:_DIGEST], found[_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None


def keep(key: str, content: bytes) -> None:
    """Kept where that is possible: a home that cannot be written to only costs time."""
    with suppress(OSError, NetError):
        write_atomically(folder() / key, hashlib.sha256(content).digest() + content)
