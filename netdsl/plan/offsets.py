"""Offsets: an arena for storage of known sizes and lifetimes, as small as is easily found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from netdsl.types import Array


@dataclass(frozen=True, slots=True)
class Storage:
    """`size` bytes that are in use from the kernel `birth` to the kernel `death`, both included."""

    name: str
    size: int
    birth: int
    death: int


def peak(parts: Sequence[Storage]) -> int:
    """The most bytes that are in use at one time: no arena is smaller."""
    if not parts:
        return 0
    change = np.zeros(max(p.death for p in parts) + 2, dtype=np.int64)
    for p in parts:
        change[p.birth] += p.size
        change[p.death + 1] -= p.size
    return int(change.cumsum().max())


def pack(parts: Sequence[Storage], align: int) -> tuple[dict[str, int], int]:
    """The first byte of each part, multiples of `align`, and the size of the arena.

    Greedy in three orders (Pisarchyk & Lee 2020 have the first), of which the smallest is taken.
    """
    orders: tuple[Callable[[Storage], tuple[int, ...]], ...] = (
        lambda p: (-p.size, p.birth),
        lambda p: (-p.size * (p.death - p.birth + 1), p.birth),
        lambda p: (p.birth, -p.size),
    )
    found = [_packed(sorted(parts, key=order), align) for order in orders]
    return min(found, key=lambda f: f[1])


def _packed(parts: Sequence[Storage], align: int) -> tuple[dict[str, int], int]:
    """Each part in turn into the smallest gap that takes it, at all times that it lives."""
    n = len(parts)
    first, last, birth, death = (np.zeros(n, dtype=np.int64) for _ in range(4))
    offsets: dict[str, int] = {}
    for i, p in enumerate(parts):
        size = -(-p.size // align) * align
        there = (birth[:i] <= p.death) & (death[:i] >= p.birth)
        at = _gap(first[:i][there], last[:i][there], size)
        first[i], last[i], birth[i], death[i] = at, at + size, p.birth, p.death
        offsets[p.name] = at
    return offsets, int(last.max(initial=0))


def _gap(first: Array, last: Array, size: int) -> int:
    """Where the smallest gap of at least `size` begins; behind everything where there is none."""
    if not len(first):
        return 0
    order = first.argsort(kind="stable")
    starts = first[order]
    ends = np.maximum.accumulate(np.concatenate(([0], last[order])))
    gaps = starts - ends[:-1]
    fitting = np.where(gaps >= size, gaps, np.iinfo(np.int64).max)
    best = int(fitting.argmin())
    return int(ends[best]) if gaps[best] >= size else int(ends[-1])
