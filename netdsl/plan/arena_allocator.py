"""Arena allocation: offsets for storage of known sizes and lifetimes, in as small an arena as is
easily found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from netdsl.types import Array


@dataclass(frozen=True, slots=True)
class Allocation:
    """`size` bytes in use from kernel `birth` to kernel `death`, both inclusive."""

    name: str
    size: int
    birth: int
    death: int


def compute_peak_bytes(allocations: Sequence[Allocation]) -> int:
    """Returns the most bytes in use at one time: a lower bound on the arena's size."""
    if not allocations:
        return 0
    change = np.zeros(max(p.death for p in allocations) + 2, dtype=np.int64)
    for p in allocations:
        change[p.birth] += p.size
        change[p.death + 1] -= p.size
    return int(change.cumsum().max())


def pack_allocations(
    allocations: Sequence[Allocation], alignment: int
) -> tuple[dict[str, int], int]:
    """Returns the byte offset of each allocation, a multiple of `alignment`, and the size of the
    arena.

    Packs greedily in three orders (the first is from Pisarchyk & Lee 2020) and returns the smallest
    result.
    """
    orders: tuple[Callable[[Allocation], tuple[int, ...]], ...] = (
        lambda p: (-p.size, p.birth),
        lambda p: (-p.size * (p.death - p.birth + 1), p.birth),
        lambda p: (p.birth, -p.size),
    )
    found = [_pack_in_order(sorted(allocations, key=order), alignment) for order in orders]
    return min(found, key=lambda f: f[1])


def _pack_in_order(allocations: Sequence[Allocation], alignment: int) -> tuple[dict[str, int], int]:
    """Puts each allocation in turn into the smallest gap that is free throughout its lifetime and
    large enough."""
    n = len(allocations)
    first, last, birth, death = (np.zeros(n, dtype=np.int64) for _ in range(4))
    offsets: dict[str, int] = {}
    for i, p in enumerate(allocations):
        size = -(-p.size // alignment) * alignment
        overlapping = (birth[:i] <= p.death) & (death[:i] >= p.birth)
        offset = _find_gap(first[:i][overlapping], last[:i][overlapping], size)
        first[i], last[i], birth[i], death[i] = offset, offset + size, p.birth, p.death
        offsets[p.name] = offset
    return offsets, int(last.max(initial=0))


def _find_gap(first: Array, last: Array, size: int) -> int:
    """Returns the start of the smallest gap of at least `size`, or the end of all allocations if
    there is none."""
    if not len(first):
        return 0
    order = first.argsort(kind="stable")
    starts = first[order]
    ends = np.maximum.accumulate(np.concatenate(([0], last[order])))
    gaps = starts - ends[:-1]
    fitting = np.where(gaps >= size, gaps, np.iinfo(np.int64).max)
    best = int(fitting.argmin())
    return int(ends[best]) if gaps[best] >= size else int(ends[-1])
