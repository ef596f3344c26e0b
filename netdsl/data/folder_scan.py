"""Scans a class folder for pictures: which files are pictures, which folders are followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from netdsl.data.inventory import abbreviate
from netdsl.data.pictures import UNREAD_SUFFIXES, is_picture
from netdsl.errors import fail

PICTURE_SUFFIXES = (
    *[".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"],
    *[".tif", ".tiff", ".webp"],
)
"""Files with these suffixes must be pictures; the contents of other files are inspected."""
NOT_A_PICTURE = "not a picture"
MAX_PICTURES = 1_000_000
"""The most pictures of a folder that are predicted."""
SYSTEM_FOLDERS = ("__MACOSX", "__pycache__")
MAX_NON_PICTURES = 20_000
"""The most files and folders other than pictures that a link out of the data folder may lead to."""
FolderId = tuple[int, int]
"""Device and inode number of a folder, the same for every path to it."""
Owners = dict[FolderId, Path]
"""The class folder, in any part, that each folder belongs to."""


@dataclass
class IgnoredFiles:
    """Files and folders that are not used, grouped by reason."""

    root: Path
    paths_by_reason: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: Path, reason: str) -> None:
        shown = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        self.paths_by_reason.setdefault(reason, []).append(str(shown))

    def lines(self) -> tuple[str, ...]:
        return tuple(
            f"{abbreviate(names)} ({reason})" for reason, names in self.paths_by_reason.items()
        )


def find_class_pictures(
    base: Path, name: str, ignored_files: IgnoredFiles, owners: Owners
) -> list[str]:
    """The pictures in the folder of a class and in its subfolders, including linked ones, each
    folder once; as sorted paths relative to `base`. Raises NetError if the class is a link to a
    folder that contains it, if a folder belongs to another class or part as well, or if a link
    leads to many files other than pictures, such as a whole disk."""
    return sorted(_FolderScan(base, name, ignored_files, owners).find())


@dataclass(frozen=True)
class _PendingFolder:
    """A folder still to be read: its path relative to the base, and the link through which it is
    reached if it is outside the data folder."""

    relative_path: str
    link: Path | None


class _FolderScan:
    """One scan of the folder of a class."""

    def __init__(self, base: Path, name: str, ignored_files: IgnoredFiles, owners: Owners) -> None:
        self.base, self.class_folder, self.data_folder = base, base / name, base.resolve()
        self.ignored_files, self.owners = ignored_files, owners
        ancestors = {folder_id(p) for p in (self.data_folder, *self.data_folder.parents)}
        if folder_id(self.class_folder) in ancestors:
            raise fail(
                f"{self.class_folder} is a link to a folder that contains it",
                help="remove the link",
            )
        self.seen_folders = ancestors | {folder_id(p) for p in self.class_folder.resolve().parents}
        self.pending_folders: list[_PendingFolder] = []
        self.non_picture_count = 0
        self._enqueue(self.class_folder, name, None)

    def find(self) -> Iterator[str]:
        while self.pending_folders:
            folder = self.pending_folders.pop()
            for entry in list_entries(self.base / folder.relative_path):
                path, relative_path = Path(entry.path), f"{folder.relative_path}/{entry.name}"
                if self._is_used(entry, path):
                    yield relative_path
                    continue
                if folder.link is not None:
                    self._count_non_picture(folder.link)
                if is_folder(entry) and not is_hidden(entry.name):
                    self._enqueue(path, relative_path, folder.link)

    def _is_used(self, entry: os.DirEntry[str], path: Path) -> bool:
        """Whether an entry is a picture to use; other files are recorded as ignored."""
        is_dir = is_folder(entry)
        if is_hidden(entry.name) if is_dir else entry.name.startswith("."):
            self.ignored_files.add(path, "hidden")
        elif not is_dir:
            if looks_like_picture(path):
                return True
            self.ignored_files.add(path, NOT_A_PICTURE)
        return False

    def _enqueue(self, path: Path, relative_path: str, link: Path | None) -> None:
        """Queues a folder, once."""
        folder = folder_id(path)
        if folder in self.seen_folders:
            reason = "a link to a folder that has already been read or that contains it"
            self.ignored_files.add(path, reason)
            return
        owner = self.owners.setdefault(folder, self.class_folder)
        if owner != self.class_folder:
            message = f"{path} also belongs to {owner}, through a link"
            raise fail(message, help="remove the link: a picture belongs to one class and one part")
        self.seen_folders.add(folder)
        if (
            link is None
            and path.is_symlink()
            and not path.resolve().is_relative_to(self.data_folder)
        ):
            link = path
        self.pending_folders.append(_PendingFolder(relative_path, link))

    def _count_non_picture(self, link: Path) -> None:
        self.non_picture_count += 1
        if self.non_picture_count > MAX_NON_PICTURES:
            many = f"over {MAX_NON_PICTURES:,} files and folders that are not pictures"
            raise fail(
                f"{link} is a link to {many}", help="link to a folder that contains only pictures"
            )


def find_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and in its subfolders, sorted, each folder once; also those in
    formats that are not read, which are errors of their own. Raises NetError if there are none, or
    more than MAX_PICTURES."""
    whole = folder.resolve()
    if whole == Path(whole.anchor):
        raise fail(
            f"{folder} contains everything on this machine", help="name a folder of pictures"
        )
    ignored = IgnoredFiles(whole.parent)
    scan = _FolderScan(whole.parent, whole.name, ignored, {})
    found = list(islice(scan.find(), MAX_PICTURES + 1))
    found += [n for n in ignored.paths_by_reason.get(NOT_A_PICTURE, ()) if is_unread(n)]
    if not found:
        raise fail(f"{folder} contains no pictures")
    if len(found) > MAX_PICTURES:
        message = f"{folder} contains more than {MAX_PICTURES:,} pictures"
        raise fail(message, help="name the folders in it one by one")
    return [folder / Path(name).relative_to(whole.name) for name in sorted(found)]


