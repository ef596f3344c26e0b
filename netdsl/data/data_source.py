"""The record of a data source, and how the folder of a known data set is found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netdsl.data.path_lookup import PathLookup
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
    `find(folder, **arguments)` returns the paths among the arguments where they are found, by
    name; it downloads nothing. Both raise DatasetNotFound if something is missing.

    `image_shape` and `classes` are what is known before anything is read. With `is_listing`, the
    dataset are picture files, none of which is decoded yet.
    """

    signature: Signature
    load: Callable[..., Dataset]
    find: Callable[..., Mapping[str, Path]]
    image_shape: tuple[int, int, int] | None
    classes: tuple[str, ...] | None
    doc: str = ""
    is_listing: bool = False


PATH = Param("path", OneOf((QuotedText(), NoneLiteral())), None, "folder of the files")


def find_nothing(folder: Path | None, **arguments: object) -> dict[str, Path]:
    """The `find` of a source whose arguments name no files."""
    return {}


def mirror_url(name: str, base: str) -> str:
    """The URL that a data set's files are downloaded from: its own, or $NETDSL_MIRROR/NAME."""
    mirror = os.environ.get("NETDSL_MIRROR")
    return f"{mirror.rstrip('/')}/{name}" if mirror else base


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a data set: `has_files` says whether a folder has them, `download` downloads
    them into a folder. `files` are their names, for messages; `subfolders` often hold them.
    `recognise` says what other files of the data set a folder holds, and what to do, if any."""

    name: str
    files: Sequence[str]
    has_files: Callable[[Path], bool]
    download: Callable[[Path], None]
    subfolders: tuple[str, ...]
    recognise: Callable[[Path], str | None]

    def find(self, folder: Path | None, path: str | None) -> dict[str, Path]:
        """The folder that holds the files, if one is given; nothing if they are in the cache."""
        if folder is None and path is None:
            return {}
        return {"path": self._find_given(folder, path)}

    def _find_given(self, folder: Path | None, path: str | None) -> Path:
        """The folder among the given ones, with those in it that often hold them."""
        lookup = PathLookup(path or "")
        given = lookup.candidates if folder is None else (folder,)
        places = [place / name for place in given for name in ("", self.name, *self.subfolders)]
        found = next(filter(self.has_files, places), None)
        if found is not None:
            return found
        if folder is None and lookup.find_folder() is None:
            raise self._make_error(lookup.describe("folder"), "there", lookup.advise())
        others = filter(None, map(self.recognise, places))
        holder = folder or lookup.find_folder()
        message = f"the files of `{self.name}` are not in {holder}"
        raise self._make_error(message, "there", next(others, None))

    def find_folder(self, folder: Path | None, path: str | None) -> Path:
        """The folder that holds the files: the given one, or one in the cache directory, to which
        they are downloaded. Raises NetError that says which files to put where."""
        if folder is not None or path is not None:
            return self._find_given(folder, path)
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

    def _make_error(self, message: str, where: str, advice: str | None = None) -> DatasetNotFound:
        files = ", ".join(self.files)
        help = f"put {files} {where}, or give their folder with `--data DIR`"
        help = f"{advice}; or {help}" if advice else help
        return DatasetNotFound(Diagnostic(message, help=help))
