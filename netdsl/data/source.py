"""The record of a source, and where its files are looked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from netdsl.data.samples import Dataset
from netdsl.errors import Diagnostic, NetError
from netdsl.file_io import cache_directory
from netdsl.parameter_types import NoneLiteral, OneOf, QuotedText
from netdsl.signature import Param, Signature


class Absent(NetError):
    """The files of a data set are not where they are looked for."""


@dataclass(frozen=True)
class DataSource:
    """`load(folder, **arguments)` reads a dataset; `folder` is what `--data` gave, if anything.

    `image` and `classes` are what is known before anything is read.
    """

    signature: Signature
    load: Callable[..., Dataset]
    image: tuple[int, int, int] | None
    classes: tuple[str, ...] | None
    doc: str = ""


PATH = Param("path", OneOf((QuotedText(), NoneLiteral())), None, "folder of the files")


def mirrored(name: str, base: str) -> str:
    """Where the files of a data set are fetched from: its own place, or $NETDSL_MIRROR/NAME."""
    mirror = os.environ.get("NETDSL_MIRROR")
    return f"{mirror.rstrip('/')}/{name}" if mirror else base


@dataclass(frozen=True)
class Place:
    """The files of a data set: `holds` says whether a folder has them, `get` fetches them into
    one; `files` are their names, for people, `inside` a folder that they often lie in."""

    name: str
    files: Sequence[str]
    holds: Callable[[Path], bool]
    get: Callable[[Path], None]
    inside: str

    def find(self, folder: Path | None, path: str | None) -> Path:
        """The folder that holds the files: the one given, or one in the cache folder, where they
        are fetched to. Raises NetError that says which files to put where."""
        given = folder or (Path(path) if path else None)
        if given is not None:
            for place in (given, given / self.name, given / self.inside):
                if self.holds(place):
                    return place
            raise self._missing(f"the files of `{self.name}` are not in {given}", "there")
        try:
            cached = cache_directory() / self.name
        except RuntimeError:  # nobody knows a home
            message = "there is no home folder to look in"
            raise self._missing(message, "into a folder that NETDSL_CACHE names") from None
        if not self.holds(cached):
            try:
                self.get(cached)
            except NetError as e:
                raise self._missing(e.diagnostics[0].message, f"into {cached}") from None
        return cached

    def _missing(self, message: str, where: str) -> Absent:
        files = ", ".join(self.files)
        help = f"put {files} {where}, or give their folder with `--data DIR`"
        return Absent(Diagnostic(message, help=help))