def is_unread(name: str) -> bool:
    """Whether a file is by its name a picture in a format that is not read."""
    return os.path.splitext(name)[1].lower() in UNREAD_SUFFIXES


def describe_unread_formats(folder: Path) -> str | None:
    """What to do if a folder contains pictures only in formats that are not read."""
    suffixes = {path.suffix.upper() for path in list_files(folder) if is_unread(path.name)}
    if not suffixes:
        return None
    kinds = ", ".join(sorted(suffix[1:] for suffix in suffixes))
    return f"it contains {kinds} pictures, a format that is not read: convert them to JPEG or PNG"


def has_pictures(folder: Path) -> bool:
    """Whether a folder or any of its subfolders contains pictures."""
    return any(_FolderScan(folder.parent, folder.name, IgnoredFiles(folder), {}).find())


def looks_like_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES or is_picture(path)


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name. Raises NetError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda e: e.name)
    except OSError as e:
        raise fail(f"cannot read {e.filename}: {e.strerror}") from None


def list_folders(base: Path, ignored_files: IgnoredFiles | None = None) -> list[str]:
    """The names of a folder's subfolders, without hidden ones."""
    found = [e for e in list_entries(base) if is_folder(e)] if base.is_dir() else []
    if ignored_files is not None:
        for e in found:
            if is_hidden(e.name):
                ignored_files.add(Path(e.path), "hidden")
    return [e.name for e in found if not is_hidden(e.name)]


def list_files(folder: Path) -> Iterator[Path]:
    """The files in a folder, without hidden ones."""
    return (
        Path(e.path)
        for e in list_entries(folder)
        if not is_folder(e) and not e.name.startswith(".")
    )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def folder_id(path: Path) -> FolderId:
    """Raises NetError if nothing exists at the path."""
    try:
        found = path.stat()
    except OSError as e:
        raise fail(f"cannot read {path}: {e.strerror}") from None
    return found.st_dev, found.st_ino
