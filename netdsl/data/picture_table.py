"""A table (CSV) of pictures with their labels, one or several each, and optionally their parts."""

from __future__ import annotations

import os
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from netdsl.data.csv_file import CsvFile, open_csv
from netdsl.data.data_source import DatasetNotFound, DataSource
from netdsl.data.folder_scan import PICTURE_SUFFIXES
from netdsl.data.image_folder import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    drop_bad_pictures,
    match_part,
)
from netdsl.data.inventory import abbreviate
from netdsl.data.labels import MAX_LABEL, read_names
from netdsl.data.memory_limits import check_memory
from netdsl.data.path_lookup import PathLookup
from netdsl.data.pictures import BadPicture, Pictures
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import Diagnostic, NetError, fail
from netdsl.parameter_types import NoneLiteral, OneOf, QuotedText
from netdsl.signature import Param, Signature
from netdsl.text_escaping import escape_line
from netdsl.types import Array

SPLIT, ONE_LABEL, SEVERAL_LABELS = "split", "label", "labels"
"""Columns, in any case: the part of a picture, its one label, its several labels."""
_MANY_COLUMNS = 50
PIXEL_TABLE_HELP = (
    "contains pixels as text, as Kaggle's digit-recognizer does: "
    '`t = np.loadtxt("train.csv", delimiter=",", skiprows=1, dtype=np.uint8)`, then '
    '`np.savez("digits.npz", images=t[:, 1:].reshape(-1, 28, 28), labels=t[:, 0])` makes a file '
    'for `source = arrays("digits.npz")`'
)
"""What to do with a table of pixels; the side is that of MNIST."""
_SEPARATORS = "|;"
"""What separates the labels in a cell; in a column without any of these, spaces do."""
_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
"""What the column of a class may hold, in any case."""
_COLUMNS_HELP = (
    "the first column names the picture; after it comes a column `label`, or a column `labels` "
    "(separated by `|`, `;` or spaces), or a column of 0 and 1 for each class; a column `split` "
    "(train, val or test) is optional"
)


def table_source() -> DataSource:
    file = Param("path", QuotedText(), doc="a .csv file, looked up in the `--data` folder")
    images = Param(
        "images",
        OneOf((QuotedText(), NoneLiteral())),
        None,
        "the folder of the pictures, looked up there too; by default the folder of the table",
    )
    doc = (
        f"pictures and their labels, one or several each, in a table with a header: {_COLUMNS_HELP}"
    )
    return DataSource(Signature("csv", (file, images)), _load, _find, None, None, doc, True)


def _load(data_folder: Path | None, path: str, images: str | None) -> Dataset:
    found = _find(data_folder, path, images)
    return read_table(found["path"], found.get("images", found["path"].parent))


def _find(data_folder: Path | None, path: str, images: str | None) -> dict[str, Path]:
    """The table and, if it is named, the folder of its pictures."""
    table = PathLookup(path, data_folder)
    found = {"path": _require(table, table.find_file(), "file")}
    if images:
        folder = PathLookup(images, data_folder)
        found["images"] = _require(folder, folder.find_folder(), "folder")
    return found


def _require(lookup: PathLookup, found: Path | None, noun: str) -> Path:
    if found is not None:
        return found
    help = 'csv("labels.csv", images="DIR") names them; `--data DIR` says where they are'
    help = lookup.advise() or help
    raise DatasetNotFound(Diagnostic(lookup.describe(noun), lookup.span, help))


def read_table(path: Path, folder: Path) -> Dataset:
    """The pictures in `folder` that a table names, with their labels. None is decoded yet; those
    that are missing, or whose headers show that they are not pictures, are left out of the samples.
    Raises NetError, with the line, if the table is not as its header says, names a picture twice or
    outside of the folder, or if none of the pictures in a part can be used."""
    table = open_csv(path)
    columns = _find_columns(table)
    rows = _Rows(table, columns)
    for line, cells in table.rows():
        rows.add(line, cells)
    labels, classes = rows.label_reader.finish()
    pictures = Pictures(folder, np.array(rows.names, dtype=object))
    parts = np.array(rows.parts or [TRAIN] * len(rows.names), dtype=object)
    present = [name for name in PARTS if (parts == name).any()]
    if TRAIN not in present:
        message = f"{path} has no training pictures"
        raise fail(message, help=f"set `{SPLIT}` to `{TRAIN}` for some of them")
    index = [np.flatnonzero(parts == name) for name in present]
    bad, samples = _drop_unusable([Samples(pictures[i], labels[i]) for i in index])
    for part, usable, listed in zip(present, samples, index, strict=True):
        if not len(usable):
            names = [rows.names[i] for i in listed]
            raise _make_unusable_error(path, folder, part, names, bad)
    found = dict(zip(present, samples, strict=True))
    test = found.get(TEST)
    read_test = None if test is None else lambda: test
    return Dataset(found[TRAIN], classes, read_test, found.get(VALIDATION), (), bad)


