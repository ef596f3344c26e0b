"""The cores of this process: those that its affinity allows, shared with other ranks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from netdsl.ranks.communicator import Communicator

_MAX_THREADS, _WAITING_THREADS = 32, 4
_sharers = 1
"""The ranks that may run on the same cores, this one included."""


def count_cores() -> int:
    """Returns how many cores this process may keep busy: at least 1."""
    return max(1, len(_find_affinity()) // _sharers)


def start_thread_pool() -> ThreadPoolExecutor:
    """Starts threads that read and decode files: some more than cores, since some wait for the
    disk."""
    return ThreadPoolExecutor(min(_MAX_THREADS, count_cores() + _WAITING_THREADS))


def _find_affinity() -> list[int]:
    has_affinity = sys.platform == "linux"
    return sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))


def share_cores(communicator: Communicator) -> None:
    """Has `count_cores` leave their part to the other ranks on this host."""
    global _sharers
    _sharers = count_sharers(communicator, _find_affinity())


def count_sharers(communicator: Communicator, affinity: Sequence[int]) -> int:
    """Returns how many ranks on this host may run on cores of `affinity`, which is that of this
    one: a launcher may bind each rank to cores of its own, or leave all cores to all of them."""
    found = [json.loads(x) for x in communicator.all_gather(json.dumps(affinity).encode())]
    host = communicator.hosts[communicator.rank]
    there = (cores for name, cores in zip(communicator.hosts, found, strict=True) if name == host)
    return sum(not set(affinity).isdisjoint(cores) for cores in there)
