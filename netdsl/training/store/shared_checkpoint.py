"""Checkpoints that rank 0 reads, for all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from netdsl.ranks.communicator import Communicator
from netdsl.training.store.checkpoint import Checkpoint

_STATE_TYPE = np.float32
"""The element type of a state that has been read."""


def share_checkpoint(
    communicator: Communicator, load: Callable[[], Checkpoint | None]
) -> Checkpoint | None:
    """Returns what `load` returns on rank 0, where alone it is called."""
    found = load() if communicator.is_root else None
    if communicator.is_alone:
        return found
    about = json.loads(communicator.share(lambda: json.dumps(_describe(found)).encode()))
    if about is None:
        return None
    states = {}
    for name, shape in about.pop("shapes"):
        own = np.empty(shape, _STATE_TYPE) if found is None else found.states[name]
        states[name] = np.array(own, _STATE_TYPE, order="C").reshape(shape)
        communicator.broadcast_array(states[name])
    return Checkpoint(states, **about | {"classes": tuple(about["classes"])})


def _describe(found: Checkpoint | None) -> dict[str, Any] | None:
    """Everything but the values of the states, for JSON."""
    if found is None:
        return None
    return {
        "shapes": [(name, state.shape) for name, state in found.states.items()],
        "net_text": found.net_text,
        "classes": found.classes,
        "metrics": dict(found.metrics),
        "progress": dict(found.progress),
        "origin": found.origin,
        "format": found.format,
    }
