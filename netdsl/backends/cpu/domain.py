"""How a kernel runs over its domain: outer rows, and an inner run without gaps.

Axes are merged where all places allow it. Channel vectors do not hinder that: they are laid out
again as tiles, repeated until the inner loop is long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from netdsl.backends.cpu.expression import Place, Unsupported
from netdsl.backends.cpu.target import width
from netdsl.plan.layout import IntTuple

_TILE = 1024
"""Elements that a tile should have: loops are long then, and several tiles fit the first cache."""


@dataclass(frozen=True)
class Walk:
    """`outer` are three axes of rows; each row is a `run` of elements that lie one behind the
    other, with channel vectors of `period` elements repeated `repeat` times in a tile."""

    outer: tuple[int, int, int]
    run: int
    period: int
    repeat: int
    strides: dict[int, tuple[IntTuple, int]]
    """Of each place, by its id: strides along the outer axes and along the run."""
    vectors: frozenset[int]
    """Places that are the same in every period, by their id."""

    @property
    def rows(self) -> int:
        return math.prod(self.outer)

    @property
    def tile(self) -> int:
        return self.period * self.repeat


def walk(shape: IntTuple, places: Sequence[Place], fixed: int = 0, extend: bool = True) -> Walk:
    """The walk over a domain; the first `fixed` axes stay as they are, and without `extend` a run
    is never longer than the last axis."""
    padded = any(p.pad for p in places)
    axes: list[tuple[int, list[int]]] = [
        (size, [p.strides[a] for p in places]) for a, size in enumerate(shape)
    ]
    keep = list(axes[:fixed])
    rest = axes[fixed:] if padded or not extend else _merged(axes[fixed:])
    rest = rest or [(1, [0] * len(places))]
    period, run, inner = rest[-1][0], rest[-1][0], rest[-1][1]
    outer = rest[:-1]
    same = frozenset(id(p) for i, p in enumerate(places) if not any(o[1][i] for o in keep + outer))
    if math.prod(o[0] for o in keep + outer) == 1:
        same = frozenset()
    even = extend and not padded and all(s in (0, 1) for s in inner)
    vectors = [s == 1 for s in inner]
    while even and outer and _continues(outer[-1], run, vectors, outer[:-1] + keep):
        run *= outer.pop()[0]
    outer = keep + outer
    if len(outer) > 3:
        raise Unsupported("a domain of too many axes")
    blank = (1, [0] * len(places))
    outer = [blank] * (3 - len(outer)) + outer
    strides = {id(p): (tuple(o[1][i] for o in outer), inner[i]) for i, p in enumerate(places)}
    sizes = tuple(size for size, _ in outer)
    return Walk(sizes, run, period, _repeat(period, run), strides, same)  # type: ignore[arg-type]


def _merged(axes: Sequence[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
    """Without axes of one element, and neighbours that lie without a gap as one."""
    found: list[tuple[int, list[int]]] = []
    for size, strides in axes:
        if size == 1:
            continue
        if found and all(a == b * size for a, b in zip(found[-1][1], strides, strict=True)):
            found[-1] = (found[-1][0] * size, strides)
        else:
            found.append((size, strides))
    return found


def _continues(
    axis: tuple[int, list[int]],
    run: int,
    vectors: Sequence[bool],
    outer: Sequence[tuple[int, list[int]]],
) -> bool:
    """Whether rows along an axis follow each other without a gap in every tensor; vectors and
    scalars must be the same in all rows."""
    for i, stride in enumerate(axis[1]):
        full = vectors[i] and stride == run
        same = stride == 0 and all(strides[i] == 0 for _, strides in outer)
        if not full and not same:
            return False
    return True


def _repeat(period: int, run: int) -> int:
    if run == period:
        return 1
    times = -(-_TILE // period)
    whole = width() // math.gcd(width(), period * times)
    return min(times * whole, -(-run // period))


def chopped(found: Walk) -> Walk:
    """A walk without channels: the period is any handy number of elements."""
    period = min(_TILE, -(-found.run // width()) * width())
    return replace(found, period=period, repeat=1)
