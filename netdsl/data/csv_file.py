"""Tables with a header (CSV): rows with their lines, and errors that show the line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from netdsl.errors import NetError, Source, Span, fail
from netdsl.file_io import read_regular_file
from netdsl.text_escaping import escape_line

MAX_TABLE_BYTES = 64 * 10**6
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "`|`"}


@dataclass(frozen=True)
class CsvFile:
    """A table whose header has been read; cells are without the space around them."""

    path: Path
    source: Source
    header: tuple[str, ...]
    header_line: int

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows below the header, each with its line, counted from 1; empty lines are left out.
        Raises NetError for a row that has not as many cells as the header."""
        rows = _read_rows(self.source)
        next(rows)
        for line, cells in rows:
            if len(cells) != len(self.header):
                raise self._make_count_error(line, len(cells))
            yield line, cells

    def _make_count_error(self, line: int, count: int) -> NetError:
        """The error for a row with so many cells."""
        wanted = len(self.header)
        help = 'quote a cell that contains a comma: "a, b"'
        if count < wanted:
            help = "leave the cell of a picture without labels empty, as in `a.jpg,`"
        cells = "1 cell" if count == 1 else f"{count:,} cells"
        return self.make_error(line, f"this row has {cells}, but the header has {wanted:,}", help)

    def make_error(self, line: int, message: str, help: str | None = None) -> NetError:
        """The error for what a line says."""
        return _make_error(self.source, line, message, help)


def open_csv(path: Path) -> CsvFile:
    """Reads a table of at most MAX_TABLE_BYTES. Raises NetError if it is not UTF-8 text, has no
    rows, or no header of different names, separated by commas."""
    content = read_regular_file(path, MAX_TABLE_BYTES)
    if content.startswith(b"PK\3\4"):
        help = "save a sheet of Excel as `CSV UTF-8`; `arrays(...)` reads .npz"
        raise fail(f"{path} is an archive, such as .xlsx or .npz, not a table of text", help=help)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = 1 + content[: e.start].count(b"\n")
        message = f"{path} is not UTF-8 text: line {line:,} has the byte {content[e.start]:#04x}"
        raise fail(message, help="save it as `CSV UTF-8`") from None
    source = Source(str(path), text.replace("\r\n", "\n").replace("\r", "\n"))
    rows = _read_rows(source)
    line, header = next(rows, (1, []))
    if not header:
        raise fail(f"{path} is empty", help="the first line must name the columns")
    _check_header(source, line, header)
    if next(rows, None) is None:
        raise _make_error(source, line, f"{path} has no rows below the header")
    return CsvFile(path, source, tuple(header), line)


def _check_header(source: Source, line: int, header: list[str]) -> None:
    if len(header) == 1:
        for delimiter, noun in _OTHER_DELIMITERS.items():
            if delimiter in header[0]:
                message = f"the columns are separated by {noun} instead of commas"
                help = 'save the table with commas, as `table.to_csv("x.csv", index=False)` does'
                raise _make_error(source, line, message, help)
    if "" in header:
        message = f"column {1 + header.index('')} has no name"
        help = "to omit the index with pandas, use `table.to_csv(FILE, index=False)`"
        raise _make_error(source, line, message, help)
    twice = next((name for name, count in Counter(header).items() if count > 1), None)
    if twice is not None:
        raise _make_error(source, line, f"two columns are called `{escape_line(twice)}`")


def _read_rows(source: Source) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(source.text, newline=""), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as e:
        help = 'quotes open and close a cell ("a, b"); double a quote inside one'
        raise _make_error(
            source, max(1, reader.line_num), f"this is not valid CSV: {e}", help
        ) from None


def _make_error(source: Source, line: int, message: str, help: str | None = None) -> NetError:
    lines = source.text.split("\n", line)
    start = sum(len(x) + 1 for x in lines[: line - 1])
    return fail(message, Span(source, start, start + max(1, len(lines[line - 1]))), help=help)
