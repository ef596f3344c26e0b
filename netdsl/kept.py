"""What is kept on disk since it takes long to make: machine code, which plans were fastest, the
grammar's tables.

A file is its content behind the content's checksum. One that is damaged is as good as none: it is
made again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netdsl import __version__
from netdsl.errors import NetError
from netdsl.files import cache_folder, write_atomically

_DIGEST = 32


@dataclass(frozen=True)
class Kept:
    """What one engine of this version keeps, or its language, by key."""

    engine: str

    @property
    def folder(self) -> Path:
        return cache_folder() / f"{self.engine}-{__version__}"

    def read(self, key: str) -> bytes | None:
        """The content under a key; None where there is none, or it is not what was written."""
        try:
            found = (self.folder / key).read_bytes()
        except (OSError, RuntimeError):  # the latter where nobody knows a home
            return None
        digest, content = found[:_DIGEST], found[_DIGEST:]
        return content if hashlib.sha256(content).digest() == digest else None

    def keep(self, key: str, content: bytes) -> None:
        """Kept where that is possible: a home that cannot be written to only costs time."""
        with suppress(OSError, RuntimeError, NetError):
            write_atomically(self.folder / key, hashlib.sha256(content).digest() + content)


CPU, CUDA, LANGUAGE = Kept("cpu"), Kept("cuda"), Kept("language")


def key_of(*parts: object) -> str:
    """A name for what is determined by `parts`, whose texts must tell them apart."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]