def _drop_unusable(
    parts: Sequence[Samples],
) -> tuple[tuple[BadPicture, ...], list[Samples]]:
    """The errors of missing files and of headers, and the parts without those files."""
    missing: list[BadPicture] = []
    remaining = []
    for part in parts:
        assert isinstance(part.images, Pictures)
        paths = part.images.paths
        is_there = np.array([os.path.isfile(path) for path in paths])
        missing += [
            BadPicture(Diagnostic(f"there is no picture {paths[i]}", help=_MISSING_HELP))
            for i in np.flatnonzero(~is_there)
        ]
        remaining.append(part.take(np.flatnonzero(is_there)))
    bad, remaining = drop_bad_pictures(remaining)
    return (*missing, *bad), remaining


_MISSING_HELP = "restore it, or remove its row"


def _make_unusable_error(
    path: Path, folder: Path, part: str, names: Sequence[str], bad: Sequence[BadPicture]
) -> NetError:
    """The error if a part has no usable pictures: most likely the table means another folder, or
    leaves out the end of the names."""
    found = next((s for s in PICTURE_SUFFIXES if os.path.isfile(folder / f"{names[0]}{s}")), None)
    help = f"names are relative to {folder}; `images` in `csv(...)` names another folder"
    if found is not None:
        help = f"write names with their extension: {escape_line(names[0])}{found}"
    purpose = {TRAIN: "to train on", VALIDATION: "to validate with", TEST: "to test with"}[part]
    count = "one picture" if len(names) == 1 else f"{len(names):,} pictures"
    message = f"{path} names {count} {purpose}, but none can be used"
    return fail(message, help=help, notes=[e.diagnostics[0].message for e in bad[:3]])


# ---- the columns


@dataclass(frozen=True)
class _Columns:
    """The places of the columns: of the part, if there is one, and of the labels."""

    split: int | None
    labels: tuple[int, ...]
    make_reader: Callable[[CsvFile, tuple[int, ...]], _LabelReader]


def _find_columns(table: CsvFile) -> _Columns:
    """Raises NetError unless the header names a picture and labels, and nothing else."""
    header, line = [name.lower() for name in table.header], table.header_line
    if header[0].endswith(PICTURE_SUFFIXES):
        message = f"the first line names the picture {escape_line(table.header[0])}, not columns"
        raise table.make_error(line, message, f"add a header: {_COLUMNS_HELP}")
    if header[0] == ONE_LABEL and len(header) > _MANY_COLUMNS:
        message = f"the table contains pixels: `{header[0]}` and {len(header) - 1:,} other columns"
        raise table.make_error(line, message, f"it {PIXEL_TABLE_HELP}")
    if header[0] in (SPLIT, ONE_LABEL, SEVERAL_LABELS):
        message = f"the first column is `{header[0]}`, but it must name the picture"
        raise table.make_error(line, message, _COLUMNS_HELP)
    split = header.index(SPLIT) if SPLIT in header else None
    others = tuple(i for i in range(1, len(header)) if i != split)
    named = [i for i in others if header[i] in (ONE_LABEL, SEVERAL_LABELS)]
    if not others:
        raise table.make_error(line, "there is no column of labels", _COLUMNS_HELP)
    if named and len(others) > 1:
        unknown = abbreviate([table.header[i] for i in others if i != named[0]])
        noun = "column" if len(others) == 2 else "columns"
        message = f"a table with `{header[named[0]]}` cannot have the {noun} {unknown}"
        raise table.make_error(line, message, f"remove what is not a label: {_COLUMNS_HELP}")
    if not named and len(others) == 1:
        name = escape_line(table.header[others[0]])
        message = f"it is not clear what the column `{name}` contains"
        help = f"call it `{ONE_LABEL}` for one class per picture, or `{SEVERAL_LABELS}` for several"
        raise table.make_error(line, message, help)
    if not named:
        return _Columns(split, others, _FlagReader)
    is_one = header[named[0]] == ONE_LABEL
    return _Columns(split, others, _NameReader if is_one else _ListReader)


