"""Divides gradients into buckets, which are reduced over the ranks one by one."""

from __future__ import annotations

from collections.abc import Sequence

BUCKET_BYTES = 25_000_000
LAST_BUCKET_BYTES = 4_000_000
"""The size of the buckets within the last `LAST_BYTES`: the step waits for the last bucket, and no
kernel runs beside it."""
LAST_BYTES = 8_000_000


def partition_buckets(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Divides gradients of these bytes, in order of readiness, into buckets of neighbours; returns
    their indices. A gradient larger than a bucket has one of its own."""
    buckets: list[list[int]] = []
    filled, left = 0, sum(sizes)
    for i, size in enumerate(sizes):
        limit = LAST_BUCKET_BYTES if left <= LAST_BYTES else BUCKET_BYTES
        if not buckets or filled + size > limit:
            buckets.append([])
            filled = 0
        buckets[-1].append(i)
        filled += size
        left -= size
    return tuple(map(tuple, buckets))
