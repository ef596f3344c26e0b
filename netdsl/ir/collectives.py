"""Emits means over the ranks of a run."""

from __future__ import annotations

from netdsl.types import Emitter, Node

LAST_BUCKET = 1
"""The bucket of collectives that is reduced last; the others have higher numbers."""


def mean_over_ranks(b: Emitter, x: Node, ranks: int, bucket: int = 0) -> Node:
    """Emits the mean of a value over the ranks; in a `bucket` (from 1), it is reduced with others.
    The factor becomes part of a kernel that reads the sum."""
    return b.mul(b.all_reduce(x, bucket=bucket), b.const(1 / ranks, x.type.dtype))
