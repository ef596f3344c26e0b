"""The names of ranks in messages."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_NAMED = 8


def name_ranks(hosts: Sequence[str], ranks: Sequence[int]) -> str:
    """Names ranks with their hosts; of many, the first ones."""
    named = [f"rank {rank} on {hosts[rank]}" for rank in ranks[:_MAX_NAMED]]
    more = len(ranks) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")
