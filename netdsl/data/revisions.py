"""What has changed, since the first version of the program, in how images are prepared: a run goes
on only where nothing that it uses has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Revision:
    """One revision: what is different from then on, where the arguments are such that it
    `affects` them."""

    description: str
    affects: Callable[..., bool] = lambda **arguments: True


Revisions = tuple[Revision, ...]
ORDER, SPLIT, DRAWS = "order of images", "validation split", "draws of augmentations"
FIT = "fit to the net's input"
LONG_SIDE_ROUNDING = Revision(
    "the longer side is rounded down, no longer to the nearest whole number"
)

REVISIONS: Mapping[str, Revisions] = {
    ORDER: (),
    SPLIT: (Revision("each class is held out by the same share"),),
    DRAWS: (),
    FIT: (Revision("a side is rounded down, and half a pixel of the corner to the even number"),),
}
"""Of what is no augmentation; those have theirs in their records. Whoever makes other images,
another order or another split of the same seed adds a line."""


def changes_since(revision: int, revisions: Revisions, arguments: Mapping[str, Any]) -> list[str]:
    """What has changed for these arguments after a revision; the first one is 1."""
    return [c.description for c in revisions[revision - 1 :] if c.affects(**arguments)]
