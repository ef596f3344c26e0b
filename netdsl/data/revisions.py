"""Changes in image preparation since the first version: a run resumes only if none affects it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Revision:
    """One revision: what changed with it, for arguments that it `affects`."""

    description: str
    affects: Callable[..., bool] = lambda **arguments: True


Revisions = tuple[Revision, ...]
ORDER, SPLIT, DRAWS = "order of images", "validation split", "draws of augmentations"
BALANCED_ORDER, LIMIT = "balanced order of images", "limit of training images"
FIT, SKIPPED = "fit to the net's input", "skipped pictures"
LONG_SIDE_ROUNDING = Revision("the longer side is now rounded down, not to the nearest integer")

REVISIONS: Mapping[str, Revisions] = {
    ORDER: (),
    SPLIT: (Revision("the same share of each class is held out"),),
    BALANCED_ORDER: (),
    LIMIT: (),
    DRAWS: (),
    FIT: (Revision("a side is rounded down, and half a pixel of the corner to even"),),
    SKIPPED: (
        Revision("the next of the batch replaces one, and what would be mixed with it is not"),
    ),
}
"""Revisions of everything but augmentations, whose records hold their own. A change that gives
other images, another order or another split for the same seed needs a new entry."""


def changes_since(revision: int, revisions: Revisions, arguments: Mapping[str, Any]) -> list[str]:
    """The changes after a revision that affect these arguments; the first revision is 1."""
    return [c.description for c in revisions[revision - 1 :] if c.affects(**arguments)]
