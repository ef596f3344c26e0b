"""The geometry of a generated kernel: rows and lanes, how many elements a thread takes at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdsl.backends.cuda.expression import Expr, Load, Number
from netdsl.backends.cuda.index import Digits, Ints, Term
from netdsl.backends.cuda.launch import THREADS
from netdsl.backends.cuda.trace import Traced

_NARROW = 32
BLOCKS_EACH = 8
"""Blocks of 256 threads that a multiprocessor is given: as many as it holds at once."""
REDUCING_EACH = 2
"""The same where blocks leave partial results: few, so that these are few."""


@dataclass(frozen=True)
class Geometry:
    """The last digit of the domain runs over `lanes` vectors of `width` elements, every other
    digit over rows; `outer` leading rows' digits number the results of a reduction, which adds up
    the rest, and the lanes too unless `columns`."""

    digits: Digits
    width: int
    outer: int
    columns: bool

    @property
    def lanes(self) -> int:
        extents = self.digits.extents
        return extents[-1] // self.width if extents else 1

    @property
    def row_extents(self) -> Ints:
        return self.digits.extents[:-1]

    @property
    def outers(self) -> int:
        return math.prod(self.row_extents[: self.outer])

    @property
    def rows(self) -> int:
        """Rows that one result is made of."""
        return math.prod(self.row_extents[self.outer :])


def everything(traced: Traced) -> Iterator[Expr]:
    """All expressions of a kernel, operands first, each once."""
    seen: set[int] = set()
    todo = [s.value for s in traced.stores] + [v for r in traced.reductions for v in r.values]

    def visit(e: Expr) -> Iterator[Expr]:
        if id(e) in seen:
            return
        seen.add(id(e))
        for a in e.args:
            yield from visit(a)
        yield e

    for e in todo:
        yield from visit(e)


def geometry(traced: Traced) -> Geometry:
    """How a kernel runs over its domain. Raises Unmappable where it cannot."""
    exprs = list(everything(traced))
    loads = [e for e in exprs if isinstance(e, Load)]
    addresses: list[tuple[Term, ...]] = [e.terms for e in exprs if isinstance(e, Load | Number)]
    addresses += [s.terms for s in traced.stores]
    kept = [r.kept for r in traced.reductions]
    windowed = [(Term(p, 1),) for e in loads for w in e.windows for p in w.pieces]
    digits = Digits(traced.size, [*addresses, *kept, *windowed])
    columns, outer = False, 0
    if kept:
        columns = bool(digits.extents) and digits.strides(kept[0])[-1] != 0
    if digits.extents and not columns and (kept or len(digits.extents) == 1):
        digits.split_last(_width(traced, digits, exprs))
    if kept:
        outer = _outer(digits, kept[0])
    return Geometry(digits, _width(traced, digits, exprs), outer, columns)


def _outer(digits: Digits, kept: tuple[Term, ...]) -> int:
    """How many leading digits number results, after all that do have been put there; the others
    but the last are added up."""
    numbering = [s != 0 for s in digits.strides(kept)]
    whole = numbering[: len(digits.order)]
    digits.lead(whole)
    return sum(numbering[:-1])


def _width(traced: Traced, digits: Digits, exprs: list[Expr]) -> int:
    """The most elements that every address allows to load or store at once."""
    if not digits.extents:
        return 1
    loads = [e for e in exprs if isinstance(e, Load)]
    spots = [(e.terms, e.place, e.offset) for e in loads if e.place]
    spots += [(s.terms, s.place, s.place.layout.offset) for s in traced.stores]
    small = any(place.itemsize <= 2 for _, place, _ in spots)
    width = 8 if small else 4
    while width > 1 and not all(
        _fits(digits.strides(t), o, place.itemsize, width) for t, place, o in spots
    ):
        width //= 2
    while digits.extents[-1] % width:
        width //= 2
    if any(_laned(digits, e) for e in exprs):
        return 1
    return min([width, *(_windowed(e, width) for e in loads if digits.strides(e.terms)[-1])])


def _windowed(e: Load, width: int) -> int:
    """The most elements that may be loaded at once wherever a window is moved to."""
    size = e.place.itemsize if e.place else 1
    steps = [s * size for w in e.windows if w.size > 1 for s in (w.stride, w.inner)]
    while width > 1 and any(s % min(16, width * size) for s in steps):
        width //= 2
    return width


def _laned(digits: Digits, e: Expr) -> bool:
    """Whether a window lies across the lanes."""
    if not isinstance(e, Load):
        return False
    pieces = [p for w in e.windows for p in w.pieces]
    return any(digits.strides((Term(p, 1),))[-1] != 0 for p in pieces) or any(
        not w.pieces for w in e.windows
    )


def _fits(strides: Ints, offset: int, itemsize: int, width: int) -> bool:
    if strides[-1] == 0:
        return True
    unit = min(16, width * itemsize)
    whole = all(s * itemsize % unit == 0 for s in (*strides[:-1], offset))
    return strides[-1] == 1 and whole


def threads_of(g: Geometry) -> tuple[int, int]:
    """Lanes of a block, and rows of a block. Blocks that add up columns are narrow, so that few of
    them share a column and their partial results are few."""
    most = _NARROW if g.columns else THREADS
    lanes = g.lanes
    if lanes > most:
        across = max(d for d in range(1, most + 1) if lanes % d == 0)
        lanes = across if across >= most // 4 else most
    rows = max(1, THREADS // lanes)
    while rows > 1 and rows // 2 >= g.rows:
        rows //= 2
    return lanes, rows
