"""Where a thread finds its elements: every value's coordinates as digits of one running number.

A kernel runs over a domain, numbered row-major. A value that it touches has, on each axis, a
coordinate that is made of digits of that number: `(i // weight) % extent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from netdsl.plan.layout import row_major_strides

Ints = tuple[int, ...]


class Unmappable(Exception):
    """A kernel that the generator has no pattern for; the operators' references compute it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The digit `(i // weight) % extent` of a domain's running number i."""

    weight: int
    extent: int


Axis = tuple[Piece, ...]
"""A coordinate: its pieces, the major one first; no piece for an axis of size 1."""
At = tuple[Axis, ...]


def whole(shape: Sequence[int]) -> At:
    """The coordinates of a value that is as large as the domain."""
    weights = row_major_strides(shape)
    return tuple((Piece(w, s),) if s != 1 else () for w, s in zip(weights, shape, strict=True))


def stretched(at: At, shape: Sequence[int]) -> At:
    """The coordinates of an operand that is broadcast to a value at `at`."""
    inner = at[len(at) - len(shape) :]
    return tuple(() if s == 1 else axis for axis, s in zip(inner, shape, strict=True))


def regrouped(at: At, shape: Sequence[int]) -> At:
    """The coordinates of the same element under another shape. Raises Unmappable where its axes
    cut through pieces."""
    left = [p for axis in at for p in axis]
    found: list[Axis] = []
    for size in shape:
        axis: list[Piece] = []
        while size != 1:
            piece = left.pop(0)
            if size % piece.extent == 0:
                axis.append(piece)
                size //= piece.extent
            elif piece.extent % size == 0:
                rest = piece.extent // size
                axis.append(Piece(piece.weight * rest, size))
                left.insert(0, Piece(piece.weight, rest))
                size = 1
            else:
                raise Unmappable(f"{shape} cuts a digit of {piece.extent}")
        found.append(tuple(axis))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Term:
    """One piece's part of an address: so many elements further for each step of the digit."""

    piece: Piece
    stride: int


def terms(at: At, strides: Sequence[int]) -> tuple[Term, ...]:
    """An address, counted in elements, as a sum over pieces."""
    found = []
    for axis, stride in zip(at, strides, strict=True):
        step = stride
        for piece in reversed(axis):
            found.append(Term(piece, step))
            step *= piece.extent
    return tuple(found)


class Digits:
    """The digits of a domain, the major one first, cut wherever some value's address asks for it.

    Neighbours that every address runs through without a gap are one digit.
    """

    def __init__(self, size: int, addresses: Iterable[Sequence[Term]]) -> None:
        self.size = size
        self.addresses = [tuple(a) for a in addresses]
        cuts = {1, size}
        for t in self._all():
            cuts |= {t.piece.weight, t.piece.weight * t.piece.extent}
        order = sorted(cuts, reverse=True)
        if any(a % b for a, b in pairwise(order)):
            raise Unmappable("two shapes cut the domain at places that do not fit together")
        self.cuts = order
        self.width = 0
        self.order: list[int] = []
        """In which order all digits but the last come."""
        self._merge()

    def _all(self) -> Iterator[Term]:
        for address in self.addresses:
            yield from address

    @property
    def extents(self) -> Ints:
        whole = self._ordered([a // b for a, b in pairwise(self.cuts)])
        return tuple([*whole[:-1], whole[-1] // self.width, self.width] if self.width else whole)

    def _ordered(self, values: list[int]) -> list[int]:
        return [*(values[i] for i in self.order), *values[-1:]]

    def lead(self, first: Sequence[bool]) -> None:
        """Puts those digits before the others that are told to be; the last one stays."""
        order = [*(i for i, f in zip(self.order, first, strict=True) if f)]
        self.order = order + [i for i in self.order if i not in order]

    def strides(self, address: Sequence[Term]) -> Ints:
        """How far one step of each digit moves an address."""
        found = [0] * (len(self.cuts) - 1)
        for t in address:
            top = t.piece.weight * t.piece.extent
            for i, w in enumerate(self.cuts[1:]):
                if t.piece.weight <= w < top:
                    found[i] += t.stride * (w // t.piece.weight)
        found = self._ordered(found)
        return tuple([*found[:-1], found[-1] * self.width, found[-1]] if self.width else found)

    def _merge(self) -> None:
        self.order = list(range(len(self.cuts) - 2))
        rows = [self.strides(a) for a in self.addresses]
        extents = self.extents
        kept = [self.cuts[0]]
        kept += [
            self.cuts[i + 1]
            for i in range(len(extents) - 1)
            if any(r[i] != r[i + 1] * extents[i + 1] for r in rows)
        ]
        self.cuts = [*kept, 1] if self.size > 1 else [1]
        self.order = list(range(len(self.cuts) - 2))

    def split_last(self, width: int) -> None:
        """Cuts the last digit into groups of `width`."""
        self.width = width
