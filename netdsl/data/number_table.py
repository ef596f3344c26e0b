"""A table of numbers in a text file: one row of an image, or one vector, per line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netdsl.data.memory_limits import check_memory
from netdsl.errors import Source, Span, fail
from netdsl.file_io import read_regular_file
from netdsl.text_escaping import escape_line
from netdsl.types import Array, dims

SUFFIXES = (".csv", ".tsv", ".txt")
MAX_TABLE_BYTES = 8 * 10**6
_SEPARATORS = (",", ";", "\t")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|nan)", re.ASCII)


@dataclass(frozen=True)
class NumberTable:
    """The numbers of a table, [rows, columns], and how many of its cells were blank."""

    values: Array
    blank_count: int


def read_number_table(path: Path, blank: float = 0.0) -> NumberTable:
    """Reads a table of at most MAX_TABLE_BYTES. Cells are separated by commas, or if there are
    none by semicolons, tabs or spaces; lines without any character are left out. Cells that are
    empty, and those missing at the end of rows shorter than the longest, have the value `blank`.
    Raises NetError if it is not text, or if a cell is not a number."""
    try:
        text = read_regular_file(path, MAX_TABLE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fail(f"{path} is not a table of text", help="save it as `CSV UTF-8`") from None
    source = Source(str(path), text.replace("\r\n", "\n").replace("\r", "\n"))
    separator = next((s for s in _SEPARATORS if s in text), None)
    rows, start = [], 0
    for line in source.text.split("\n"):
        span = Span(source, start, start + max(1, len(line)))
        if line.strip(" "):
            rows.append([_read_cell(cell, span) for cell in line.split(separator)])
        start += len(line) + 1
    if not rows:
        raise fail(f"{path} is empty", help="write rows of numbers, as in `5,3,8`")
    width = max(map(len, rows))
    check_memory(str(path), 9 * len(rows) * width)
    values = np.full((len(rows), width), blank, np.float64)
    is_given = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is not None:
                values[i, j], is_given[i, j] = value, True
    return NumberTable(values, int((~is_given).sum()))


def _read_cell(cell: str, span: Span) -> float | None:
    """The number in a cell, None if it is blank. Raises NetError for any other text."""
    text = cell.strip()
    if not text:
        return None
    if _NUMBER.fullmatch(text.lower()):
        return float(text)
    help = "a table may contain only numbers and blank cells: remove names of rows and columns"
    if "," in text:
        help = "write decimals with a point: `0.5`"
    raise fail(f"`{escape_line(text[:40])}` is not a number", span, help=help)


def shape_table(values: Array, shape: tuple[int, ...], origin: str) -> Array:
    """The numbers of a table, [rows, columns], as an input of that shape takes them: those of an
    image with one channel, or of vectors, one a row (a single column is one vector). Returns the
    images [N, *shape]. Raises NetError if the table does not fit."""
    if shape in ((*values.shape, 1), values.shape):
        return values.reshape(1, *shape)
    if len(shape) == 1 and values.shape[1] == shape[0]:
        return values
    if len(shape) == 1 and values.shape == (shape[0], 1):
        return values.reshape(1, -1)
    given = dims(values.shape)
    help = f"the table must have {shape[0]} columns, a row for each vector"
    if len(shape) > 1:
        help = f"the table must have {shape[0]:,} rows of {shape[1]:,} numbers"
    if len(shape) == 3 and shape[2] > 1:
        help = "a table is an image with one channel; `np.save` writes others as a .npy file"
    raise fail(f"{origin} is {given}, but the net takes {dims(shape)}", help=help)
