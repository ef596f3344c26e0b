"""Buckets: which gradients are reduced over the ranks in one collective.

Few large collectives use the links better than many small ones, and those that are ready early are
reduced while the backward pass still runs. The last ones have nothing left to run beside them, so
they are smaller (Li et al. 2020, "PyTorch Distributed", section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BUCKET_BYTES = 25 * 10**6
TAIL_BYTES, TAIL_BUCKET_BYTES = 8 * 10**6, 4 * 10**6
"""The gradients that are ready last, up to so many bytes, are in buckets of so many."""


def partition_buckets(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Partitions gradients, given by their sizes in bytes in the order in which they are ready.
    Returns the numbers of those of each bucket. A bucket is larger than it should be only if it is
    of a single gradient."""
    tail = len(sizes)
    while tail and sum(sizes[tail - 1 :]) <= TAIL_BYTES:
        tail -= 1
    return (
        *_fill_buckets(sizes, range(tail), BUCKET_BYTES),
        *_fill_buckets(sizes, range(tail, len(sizes)), TAIL_BUCKET_BYTES),
    )


def _fill_buckets(
    sizes: Sequence[int], numbers: Sequence[int], limit: int
) -> Iterator[tuple[int, ...]]:
    bucket: list[int] = []
    for i in numbers:
        if bucket and sum(sizes[j] for j in bucket) + sizes[i] > limit:
            yield tuple(bucket)
            bucket = []
        bucket.append(i)
    if bucket:
        yield tuple(bucket)
