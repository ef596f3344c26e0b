"""Tables for people: figures are never cut, names fold, and what is still too wide becomes a list
with a line for each value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netdsl.text_escaping import escape_line

if TYPE_CHECKING:
    from rich.console import Console

CONSOLE_OPTIONS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
"""Text is printed verbatim, without Rich's markup."""
_FILE_WIDTH = 240
"""Columns of a file or pipe, unless the figures of a table need more."""
_GAPS = (2, 1)
"""Spaces between columns; the smaller ones where nothing else fits."""


def make_console(width: int | None = None) -> Console:
    """The terminal as it is; for a file or pipe, a console wide enough for most lines, or of the
    given width."""
    from rich.console import Console

    console = Console(**CONSOLE_OPTIONS)
    if console.is_terminal:
        return console
    return Console(**CONSOLE_OPTIONS, width=max(width or 0, _FILE_WIDTH))


@dataclass(frozen=True)
class Column:
    """A column of a table. If `is_whole`, its cells stay on one line; the words of other cells fold
    to `fold_width` characters, and so do those of the heading."""

    heading: str
    is_whole: bool = False
    is_right: bool = False
    fold_width: int = 10


def figures(heading: str, fold_width: int = 10) -> Column:
    """A column of numbers."""
    return Column(heading, is_whole=True, is_right=True, fold_width=fold_width)


@dataclass(frozen=True)
class TextTable:
    """A table of text. Control characters in cells and headings are escaped when it is printed."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def fits(self) -> bool:
        """Whether the terminal is wide enough, with names folded where necessary."""
        widths = self._fold_widths()
        console = make_console()
        return not console.is_terminal or _total(widths, _GAPS[-1]) <= console.width

    def show(self) -> None:
        """Prints it; on a terminal that is too narrow, as a list with a line for each value."""
        least = self._fold_widths()
        console = make_console(_total(least, _GAPS[0]))
        if self.title:
            console.print(self.title, soft_wrap=True)
        gap = next((gap for gap in _GAPS if _total(least, gap) <= console.width), None)
        if gap is None:
            for line in self._list_values():
                console.print(line, soft_wrap=True)
        else:
            available = console.width - _total([0] * len(least), gap)
            self._print_grid(console, _share_width(self._natural_widths(), least, available), gap)

    def _print_grid(self, console: Console, widths: Sequence[int], gap: int) -> None:
        from rich.table import Table

        grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
        for column, width in zip(self.columns, widths, strict=True):
            justify: Any = "right" if column.is_right else "left"
            heading = escape_line(column.heading)
            grid.add_column(heading, justify=justify, width=width, overflow="fold")
        for row in self.rows:
            grid.add_row(*map(escape_line, row))
        console.print(grid)

    def _list_values(self) -> list[str]:
        """Each row as its first cell, then its other cells with their headings."""
        first, *others = (escape_line(c.heading) for c in self.columns)
        width = max(map(_width, others), default=0)
        lines = []
        for name, *cells in self.rows:
            lines.append(f"{first} {escape_line(name)}".strip())
            lines += [
                f"  {heading:<{width}}  {escape_line(cell)}"
                for heading, cell in zip(others, cells, strict=True)
                if cell
            ]
        return lines

    def _cells(self, i: int) -> list[str]:
        return [escape_line(row[i]) for row in self.rows]

    def _natural_widths(self) -> list[int]:
        return [
            max(map(_width, (escape_line(c.heading), *self._cells(i))))
            for i, c in enumerate(self.columns)
        ]

    def _fold_widths(self) -> list[int]:
        """The smallest widths of the columns."""
        widths = []
        for i, c in enumerate(self.columns):
            cells = self._cells(i)
            folding = [escape_line(c.heading)] if c.is_whole else [escape_line(c.heading), *cells]
            words = max(_width(word) for text in folding for word in (text.split() or [""]))
            whole = max(map(_width, cells), default=0) if c.is_whole else 0
            widths.append(max(min(words, c.fold_width), whole, 1))
        return widths


def _share_width(natural: Sequence[int], least: Sequence[int], available: int) -> list[int]:
    """Widths of that sum, if `least` allow it: the widest columns are narrowed first."""
    for limit in range(max(natural), 0, -1):
        widths = [max(n, min(w, limit)) for w, n in zip(natural, least, strict=True)]
        if sum(widths) <= available:
            return widths
    return list(least)


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
