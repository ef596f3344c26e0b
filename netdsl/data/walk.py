"""The pictures in the folder of a class: which files are ones, which folders are followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from netdsl.data.inventory import few
from netdsl.data.pictures import is_picture
from netdsl.errors import fail

SUFFIXES = (
    *[".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"],
    *[".tif", ".tiff", ".webp"],
)
"""Files that must be pictures; others are looked into."""
SYSTEM = ("__MACOSX", "__pycache__")
MOST_BESIDE = 20_000
"""Files and folders that are no pictures, which a link may lead to outside a data folder."""
Identity = tuple[int, int]
"""Device and number of a folder, by whatever path it is reached."""
Owners = dict[Identity, Path]
"""The class of a part that each folder belongs to."""


@dataclass
class LeftOut:
    """What lies in the folders and is not used, by the reason."""

    root: Path
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: Path, why: str) -> None:
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        self.found.setdefault(why, []).append(str(inside))

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{few(names)} ({why})" for why, names in self.found.items())


def class_pictures(base: Path, name: str, left_out: LeftOut, owners: Owners) -> list[str]:
    """The pictures in the folder of a class and in the folders within it, linked ones too, each
    folder once; as paths from `base`, in order. Raises NetError where the class is a link to a
    folder that it lies in, where a folder belongs to another class or part as well, and where a
    link leads to much that is no picture, such as a whole disk."""
    return sorted(_Walk(base, name, left_out, owners).find())


@dataclass(frozen=True)
class _Folder:
    """A folder that is still to be read: its path from the base, and the link by which it is
    reached where it lies outside the data folder."""

    inside: str
    link: Path | None


class _Walk:
    """One pass through the folder of a class."""

    def __init__(self, base: Path, name: str, left_out: LeftOut, owners: Owners) -> None:
        self.base, self.top, self.above = base, base / name, base.resolve()
        self.left_out, self.owners = left_out, owners
        around = {identity(p) for p in (self.above, *self.above.parents)}
        if identity(self.top) in around:
            raise fail(f"{self.top} is a link to a folder that it lies in", help="remove the link")
        self.seen = around | {identity(p) for p in self.top.resolve().parents}
        self.waiting: list[_Folder] = []
        self.beside = 0
        self._follow(self.top, name, None)

    def find(self) -> Iterator[str]:
        while self.waiting:
            folder = self.waiting.pop()
            for entry in entries(self.base / folder.inside):
                path, inside = Path(entry.path), f"{folder.inside}/{entry.name}"
                if self._is_used(entry, path):
                    yield inside
                    continue
                if folder.link is not None:
                    self._count_beside(folder.link)
                if is_folder(entry) and not is_hidden(entry.name):
                    self._follow(path, inside, folder.link)

    def _is_used(self, entry: os.DirEntry[str], path: Path) -> bool:
        """Whether an entry is a picture to use; another file is put down as left out."""
        is_dir = is_folder(entry)
        if is_hidden(entry.name) if is_dir else entry.name.startswith("."):
            self.left_out.add(path, "hidden")
        elif not is_dir:
            if looks_like_picture(path):
                return True
            self.left_out.add(path, "no picture")
        return False

    def _follow(self, path: Path, inside: str, link: Path | None) -> None:
        """Puts a folder on the list, once."""
        folder = identity(path)
        if folder in self.seen:
            why = "a link to a folder that is read already, or that it lies in"
            self.left_out.add(path, why)
            return
        owner = self.owners.setdefault(folder, self.top)
        if owner != self.top:
            message = f"{path} belongs to {owner} as well, by a link"
            raise fail(message, help="remove the link: a picture is of one class and one part")
        self.seen.add(folder)
        if link is None and path.is_symlink() and not path.resolve().is_relative_to(self.above):
            link = path
        self.waiting.append(_Folder(inside, link))

    def _count_beside(self, link: Path) -> None:
        self.beside += 1
        if self.beside > MOST_BESIDE:
            many = f"over {MOST_BESIDE:,} files and folders that are no pictures"
            raise fail(f"{link} is a link to {many}", help="link to a folder of pictures alone")


def holds_pictures(place: Path) -> bool:
    """Whether there are pictures in a folder or in one within it."""
    return any(_Walk(place.parent, place.name, LeftOut(place), {}).find())


def looks_like_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or is_picture(path)


def entries(place: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name. Raises NetError where it cannot be read."""
    try:
        with os.scandir(place) as found:
            return sorted(found, key=lambda e: e.name)
    except OSError as e:
        raise fail(f"cannot read {e.filename}: {e.strerror}") from None


def folders(base: Path, left_out: LeftOut | None = None) -> list[str]:
    """The names of the folders in one, hidden ones left out."""
    inside = [e for e in entries(base) if is_folder(e)] if base.is_dir() else []
    if left_out is not None:
        for e in inside:
            if is_hidden(e.name):
                left_out.add(Path(e.path), "hidden")
    return [e.name for e in inside if not is_hidden(e.name)]


def files(place: Path) -> Iterator[Path]:
    """The files in a folder, hidden ones left out."""
    return (Path(e.path) for e in entries(place) if not is_folder(e) and not e.name.startswith("."))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM


def identity(path: Path) -> Identity:
    """Raises NetError where there is nothing at a path."""
    try:
        found = path.stat()
    except OSError as e:
        raise fail(f"cannot read {path}: {e.strerror}") from None
    return found.st_dev, found.st_ino