class _Rows:
    """What the rows say: names of pictures, their parts, and their labels."""

    def __init__(self, table: CsvFile, columns: _Columns) -> None:
        self.table, self.columns = table, columns
        self.label_reader = columns.make_reader(table, columns.labels)
        self.names: list[str] = []
        self.parts: list[str] = []
        self._lines: dict[str, int] = {}

    def add(self, line: int, cells: Sequence[str]) -> None:
        self.names.append(self._read_name(line, cells[0]))
        if self.columns.split is not None:
            self.parts.append(self._read_part(line, cells[self.columns.split]))
        self.label_reader.add(line, [cells[i] for i in self.columns.labels])

    def _read_name(self, line: int, cell: str) -> str:
        name = posixpath.normpath(cell) if cell else ""
        if not cell:
            raise self.table.make_error(line, "this row does not name a picture")
        if posixpath.isabs(name) or name.split("/")[0] == "..":
            message = f"{escape_line(cell)} is not in the folder of the pictures"
            help = "names are relative to the folder that `images` names"
            raise self.table.make_error(line, message, help)
        first = self._lines.setdefault(name, line)
        if first != line:
            message = f"{escape_line(name)} already appears on line {first:,}"
            raise self.table.make_error(line, message, "give each picture a single row")
        return name

    def _read_part(self, line: int, cell: str) -> str:
        part = match_part(cell)
        if part is None:
            message = f"`{SPLIT}` is `{escape_line(cell)}`"
            raise self.table.make_error(line, message, f"it must be one of {', '.join(PARTS)}")
        return part


# ---- labels


@dataclass
class _LabelReader(ABC):
    """Reads the labels of rows."""

    table: CsvFile
    columns: tuple[int, ...]

    @abstractmethod
    def add(self, line: int, cells: Sequence[str]) -> None:
        """Reads the cells of a row."""

    @abstractmethod
    def finish(self) -> tuple[Array, tuple[str, ...]]:
        """The labels of all rows as samples hold them, and the names of the classes."""

    def _name_classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Raises NetError if they could not be names of classes, or if there is only one."""
        title = f"the classes in {self.table.path}"
        if len(names) < 2:
            message = f"{title} are {abbreviate(names)} alone" if names else f"{title} are none"
            raise fail(message, help="training needs at least two classes")
        if len(names) > 1 + MAX_LABEL:
            raise fail(f"{title} are {len(names):,}, but there can be at most {1 + MAX_LABEL:,}")
        return tuple(read_names(names, title))


@dataclass
class _FlagReader(_LabelReader):
    """Reads a column of 0 and 1 for each class."""

    _rows: list[bytes] = field(default_factory=list)

    def add(self, line: int, cells: Sequence[str]) -> None:
        found = [_FLAGS.get(cell.lower()) for cell in cells]
        if None in found:
            place = found.index(None)
            name = escape_line(self.table.header[self.columns[place]])
            message = f"`{name}` is `{escape_line(cells[place])}`, neither 0 nor 1"
            raise self.table.make_error(line, message, _COLUMNS_HELP)
        self._rows.append(bytes(x for x in found if x is not None))

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        classes = self._name_classes([self.table.header[i] for i in self.columns])
        labels = np.frombuffer(b"".join(self._rows), np.uint8)
        return labels.reshape(-1, len(classes)), classes


@dataclass
class _NameReader(_LabelReader):
    """Reads a column with the name of a class in each cell."""

    _names: list[str] = field(default_factory=list)

    def add(self, line: int, cells: Sequence[str]) -> None:
        if not cells[0]:
            message = "this picture has no label"
            help = (
                f"add one, or remove its row; a column `{SEVERAL_LABELS}` allows pictures "
                f"without labels"
            )
            raise self.table.make_error(line, message, help)
        self._names.append(cells[0])

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        classes = self._name_classes(sorted(set(self._names)))
        numbers = {name: i for i, name in enumerate(classes)}
        return np.array([numbers[name] for name in self._names], np.int32), classes


@dataclass
class _ListReader(_LabelReader):
    """Reads a column with any number of names in each cell."""

    _cells: list[str] = field(default_factory=list)

    def add(self, line: int, cells: Sequence[str]) -> None:
        self._cells.append(cells[0])

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        separator = next((s for s in _SEPARATORS if any(s in c for c in self._cells)), None)
        lists = [
            [name for name in map(str.strip, cell.split(separator)) if name] for cell in self._cells
        ]
        classes = self._name_classes(sorted({name for names in lists for name in names}))
        check_memory(f"the labels in {self.table.path}", len(lists) * len(classes))
        numbers = {name: i for i, name in enumerate(classes)}
        labels = np.zeros((len(lists), len(classes)), np.uint8)
        for row, names in zip(labels, lists, strict=True):
            row[[numbers[name] for name in names]] = 1
        return labels, classes
