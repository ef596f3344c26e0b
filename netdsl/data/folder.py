"""Folders of pictures, one for each class, perhaps under train, val and test."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from netdsl.data.pictures import SUFFIXES, Pictures, unreadable
from netdsl.data.samples import Dataset, Samples
from netdsl.data.source import Absent, DataSource
from netdsl.errors import Diagnostic, fail
from netdsl.files import cache_folder
from netdsl.kinds import Text
from netdsl.signature import Param, Signature

TRAIN = "train"
VALIDATION = ("val", "validation", "valid")
TEST = "test"
MOST_OPENED = 20_000
"""Pictures that are looked into before anything is learnt; of more only the first ones."""
MOST_NAMED = 8
_HOW = "a folder of pictures for each class: DIR/train/CLASS and DIR/val/CLASS, or DIR/CLASS"


def folder() -> DataSource:
    path = Param(
        "path", Text(), doc="what holds the folders; or `--data` names it, or what it is in"
    )
    doc = "pictures, in a folder for each class: path/train/CLASS and path/val/CLASS, or path/CLASS"
    return DataSource(Signature("folder", (path,)), _load, None, None, doc)


def _load(given: Path | None, path: str) -> Dataset:
    return read_folder(_root(given, Path(path)))


def _root(given: Path | None, path: Path) -> Path:
    places = (given / path.name, given) if given else (path, cache_folder() / path)
    for place in places:
        if place.is_dir():
            return place
    help = f"`--data DIR` says where the pictures are: {_HOW}"
    message = f"there is no folder {places[0]}, nor {places[1]}"
    raise Absent(Diagnostic(message, help=help))


def read_folder(root: Path) -> Dataset:
    """The pictures under a folder; none of them is decoded yet. Raises NetError where it holds
    none, where a part has a class that is not among the training pictures, and for files that are
    no pictures."""
    apart = (root / TRAIN).is_dir() and bool(_folders(root / TRAIN))
    base = root / TRAIN if apart else root
    classes = tuple(_folders(base))
    train = _part(base, classes)
    counts = np.bincount(train.labels, minlength=len(classes))
    if not counts.all():
        empty = base / classes[int(counts.argmin())]
        help = "put some there, or remove the folder"
        raise fail(f"{empty} holds no pictures to learn from", help=help)
    beside = [n for n in (*VALIDATION, TEST) if _folders(root / n)]
    if beside and not apart:
        help = f"it takes {_HOW}"
        raise fail(f"{root} holds {beside[0]}, and no {TRAIN} with a folder a class", help=help)
    parts = {n: _part(root / n, classes) for n in beside}
    _check_pictures([train, *parts.values()])
    test = parts.pop(TEST, None)
    validation = next(iter(parts.values()), None)
    return Dataset(train, classes, None if test is None else lambda: test, validation)


def _part(base: Path, classes: tuple[str, ...]) -> Samples:
    strange = sorted(set(_folders(base)) - set(classes))
    if strange:
        raise fail(
            f"{base / strange[0]} is a class that there are no pictures to learn of",
            help=f"the classes to learn are {_few(classes)}",
        )
    found = [[f"{c}/{name}" for name in _names(base / c)] for c in classes]
    if not any(found):
        loose = "lie in no folder of a class" if _names(base) else "are missing"
        raise fail(f"the pictures of {base} {loose}", help=f"it takes {_HOW}")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(names) for names in found])
    return Samples(Pictures(base, np.array([n for x in found for n in x], dtype=object)), labels)


def _folders(base: Path) -> list[str]:
    """The names of the folders in one, hidden ones left out."""
    if not base.is_dir():
        return []
    inside = (p.name for p in base.iterdir() if p.is_dir())
    return sorted(name for name in inside if not name.startswith((".", "__")))


def _names(base: Path) -> list[str]:
    """The pictures in a folder, and in the folders in it; other files are left out."""
    found = []
    for place, _, files in os.walk(base, onerror=_unreadable):
        inside = Path(place).relative_to(base)
        found += [str(inside / f) for f in files if _is_picture(f)]
    return sorted(found)


def _unreadable(e: OSError) -> None:
    raise fail(f"cannot read {e.filename}: {e.strerror}")


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _check_pictures(parts: list[Samples]) -> None:
    """Raises NetError where files are no pictures, naming them."""
    paths: list[Path] = []
    for part in parts:
        assert isinstance(part.images, Pictures)
        paths += part.images[: MOST_OPENED - len(paths)].paths
    wrong = unreadable(paths)
    if wrong:
        more = [f"and {len(wrong) - MOST_NAMED:,} more"] if len(wrong) > MOST_NAMED else []
        help = "remove what is no picture, or put it back whole"
        raise fail(wrong[0], notes=[*wrong[1:MOST_NAMED], *more], help=help)


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown}, ..." if len(names) > MOST_NAMED else shown
