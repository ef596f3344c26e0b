"""Folders of pictures, one for each class, perhaps under train, val and test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from netdsl.data.inventory import few
from netdsl.data.pictures import BadPicture, Pictures, faults
from netdsl.data.samples import Dataset, Samples
from netdsl.data.source import Absent, DataSource
from netdsl.data.walk import (
    LeftOut,
    Owners,
    class_pictures,
    files,
    folders,
    holds_pictures,
    looks_like_picture,
)
from netdsl.errors import Diagnostic, fail
from netdsl.file_io import cache_directory
from netdsl.parameter_types import QuotedText
from netdsl.signature import Param, Signature

TRAIN, VALIDATION, TEST = "train", "val", "test"
PARTS = {
    TRAIN: (TRAIN, "training"),
    VALIDATION: (VALIDATION, "valid", "validation", "dev"),
    TEST: (TEST, "testing"),
}
"""What the folders of parts are called, in capitals or not."""
MOST_OPENED = 20_000
"""Pictures that are looked into before anything is learnt; of more only the first ones."""
MOST_NAMED = 8
_HOW = "a folder of pictures for each class: DIR/train/CLASS and DIR/val/CLASS, or DIR/CLASS"


def folder() -> DataSource:
    path = Param(
        "path", QuotedText(), doc="what holds the folders; or `--data` names it, or what it is in"
    )
    doc = "pictures, in a folder for each class: path/train/CLASS and path/val/CLASS, or path/CLASS"
    return DataSource(Signature("folder", (path,)), _load, None, None, doc)


def _load(given: Path | None, path: str) -> Dataset:
    return read_folder(_root(given, Path(path)))


def _root(given: Path | None, path: Path) -> Path:
    places = (given / path.name, given) if given else (path, cache_directory() / path)
    for place in places:
        if place.is_dir():
            return place
    help = f"`--data DIR` says where the pictures are: {_HOW}"
    message = f"there is no folder {places[0]}, nor {places[1]}"
    raise Absent(Diagnostic(message, help=help))


def read_folder(root: Path) -> Dataset:
    """The pictures under a folder; none of them is decoded yet, and files that are none by their
    headers are no part of the samples. Raises NetError where it holds none, where it is not clear
    which folders are classes and which are parts, and where a part has a class that is not among
    the training pictures."""
    left_out = LeftOut(root)
    parts = _parts(root)
    base = parts.pop(TRAIN, root)
    classes = tuple(folders(base, left_out))
    if base == root:
        _check_classes(root, classes, parts)
    else:
        _check_beside(root, classes, [base, *parts.values()], left_out)
    _check_nested(base, classes)
    owners: Owners = {}
    train = _part(base, classes, left_out, owners)
    _check_all_there(base, classes, train)
    rest = {n: _part(path, classes, left_out, owners) for n, path in parts.items()}
    bad, (train, *others) = _without_bad([train, *rest.values()])
    _check_all_there(base, classes, train, bad)
    rest = dict(zip(rest, others, strict=True))
    for name, part in rest.items():
        if not len(part):
            message = f"none of the pictures of {parts[name]} can be used"
            raise fail(message, help="put some back whole, or remove the folder", notes=_named(bad))
    test = rest.get(TEST)
    read_test = None if test is None else lambda: test
    return Dataset(train, classes, read_test, rest.get(VALIDATION), left_out.lines(), bad)


# ---- which folders are parts, and which are classes


def _parts(root: Path) -> dict[str, Path]:
    """The folders of parts that hold folders of classes. Raises NetError where two folders are
    the same part, and where there is none to learn from."""
    found: dict[str, Path] = {}
    for name in folders(root):
        part = _part_of(name)
        if part is None or not folders(root / name):
            continue
        if part in found:
            message = f"{root} holds both {found[part].name} and {name}, which mean the same"
            raise fail(message, help=f"keep one of them: it takes {_HOW}")
        found[part] = root / name
    if found and TRAIN not in found:
        help = f"it takes {_HOW}"
        first = next(iter(found.values())).name
        raise fail(f"{root} holds {first}, and no {TRAIN} with a folder a class", help=help)
    return found


def _part_of(name: str) -> str | None:
    """The part that a folder of this name is, if it is one."""
    return next((part for part, names in PARTS.items() if name.lower() in names), None)


def _check_classes(root: Path, classes: Sequence[str], parts: dict[str, Path]) -> None:
    """Raises NetError where the folders that would be classes are parts, or hold them."""
    if len(classes) > 1 and all(_part_of(c) for c in classes):
        message = f"the pictures of {root / classes[0]} lie in no folder of a class"
        raise fail(message, help=f"it takes {_HOW}")
    for c in classes:
        inside = [n for n in folders(root / c) if _part_of(n) and folders(root / c / n)]
        if inside:
            message = f"{root / c} would be a class, and it holds the part {inside[0]}"
            raise fail(message, help=f"name that folder, if it is meant; it takes {_HOW}")


def _check_beside(
    root: Path, classes: Sequence[str], parts: Sequence[Path], left_out: LeftOut
) -> None:
    """What lies beside the parts is left out. Raises NetError where that may be a part too, or
    where what is called train may be a class among others."""
    _leave_files(root, left_out)
    for name in folders(root, left_out):
        place = root / name
        if place in parts:
            continue
        if set(folders(place)) & set(classes):
            names = ", ".join(f"{p} ({' or '.join(names)})" for p, names in PARTS.items())
            message = f"{place} has the classes of {parts[0].name} and would not be used"
            raise fail(message, help=f"rename it to one of the parts {names}, or move it away")
        if not holds_pictures(place):
            left_out.add(place, "a folder without pictures, beside the parts")
        elif _part_of(name):
            left_out.add(place, "its pictures lie in no folder of a class")
        elif len(parts) == 1:
            message = f"{parts[0]} may be a part, or a class like {name} beside it"
            help = f"move {name} away, or {parts[0].name}'s own folders: it takes {_HOW}"
            raise fail(message, help=help)
        else:
            left_out.add(place, "pictures beside the parts")


def _check_nested(base: Path, classes: Sequence[str]) -> None:
    """Raises NetError where a class is divided into parts, and where every class holds the same
    folders and nothing else: these are then the classes, and what would be one is something
    else."""
    within = [{_part_of(name) or name: name for name in _branches(base / c)} for c in classes]
    first = within[0] if within else {}
    common = sorted(name for key, name in first.items() if all(key in w for w in within))
    if len(classes) > 1 and (len(common) > 1 or any(_part_of(name) for name in common)):
        raise fail(
            f"{few(classes)} of {base} would be the classes, and each of them holds the "
            f"same folders {few(common)}",
            help=f"the folders of a class lie within those of a part: it takes {_HOW}",
        )
    for c in classes:
        parts = [name for name in folders(base / c) if _part_of(name)]
        if len({_part_of(name) for name in parts}) > 1:
            message = f"{base / c} would be a class, and it holds the parts {few(parts)}"
            raise fail(message, help=f"a part holds classes, not a class parts: it takes {_HOW}")


def _branches(place: Path) -> set[str]:
    """The folders of one that holds no pictures itself; on the way down to them there may be
    folders that hold one folder each."""
    while True:
        inside = folders(place)
        if any(looks_like_picture(p) for p in files(place)):
            return set()
        if len(inside) != 1 or _part_of(inside[0]):
            return set(inside)
        place = place / inside[0]


def _check_all_there(
    base: Path, classes: Sequence[str], train: Samples, bad: Sequence[BadPicture] = ()
) -> None:
    counts = np.bincount(train.labels, minlength=len(classes))
    if not counts.all():
        empty = base / classes[int(counts.argmin())]
        usual = "put some there, or remove the folder"
        help = (bad[0].diagnostics[0].help if bad else None) or usual
        raise fail(f"{empty} holds no pictures to learn from", help=help, notes=_named(bad))


def _named(bad: Sequence[BadPicture]) -> list[str]:
    return [e.diagnostics[0].message for e in bad[:MOST_NAMED]]


# ---- the pictures of a part


def _part(base: Path, classes: Sequence[str], left_out: LeftOut, owners: Owners) -> Samples:
    strange = sorted(set(folders(base)) - set(classes))
    if strange:
        raise fail(
            f"{base / strange[0]} is a class without pictures to learn from",
            help=f"the classes to learn are {few(classes)}",
        )
    there = [c for c in classes if (base / c).is_dir()]
    found = {c: class_pictures(base, c, left_out, owners) if c in there else [] for c in classes}
    if not any(found.values()):
        is_loose = any(looks_like_picture(p) for p in files(base))
        where = "lie in no folder of a class" if is_loose else "are missing"
        raise fail(f"the pictures of {base} {where}", help=f"it takes {_HOW}")
    _leave_files(base, left_out)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(x) for x in found.values()])
    names = [n for x in found.values() for n in x]
    return Samples(Pictures(base, np.array(names, dtype=object)), labels)


def _leave_files(place: Path, left_out: LeftOut) -> None:
    """What lies beside folders and is left out: pictures, and links to what is not there."""
    for path in files(place):
        if not os.path.exists(path):
            left_out.add(path, "a link that leads nowhere")
        elif looks_like_picture(path):
            left_out.add(path, "in no folder of a class")


def _without_bad(parts: Sequence[Samples]) -> tuple[tuple[BadPicture, ...], list[Samples]]:
    """What is wrong with files by their headers, and the parts without these files."""
    found: list[BadPicture] = []
    kept, budget = [], MOST_OPENED
    for part in parts:
        assert isinstance(part.images, Pictures)
        wrong = faults(part.images[:budget].paths)
        budget -= len(wrong)
        found += [e for e in wrong if e is not None]
        good = np.array([i for i in range(len(part)) if i >= len(wrong) or wrong[i] is None], int)
        kept.append(part.take(good) if len(good) < len(part) else part)
    return tuple(found), kept
