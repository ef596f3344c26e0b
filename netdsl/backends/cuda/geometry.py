"""Chooses the geometry of a generated kernel: its rows, its lanes and its vector width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.backends.cuda.cuda_launch import THREADS_PER_BLOCK
from netdsl.lower.expression import Expr, LinearIndex, Load, iter_expressions
from netdsl.lower.index_terms import DomainDigits, Term
from netdsl.lower.trace import TracedKernel
from netdsl.plan.layout import IntTuple

_MAX_COLUMN_LANES = 32
BLOCKS_PER_MULTIPROCESSOR = 8
"""Blocks of 256 threads per multiprocessor: as many as it can hold at once."""
REDUCTION_BLOCKS_PER_MULTIPROCESSOR = 2
"""The same for reductions: fewer, so that there are few partial results."""


class ThreadDigits:
    """The digits of a domain in the order in which threads run over them: the last one stays, and
    may be split into groups."""

    def __init__(self, domain: DomainDigits) -> None:
        self.domain = domain
        self.group_size = 0
        self.order = list(range(len(domain.extents) - 1))
        """The order of all digits but the last."""

    @property
    def extents(self) -> IntTuple:
        found, n = self._in_order(self.domain.extents), self.group_size
        return (*found[:-1], found[-1] // n, n) if n else found

    def strides(self, address: Sequence[Term]) -> IntTuple:
        """Returns how far one step of each digit moves an address."""
        found, n = self._in_order(self.domain.strides(address)), self.group_size
        return (*found[:-1], found[-1] * n, found[-1]) if n else found

    def _in_order(self, values: IntTuple) -> IntTuple:
        return (*(values[i] for i in self.order), *values[-1:])

    def move_to_front(self, selected: Sequence[bool]) -> None:
        """Moves the selected digits before the others; the last digit stays."""
        order = [*(i for i, f in zip(self.order, selected, strict=True) if f)]
        self.order = order + [i for i in self.order if i not in order]

    def split_last(self, group_size: int) -> None:
        """Splits the last digit into groups."""
        self.group_size = group_size


@dataclass(frozen=True)
class Geometry:
    """How a kernel runs over its domain. The last digit runs over `lanes` vectors of `width`
    elements, the others over rows. The first `outer_rank` of these number the results of a
    reduction; it reduces the other ones, and the lanes too unless `is_column_reduction`."""

    digits: ThreadDigits
    width: int
    outer_rank: int
    is_column_reduction: bool

    @property
    def lanes(self) -> int:
        extents = self.digits.extents
        return extents[-1] // self.width if extents else 1

    @property
    def row_extents(self) -> IntTuple:
        return self.digits.extents[:-1]

    @property
    def outer_size(self) -> int:
        return math.prod(self.row_extents[: self.outer_rank])

    @property
    def rows_per_result(self) -> int:
        """The rows that are reduced to one result."""
        return math.prod(self.row_extents[self.outer_rank :])


def choose_geometry(traced: TracedKernel) -> Geometry:
    """Returns the geometry of a kernel. Raises UnsupportedKernelError if it has none."""
    exprs = list(iter_expressions(traced.roots))
    loads = [e for e in exprs if isinstance(e, Load)]
    addresses: list[tuple[Term, ...]] = [
        e.terms for e in exprs if isinstance(e, Load | LinearIndex)
    ]
    addresses += [s.terms for s in traced.stores]
    result_terms = [r.result_terms for r in traced.reductions]
    padded_terms = [(Term(p, 1),) for e in loads for w in e.padded_axes for p in w.digits]
    digits = ThreadDigits(DomainDigits(traced.size, [*addresses, *result_terms, *padded_terms]))
    is_column_reduction, outer = False, 0
    if result_terms:
        is_column_reduction = bool(digits.extents) and digits.strides(result_terms[0])[-1] != 0
    if digits.extents and not is_column_reduction and (result_terms or len(digits.extents) == 1):
        digits.split_last(_vector_width(traced, digits, exprs))
    if result_terms:
        outer = _lead_result_digits(digits, result_terms[0])
    return Geometry(digits, _vector_width(traced, digits, exprs), outer, is_column_reduction)


def _lead_result_digits(digits: ThreadDigits, result_terms: tuple[Term, ...]) -> int:
    """Moves the row digits that number results to the front, and returns how many these are."""
    numbering = [s != 0 for s in digits.strides(result_terms)]
    row_digits = numbering[: len(digits.order)]
    digits.move_to_front(row_digits)
    return sum(numbering[:-1])


def _vector_width(traced: TracedKernel, digits: ThreadDigits, exprs: list[Expr]) -> int:
    """Returns the largest number of elements that every access can load or store at once."""
    if not digits.extents:
        return 1
    loads = [e for e in exprs if isinstance(e, Load)]
    accesses = [(e.terms, e.place, e.offset) for e in loads]
    accesses += [(s.terms, s.place, s.place.layout.offset) for s in traced.stores]
    has_16_bit = any(place.itemsize <= 2 for _, place, _ in accesses)
    width = 8 if has_16_bit else 4
    while width > 1 and not all(
        _is_vectorizable(digits.strides(t), o, place.itemsize, width) for t, place, o in accesses
    ):
        width //= 2
    while digits.extents[-1] % width:
        width //= 2
    if any(_is_padded_across_lanes(digits, e) for e in exprs):
        return 1
    return min(
        [width, *(_padded_load_width(e, width) for e in loads if digits.strides(e.terms)[-1])]
    )


def _padded_load_width(e: Load, width: int) -> int:
    """Returns the largest number of elements that a padded load can load at once at every
    position."""
    size = e.place.itemsize
    steps = [s * size for w in e.padded_axes if w.size > 1 for s in (w.stride, w.inner_stride)]
    while width > 1 and any(s % min(16, width * size) for s in steps):
        width //= 2
    return width


def _is_padded_across_lanes(digits: ThreadDigits, e: Expr) -> bool:
    """Returns whether a padded axis runs along the lanes."""
    if not isinstance(e, Load):
        return False
    pieces = [p for w in e.padded_axes for p in w.digits]
    return any(digits.strides((Term(p, 1),))[-1] != 0 for p in pieces) or any(
        not w.digits for w in e.padded_axes
    )


def _is_vectorizable(strides: IntTuple, offset: int, itemsize: int, width: int) -> bool:
    if strides[-1] == 0:
        return True
    unit = min(16, width * itemsize)
    is_aligned = all(s * itemsize % unit == 0 for s in (*strides[:-1], offset))
    return strides[-1] == 1 and is_aligned


def block_shape(g: Geometry) -> tuple[int, int]:
    """Returns the lanes and the rows of a block. Blocks that reduce columns are narrow, so that few
    of them share a column and leave few partial results."""
    max_lanes = _MAX_COLUMN_LANES if g.is_column_reduction else THREADS_PER_BLOCK
    lanes = g.lanes
    if lanes > max_lanes:
        across = max(d for d in range(1, max_lanes + 1) if lanes % d == 0)
        lanes = across if across >= max_lanes // 4 else max_lanes
    rows = max(1, THREADS_PER_BLOCK // lanes)
    while rows > 1 and rows // 2 >= g.rows_per_result:
        rows //= 2
    return lanes, rows
