"""Index arithmetic of kernels: coordinates as digits of the domain's linear index.

A kernel runs over a domain with a row-major linear index i. Every coordinate of a value that it
accesses consists of digits of that index: `(i // weight) % extent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from netdsl.plan.layout import IntTuple, row_major_strides


class UnsupportedKernelError(Exception):
    """Raised for a kernel that an engine has no code for; the operators' references compute it. The
    message is the reason, a phrase such as "padding between channels"."""


class Digit(NamedTuple):
    """The digit `(i // weight) % extent` of a domain's linear index i."""

    weight: int
    extent: int


Coordinate = tuple[Digit, ...]
"""The digits of a coordinate, the major one first; none on an axis of size 1."""
Coordinates = tuple[Coordinate, ...]


def domain_coordinates(shape: Sequence[int]) -> Coordinates:
    """Returns the coordinates of a value that has the domain's shape."""
    weights = row_major_strides(shape)
    return tuple((Digit(w, s),) if s != 1 else () for w, s in zip(weights, shape, strict=True))


def broadcast_coordinates(coordinates: Coordinates, shape: Sequence[int]) -> Coordinates:
    """Returns the coordinates of an operand of `shape` that is broadcast to a value at
    `coordinates`."""
    inner = coordinates[len(coordinates) - len(shape) :]
    return tuple(() if s == 1 else axis for axis, s in zip(inner, shape, strict=True))


def reshape_coordinates(coordinates: Coordinates, shape: Sequence[int]) -> Coordinates:
    """Returns the coordinates of the same element in another shape. Raises UnsupportedKernelError
    if its axes split a digit unevenly."""
    remaining = [p for axis in coordinates for p in axis]
    found: list[Coordinate] = []
    for size in shape:
        axis: list[Digit] = []
        while size != 1:
            digit = remaining.pop(0)
            if size % digit.extent == 0:
                axis.append(digit)
                size //= digit.extent
            elif digit.extent % size == 0:
                rest = digit.extent // size
                axis.append(Digit(digit.weight * rest, size))
                remaining.insert(0, Digit(digit.weight, rest))
                size = 1
            else:
                raise UnsupportedKernelError(f"{shape} splits a digit of {digit.extent}")
        found.append(tuple(axis))
    return tuple(found)


class Term(NamedTuple):
    """One digit's part of an address: `stride` elements for each step of the digit."""

    digit: Digit
    stride: int


def address_terms(coordinates: Coordinates, strides: Sequence[int]) -> tuple[Term, ...]:
    """Returns an address, counted in elements, as a sum over digits."""
    found = []
    for axis, stride in zip(coordinates, strides, strict=True):
        step = stride
        for digit in reversed(axis):
            found.append(Term(digit, step))
            step *= digit.extent
    return tuple(found)


class DomainDigits:
    """The digits of a domain, the major one first, split at the axes of `shape` and wherever an
    address needs that. Other neighbours that are contiguous in every address are merged."""

    def __init__(
        self, size: int, addresses: Iterable[Sequence[Term]], shape: Sequence[int] = ()
    ) -> None:
        self.size = size
        self.addresses = [tuple(a) for a in addresses]
        axes = frozenset(row_major_strides(shape))
        boundaries = {1, size, *axes}
        for t in self._iterate_terms():
            boundaries |= {t.digit.weight, t.digit.weight * t.digit.extent}
        order = sorted(boundaries, reverse=True)
        if any(a % b for a, b in pairwise(order)):
            raise UnsupportedKernelError("two shapes split the domain in incompatible ways")
        self.boundaries = order
        self._merge(axes)
        self.extents: IntTuple = tuple(a // b for a, b in pairwise(self.boundaries))

    def _iterate_terms(self) -> Iterator[Term]:
        for address in self.addresses:
            yield from address

    def strides(self, address: Sequence[Term]) -> IntTuple:
        """Returns how far one step of each digit moves an address."""
        found = [0] * (len(self.boundaries) - 1)
        for t in address:
            top = t.digit.weight * t.digit.extent
            for i, w in enumerate(self.boundaries[1:]):
                if t.digit.weight <= w < top:
                    found[i] += t.stride * (w // t.digit.weight)
        return tuple(found)

    def _merge(self, axes: frozenset[int]) -> None:
        rows = [self.strides(a) for a in self.addresses]
        extents = [a // b for a, b in pairwise(self.boundaries)]
        boundaries = [self.boundaries[0]]
        boundaries += [
            self.boundaries[i + 1]
            for i in range(len(extents) - 1)
            if self.boundaries[i + 1] in axes
            or any(r[i] != r[i + 1] * extents[i + 1] for r in rows)
        ]
        self.boundaries = [*boundaries, 1] if self.size > 1 else [1]
