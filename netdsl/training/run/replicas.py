"""Replicas: the states of all ranks are equal after every update, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from operator import itemgetter

import numpy as np

from netdsl.errors import fail
from netdsl.ranks.communicator import Communicator
from netdsl.ranks.rank_names import name_ranks
from netdsl.runtime.state import State
from netdsl.training.run.nan_check import Fault
from netdsl.types import Graph


def checksum(state: State) -> str:
    """A checksum of all values of all states."""
    digest = hashlib.sha256()
    for name, array in sorted(state.arrays.items(), key=itemgetter(0)):  # one by one in memory
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state.backend.download(array)).view(np.uint8).data)
    return digest.hexdigest()


def check_replicas(communicator: Communicator, state: State, epoch: int) -> None:
    """Compares the states of all ranks. Raises NetError, on all of them, that names those whose
    states differ from most others'."""
    if communicator.is_alone:
        return
    found = communicator.all_gather(checksum(state).encode())
    (most, _), *others = Counter(found).most_common()
    if others:
        odd = [rank for rank, value in enumerate(found) if value != most]
        raise fail(
            f"after epoch {epoch}, the weights of {name_ranks(communicator.hosts, odd)} are not "
            "those of the other ranks",
            help="the ranks need the same processor or GPU model and the same libraries; if they "
            "have them, a device may be defective",
        )


def find_first_origin(
    communicator: Communicator, graph: Graph, fault: Fault | None
) -> tuple[Fault | None, tuple[int, ...]]:
    """The fault of the first rank that found one in its part of the batch, and the ranks that have
    found one, if not all of them have."""
    if communicator.is_alone:
        return fault, ()
    own = json.dumps(None if fault is None else [fault.node.name, fault.kind])
    found = [json.loads(text) for text in communicator.all_gather(own.encode())]
    ranks = tuple(rank for rank, value in enumerate(found) if value is not None)
    if not ranks:
        return None, ()
    name, kind = found[ranks[0]]
    return Fault(graph[name], kind), ranks if len(ranks) < communicator.size else ()
