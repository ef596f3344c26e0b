"""How a kernel runs over its domain: outer rows, and an inner run without gaps.

Axes are merged where all places allow it. Channel vectors do not hinder that: they are laid out
again as tiles, repeated until the inner loop is long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.memory_ref import MemoryRef
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.layout import IntTuple

MAX_OUTER_AXES = 3
"""Axes of rows that a loop nest has room for."""
_MIN_TILE_ELEMENTS = 1024
"""Elements that a tile should have: loops are long then, and several tiles fit the first cache."""


@dataclass(frozen=True)
class LoopNest:
    """`outer_shape` are three axes of rows; each row is a `run` of elements that lie one behind the
    other, with channel vectors of `period` elements repeated `repeat` times in a tile."""

    outer_shape: tuple[int, int, int]
    run: int
    period: int
    repeat: int
    strides: dict[int, tuple[IntTuple, int]]
    """Of each place, by its id: strides along the outer axes and along the run."""
    periodic_refs: frozenset[int]
    """Places that are the same in every period, by their id."""

    @property
    def row_count(self) -> int:
        return math.prod(self.outer_shape)

    @property
    def tile_size(self) -> int:
        return self.period * self.repeat


def make_loop_nest(
    shape: IntTuple, places: Sequence[MemoryRef], fixed_axes: int = 0, can_merge_rows: bool = True
) -> LoopNest:
    """The walk over a domain; the first `fixed_axes` axes stay as they are, and without
    `can_merge_rows` a run is never longer than the last axis."""
    padded = any(p.padded_axes for p in places)
    axes: list[tuple[int, list[int]]] = [
        (size, [p.strides[a] for p in places]) for a, size in enumerate(shape)
    ]
    fixed_outer = list(axes[:fixed_axes])
    rest = axes[fixed_axes:] if padded or not can_merge_rows else _merge_axes(axes[fixed_axes:])
    rest = rest or [(1, [0] * len(places))]
    period, run, inner = rest[-1][0], rest[-1][0], rest[-1][1]
    outer = rest[:-1]
    periodic = frozenset(
        id(p) for i, p in enumerate(places) if not any(o[1][i] for o in fixed_outer + outer)
    )
    if math.prod(o[0] for o in fixed_outer + outer) == 1:
        periodic = frozenset()
    is_mergeable = can_merge_rows and not padded and all(s in (0, 1) for s in inner)
    vectors = [s == 1 for s in inner]
    while (
        is_mergeable and outer and _is_contiguous(outer[-1], run, vectors, outer[:-1] + fixed_outer)
    ):
        run *= outer.pop()[0]
    outer = fixed_outer + outer
    if len(outer) > MAX_OUTER_AXES:
        raise UnsupportedKernelError("a domain with too many axes")
    unit_axis = (1, [0] * len(places))
    outer = [unit_axis] * (MAX_OUTER_AXES - len(outer)) + outer
    strides = {id(p): (tuple(o[1][i] for o in outer), inner[i]) for i, p in enumerate(places)}
    sizes = tuple(size for size, _ in outer)
    return LoopNest(sizes, run, period, _choose_repeat(period, run), strides, periodic)  # type: ignore[arg-type]


def _merge_axes(axes: Sequence[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
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


def _is_contiguous(
    axis: tuple[int, list[int]],
    run: int,
    vectors: Sequence[bool],
    outer: Sequence[tuple[int, list[int]]],
) -> bool:
    """Whether rows along an axis follow each other without a gap in every tensor; vectors and
    scalars must be the same in all rows."""
    for i, stride in enumerate(axis[1]):
        has_run_stride = vectors[i] and stride == run
        is_repeated = stride == 0 and all(strides[i] == 0 for _, strides in outer)
        if not has_run_stride and not is_repeated:
            return False
    return True


def _choose_repeat(period: int, run: int) -> int:
    if run == period:
        return 1
    times = -(-_MIN_TILE_ELEMENTS // period)
    whole = vector_width() // math.gcd(vector_width(), period * times)
    return min(times * whole, -(-run // period))


def remove_channel_period(loop_nest: LoopNest) -> LoopNest:
    """A walk without channels: the period is any handy number of elements."""
    period = min(_MIN_TILE_ELEMENTS, -(-loop_nest.run // vector_width()) * vector_width())
    return replace(loop_nest, period=period, repeat=1)
