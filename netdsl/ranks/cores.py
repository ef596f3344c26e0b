"""The cores of this process: those that its affinity allows, shared with other ranks."""

from __future__ import annotations

import json
import os
import sys

from netdsl.ranks.communicator import Communicator

_sharers = 1
"""The ranks that may run on the same cores, this one included."""


def count_cores() -> int:
    """Returns how many cores this process may keep busy: at least 1."""
    return max(1, len(_find_affinity()) // _sharers)


def _find_affinity() -> list[int]:
    has_affinity = sys.platform == "linux"
    return sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))


def share_cores(communicator: Communicator) -> None:
    """Counts the ranks on this host whose affinity overlaps with that of this one: a launcher may
    bind each rank to cores of its own, or leave all cores to all of them."""
    global _sharers
    own = set(_find_affinity())
    found = [json.loads(text) for text in communicator.all_gather(json.dumps(sorted(own)).encode())]
    host = communicator.hosts[communicator.rank]
    there = (cores for name, cores in zip(communicator.hosts, found, strict=True) if name == host)
    _sharers = sum(not own.isdisjoint(cores) for cores in there)
