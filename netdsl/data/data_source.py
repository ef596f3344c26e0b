"""The record of a data source, and where its files are looked up."""

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


class DatasetNotFound(NetError):
    """The files of a data set are not in any of the places searched."""


@dataclass(frozen=True)
class DataSource:
    """`load(folder, **arguments)` reads a dataset; `folder` is the value of `--data`, or None.

    `image_shape` and `classes` are what is known before anything is read.
    """

    signature: Signature
    load: Callable[..., Dataset]
    image_shape: tuple[int, int, int] | None
    classes: tuple[str, ...] | None
    doc: str = ""


PATH = Param("path", OneOf((QuotedText(), NoneLiteral())), None, "folder of the files")


def mirror_url(name: str, base: str) -> str:
    """The URL that a data set's files are downloaded from: its own, or $NETDSL_MIRROR/NAME."""
    mirror = os.environ.get("NETDSL_MIRROR")
    return f"{mirror.rstrip('/')}/{name}" if mirror else base


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a data set: `has_files` says whether a folder has them, `download` downloads
    them into a folder. `files` are their names, for messages; `subfolder` is a folder that often
    holds them."""

    name: str
    files: Sequence[str]
    has_files: Callable[[Path], bool]
    download: Callable[[Path], None]
    subfolder: str

    def find_folder(self, folder: Path | None, path: str | None) -> Path:
        """The folder that holds the files: the given one, or one in the cache directory, to which
        they are downloaded. Raises NetError that says which files to put where."""
        data_folder = folder or (Path(path) if path else None)
        if data_folder is not None:
            for candidate in (data_folder, data_folder / self.name, data_folder / self.subfolder):
                if self.has_files(candidate):
                    return candidate
            raise self._make_error(f"the files of `{self.name}` are not in {data_folder}", "there")
        try:
            cached = cache_directory() / self.name
        except RuntimeError:  # there is no home directory
            message = "there is no home folder"
            raise self._make_error(message, "into the folder that NETDSL_CACHE names") from None
        if not self.has_files(cached):
            try:
                self.download(cached)
            except NetError as e:
                raise self._make_error(e.diagnostics[0].message, f"into {cached}") from None
        return cached

    def _make_error(self, message: str, where: str) -> DatasetNotFound:
        files = ", ".join(self.files)
        help = f"put {files} {where}, or give their folder with `--data DIR`"
        return DatasetNotFound(Diagnostic(message, help=help))
