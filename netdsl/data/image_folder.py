"""Folders of pictures, one per class, optionally under train, val and test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from netdsl.data.data_source import DatasetNotFound, DataSource
from netdsl.data.folder_scan import (
    IgnoredFiles,
    Owners,
    describe_unread_formats,
    find_class_pictures,
    has_pictures,
    list_files,
    list_folders,
    looks_like_picture,
)
from netdsl.data.inventory import abbreviate
from netdsl.data.path_lookup import PathLookup
from netdsl.data.pictures import BadPicture, Pictures, find_picture_errors
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import Diagnostic, NetError, fail
from netdsl.parameter_types import QuotedText
from netdsl.signature import Param, Signature

TRAIN, VALIDATION, TEST = "train", "val", "test"
PARTS = {
    TRAIN: (TRAIN, "training"),
    VALIDATION: (VALIDATION, "valid", "validation", "dev"),
    TEST: (TEST, "testing"),
}
"""The folder names of each part, in any case."""
MAX_CHECKED_PICTURES = 20_000
"""Pictures whose headers are checked before training; in larger data sets only the first ones."""
MAX_LISTED_ERRORS = 8
_FOLDERS_HELP = (
    "a folder of pictures for each class: DIR/train/CLASS and DIR/val/CLASS, or DIR/CLASS"
)


def folder_source() -> DataSource:
    path = Param(
        "path",
        QuotedText(),
        doc="the folder that contains them; alternatively, `--data` gives it or its parent",
    )
    doc = (
        "pictures in a folder for each class: path/train/CLASS, with path/val/CLASS and "
        "path/test/CLASS or without, or path/CLASS"
    )
    return DataSource(Signature("folder", (path,)), _load, _find, None, None, doc, True)


def _load(data_folder: Path | None, path: str) -> Dataset:
    root = _find(data_folder, path)["path"]
    try:
        return read_folder(root)
    except NetError as e:
        if root != data_folder:
            raise
        note = f"{root} contains no folder {Path(path).name}, so its own subfolders are read"
        raise NetError(*(replace(d, notes=(*d.notes, note)) for d in e.diagnostics)) from None


def _find(data_folder: Path | None, path: str) -> dict[str, Path]:
    lookup = PathLookup(path, data_folder, in_cache=data_folder is None)
    found = lookup.find(os.path.isdir) or data_folder or lookup.find_folder()
    if found is not None:
        return {"path": found}
    help = lookup.advise() or f"`--data DIR` says where the pictures are: {_FOLDERS_HELP}"
    raise DatasetNotFound(Diagnostic(lookup.describe("folder"), lookup.span, help))


def read_folder(root: Path) -> Dataset:
    """The pictures under a folder. None is decoded yet; files whose headers show that they are not
    pictures are left out of the samples. Raises NetError if there are no pictures, if it is
    ambiguous which folders are classes and which are parts, or if a part has a class that is not
    among the training pictures."""
    ignored_files = IgnoredFiles(root)
    parts = _find_parts(root)
    base = parts.pop(TRAIN, root)
    classes = tuple(list_folders(base, ignored_files))
    if base == root:
        _check_classes(root, classes, parts)
    else:
        _check_siblings(root, classes, [base, *parts.values()], ignored_files)
    _check_annotations(base, classes)
    _check_nested(base, classes)
    owners: Owners = {}
    train = _read_part(base, classes, ignored_files, owners)
    _check_no_empty_class(base, classes, train)
    rest = {n: _read_part(path, classes, ignored_files, owners) for n, path in parts.items()}
    bad, (train, *others) = drop_bad_pictures([train, *rest.values()])
    _check_no_empty_class(base, classes, train, bad)
    rest = dict(zip(rest, others, strict=True))
    for name, part in rest.items():
        if not len(part):
            message = f"none of the pictures in {parts[name]} can be used"
            raise fail(
                message,
                help="restore some of them, or move the folder away",
                notes=_error_messages(bad),
            )
    test = rest.get(TEST)
    read_test = None if test is None else lambda: test
    return Dataset(train, classes, read_test, rest.get(VALIDATION), ignored_files.lines(), bad)


# ---- which folders are parts, and which are classes


def _find_parts(root: Path) -> dict[str, Path]:
    """The part folders that hold class folders. Raises NetError if two folders are the same part,
    or if there is no training part."""
    found: dict[str, Path] = {}
    for name in list_folders(root):
        part = match_part(name)
        if part is None or not list_folders(root / name):
            continue
        if part in found:
            message = (
                f"{root} contains both {found[part].name} and {name}, which mean the same part"
            )
            raise fail(message, help=f"keep one of them; expected: {_FOLDERS_HELP}")
        found[part] = root / name
    if found and TRAIN not in found:
        help = f"expected: {_FOLDERS_HELP}"
        first = next(iter(found.values())).name
        raise fail(
            f"{root} contains {first}, but no {TRAIN} with a folder for each class", help=help
        )
    return found


def match_part(name: str) -> str | None:
    """The part that a folder name denotes, if any."""
    return next((part for part, names in PARTS.items() if name.lower() in names), None)


def _check_classes(root: Path, classes: Sequence[str], parts: dict[str, Path]) -> None:
    """Raises NetError if the folders taken for classes are parts, or hold parts."""
    if len(classes) > 1 and all(match_part(c) for c in classes):
        message = f"the pictures of {root / classes[0]} are not in a class folder"
        raise fail(message, help=f"expected: {_FOLDERS_HELP}")
    for c in classes:
        parts_inside = [
            n for n in list_folders(root / c) if match_part(n) and list_folders(root / c / n)
        ]
        if parts_inside:
            message = f"{root / c} would be a class, but it contains the part {parts_inside[0]}"
            raise fail(message, help=f"if you mean that folder, name it; expected: {_FOLDERS_HELP}")


def _check_siblings(
    root: Path, classes: Sequence[str], parts: Sequence[Path], ignored_files: IgnoredFiles
) -> None:
    """Ignores what is next to the parts. Raises NetError if it may be a part too, or if the folder
    called train may be one class among others."""
    _ignore_files(root, ignored_files)
    for name in list_folders(root, ignored_files):
        sibling = root / name
        if sibling in parts:
            continue
        if set(list_folders(sibling)) & set(classes):
            names = ", ".join(f"{p} ({' or '.join(names)})" for p, names in PARTS.items())
            message = f"{sibling} has the same classes as {parts[0].name}, but would not be used"
            raise fail(message, help=f"rename it to one of the parts {names}, or move it away")
        if not has_pictures(sibling):
            ignored_files.add(sibling, "a folder without pictures, next to the parts")
        elif match_part(name):
            reason = (
                "its pictures are not in a class folder; `netdsl predict` works on such a folder"
            )
            ignored_files.add(sibling, reason)
        elif len(parts) == 1:
            message = f"{parts[0]} could be a part, or a class like {name} next to it"
            help = f"move {name} away, or the folders in {parts[0].name}; expected: {_FOLDERS_HELP}"
            raise fail(message, help=help)
        else:
            ignored_files.add(sibling, "pictures next to the parts")


def _check_annotations(base: Path, classes: Sequence[str]) -> None:
    """Raises NetError if what would be a class contains the boxes of objects in the pictures of
    another, as for YOLO and Pascal VOC."""
    files = [c for c in classes if c.lower() in _ANNOTATIONS and not has_pictures(base / c)]
    if files and any(c.lower() in _ANNOTATED for c in classes):
        message = f"{base} has pictures with annotations in {files[0]}, not a folder for each class"
        help = f"boxes of objects are not read; sort the pictures by class: {_FOLDERS_HELP}"
        raise fail(message, help=help)


_ANNOTATIONS = ("labels", "annotations")
_ANNOTATED = ("images", "jpegimages")
"""Folders of data sets for object detection."""


def _check_nested(base: Path, classes: Sequence[str]) -> None:
    """Raises NetError if a class is divided into parts, or if every class contains the same folders
    and nothing else: those are then the real classes."""
    nested_names = [
        {match_part(name) or name: name for name in _find_nested_folders(base / c)} for c in classes
    ]
    first = nested_names[0] if nested_names else {}
    common = sorted(name for key, name in first.items() if all(key in w for w in nested_names))
    if len(classes) > 1 and (len(common) > 1 or any(match_part(name) for name in common)):
        raise fail(
            f"{abbreviate(classes)} of {base} would be the classes, but they all contain the "
            f"same folders {abbreviate(common)}",
            help=f"class folders belong in part folders; expected: {_FOLDERS_HELP}",
        )
    for c in classes:
        parts = [name for name in list_folders(base / c) if match_part(name)]
        if len({match_part(name) for name in parts}) > 1:
            message = f"{base / c} would be a class, but it contains the parts {abbreviate(parts)}"
            raise fail(
                message, help=f"parts contain classes, not the reverse; expected: {_FOLDERS_HELP}"
            )


def _find_nested_folders(directory: Path) -> set[str]:
    """The subfolders of a folder that holds no pictures itself, looking through folders that hold
    only one folder each."""
    while True:
        nested = list_folders(directory)
        if any(looks_like_picture(p) for p in list_files(directory)):
            return set()
        if len(nested) != 1 or match_part(nested[0]):
            return set(nested)
        directory = directory / nested[0]


def _check_no_empty_class(
    base: Path, classes: Sequence[str], train: Samples, bad: Sequence[BadPicture] = ()
) -> None:
    counts = train.count_by_class(len(classes))
    if not counts.all():
        empty = base / classes[int(counts.argmin())]
        default_help = (
            f"each folder in {base} is read as a class: put pictures there, move it elsewhere if "
            f"it is not a class, or give another folder"
        )
        help = bad[0].diagnostics[0].help if bad else describe_unread_formats(empty)
        help = help or default_help
        raise fail(f"{empty} contains no training pictures", help=help, notes=_error_messages(bad))


def _error_messages(bad: Sequence[BadPicture]) -> list[str]:
    return [e.diagnostics[0].message for e in bad[:MAX_LISTED_ERRORS]]


# ---- the pictures of a part


def _read_part(
    base: Path, classes: Sequence[str], ignored_files: IgnoredFiles, owners: Owners
) -> Samples:
    unknown = sorted(set(list_folders(base)) - set(classes))
    if unknown:
        raise fail(
            f"{base / unknown[0]} is a class without training pictures",
            help=f"the training classes are {abbreviate(classes)}",
        )
    present = [c for c in classes if (base / c).is_dir()]
    found = {
        c: find_class_pictures(base, c, ignored_files, owners) if c in present else []
        for c in classes
    }
    if not any(found.values()):
        is_loose = any(looks_like_picture(p) for p in list_files(base))
        problem = "are not in a class folder" if is_loose else "are missing"
        raise fail(f"the pictures of {base} {problem}", help=f"expected: {_FOLDERS_HELP}")
    _ignore_files(base, ignored_files)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(x) for x in found.values()])
    names = [n for x in found.values() for n in x]
    return Samples(Pictures(base, np.array(names, dtype=object)), labels)


def _ignore_files(directory: Path, ignored_files: IgnoredFiles) -> None:
    """Records the files next to folders that are not used: pictures and broken links."""
    for path in list_files(directory):
        if not os.path.exists(path):
            ignored_files.add(path, "a broken link")
        elif looks_like_picture(path):
            ignored_files.add(path, "not in a class folder")


def drop_bad_pictures(parts: Sequence[Samples]) -> tuple[tuple[BadPicture, ...], list[Samples]]:
    """The errors in the headers of files, and the parts without those files."""
    found: list[BadPicture] = []
    remaining, budget = [], MAX_CHECKED_PICTURES
    for part in parts:
        assert isinstance(part.images, Pictures)
        errors = find_picture_errors(part.images[:budget].paths)
        budget -= len(errors)
        found += [e for e in errors if e is not None]
        valid = np.array(
            [i for i in range(len(part)) if i >= len(errors) or errors[i] is None], int
        )
        remaining.append(part.take(valid) if len(valid) < len(part) else part)
    return tuple(found), remaining
