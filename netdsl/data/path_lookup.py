"""Where a file or folder that a .net file names is looked up, and what to do if it is not there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from netdsl.errors import NetError, Span, fail
from netdsl.file_io import cache_directory
from netdsl.signature import BoundCall
from netdsl.values import Text

_ARCHIVES = {
    **dict.fromkeys((".zip", ".npz.zip"), "unzip"),
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), "tar xf"),
    **dict.fromkeys((".7z", ".rar"), "7z x"),
}
"""What unpacks the archives of these suffixes."""
_MAX_NAMES = 1000
_SAME_NAME = 0.8
"""Similarity, as difflib counts it, of a name to its misspelling."""


@dataclass(frozen=True)
class PathLookup:
    """The places of a path that a .net file or a setting names, in order.

    With `data_folder`, that of `--data`, it is looked up there alone: the whole path, then its
    ends, longest first. Without it, beside the .net file that names it, then in the working
    directory, and with `in_cache` last in the cache directory. `~` is the home folder."""

    path: str
    data_folder: Path | None = None
    in_cache: bool = False

    @property
    def span(self) -> Span | None:
        """Where the path is written."""
        return self.path.span if isinstance(self.path, Text) else None

    @cached_property
    def _folders(self) -> tuple[tuple[str, Path], ...]:
        """The folders to look in, each in words."""
        if self.data_folder is not None:
            return ((f"in {self.data_folder}", self.data_folder),)
        beside = self.span.source.folder if self.span else None
        here = _absolute(Path())
        folders = [(f"in the working directory {here}", Path())]
        if beside is not None and os.path.realpath(beside) != os.path.realpath(here):
            folders.insert(0, (f"in {beside} (next to the .net file)", Path(beside)))
        try:
            folders += [(f"in the cache {cache_directory()}", cache_directory())] * self.in_cache
        except RuntimeError:  # there is no home folder
            return tuple(folders)
        return tuple(folders)

    @cached_property
    def candidates(self) -> tuple[Path, ...]:
        """All places where the path may be."""
        path = expand_home(self.path)
        if self.data_folder is None:
            return tuple(dict.fromkeys(folder / path for _, folder in self._folders))
        parts = [part for part in path.parts if part not in (path.anchor, "..")]
        ends = (self.data_folder.joinpath(*parts[i:]) for i in range(len(parts)))
        return tuple(ends) or (self.data_folder,)

    def find(self, is_wanted: Callable[[Path], bool] = os.path.exists) -> Path | None:
        """The first of the candidates that is wanted, if any."""
        return next(filter(is_wanted, self.candidates), None)

    def find_file(self) -> Path | None:
        """The first candidate that is anything but a folder: opening it says whether it is a
        file. Raises NetError if there are only folders."""
        found = self.find(lambda path: os.path.exists(path) and not os.path.isdir(path))
        folder = self.find(os.path.isdir) if found is None else None
        if folder is not None:
            help = f'`folder("{self.path}")` reads pictures in a folder for each class'
            raise fail(f"{folder} is a folder, not a file", self.span, help=help)
        return found

    def find_folder(self) -> Path | None:
        """The first candidate that is a folder. Raises NetError if there are only files."""
        found = self.find(os.path.isdir)
        file = self.find() if found is None else None
        if file is not None:
            raise make_folder_error(file, self.span)
        return found

    def describe(self, noun: str) -> str:
        """Says that the path is in none of the places."""
        if self.data_folder is None and expand_home(self.path).is_absolute():
            return f"there is no {noun} {self.path}"
        *first, last = [words for words, _ in self._folders]
        where = f"{', '.join(first)} or {last}" if first else last
        return f"there is no {noun} {self.path} {where}"

    def advise(self) -> str | None:
        """What is wrong with the path, as far as it shows, and what is there instead."""
        if "://" in self.path:
            return "this is a URL: download it first, and unpack it if it is an archive"
        drive = re.match(r"([A-Za-z]):[\\/]", self.path)
        slashes = self.path.replace("\\", "/")
        if drive and os.name != "nt":
            place = f"/mnt/{drive[1].lower()}{slashes[2:]}"
            return f"this is a path of Windows; in WSL, it is `{place}`"
        if slashes != self.path:
            return f"folders are separated by `/`: `{slashes}`"
        for candidate in self.candidates:
            if _is_denied(candidate):
                return f"you may not read {candidate.parent}: check its permissions"
            packed = next((s for s in _ARCHIVES if os.path.isfile(f"{candidate}{s}")), None)
            if packed is not None:
                return f"unpack it first: `{_ARCHIVES[packed]} {candidate}{packed}`"
            names = {name.lower(): name for name in _names_beside(candidate)}
            near = get_close_matches(candidate.name.lower(), names, n=1, cutoff=_SAME_NAME)
            if near:
                return f"did you mean `{candidate.with_name(names[near[0]])}`?"
        return None


def _is_denied(path: Path) -> bool:
    """Whether a folder on the way may not be searched."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):  # it is missing, or could be no path
        return False
    return False


def _names_beside(path: Path) -> list[str]:
    try:
        return os.listdir(path.parent)[:_MAX_NAMES]
    except (OSError, ValueError):  # it is missing too, may not be read, or could be no path
        return []


def make_folder_error(path: Path, span: Span | None = None) -> NetError:
    """The error for a file that was given instead of a folder."""
    name = path.name.lower()
    tool = next((tool for suffix, tool in _ARCHIVES.items() if name.endswith(suffix)), None)
    if tool is not None:
        message, help = f"{path} is an archive, not a folder", f"unpack it first: `{tool} {path}`"
    else:
        message = f"{path} is a file, not a folder"
        help = 'data in one file are `source = arrays("data.npz")` or `source = csv("labels.csv")`'
    return fail(message, span, help=help)


def expand_home(path: str) -> Path:
    """The path with the home folder instead of a leading `~`; as it is if there is none."""
    return Path(os.path.expanduser(path))


def spell_path(path: Path) -> str:
    """The absolute path as a .net file that is kept says it: from any folder it means the same, and
    `~` hides whose home folder it is."""
    absolute, home = _absolute(path), expand_home("~")
    if home.is_absolute() and home != Path(home.anchor) and absolute.is_relative_to(home):
        return str(Path("~") / absolute.relative_to(home))
    return str(absolute)


def _absolute(path: Path) -> Path:
    """The absolute path; links stay, unless `..` may lead out of one."""
    try:
        return path.resolve() if ".." in path.parts else path.absolute()
    except OSError:  # the working directory was removed
        return path


def pin_paths(call: BoundCall, data_folder: Path | None) -> BoundCall:
    """The call of a source with the paths where its files were found, for a text that is kept;
    as it is if something is missing, or is not where it is looked up."""
    try:
        found = call.record.find(data_folder, **call.arguments)
    except NetError:
        return call
    arguments = {name: spell_path(path) for name, path in found.items()}
    return BoundCall(call.name, call.record, {**call.arguments, **arguments}, call.span)
