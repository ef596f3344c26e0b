"""Shards: the part of each batch, and of an evaluation, that one of several ranks takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The part of rank `rank` among `count`."""

    rank: int = 0
    count: int = 1

    def part(self, size: int) -> slice:
        """The part of a batch of `size` images, which `count` divides."""
        share = size // self.count
        return slice(self.rank * share, (self.rank + 1) * share)


WHOLE = Shard()
"""The only rank's."""
