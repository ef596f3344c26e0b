"""What a net says of a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from netdsl.errors import fail
from netdsl.ops.loss import rank_classes
from netdsl.types import Array


@dataclass(frozen=True)
class Prediction:
    """The most likely class of a picture: its name, its number, and its probability. `classes` are
    the names of all, and `probabilities` theirs, [classes]."""

    label: str
    index: int
    probability: float
    classes: tuple[str, ...] = field(repr=False, compare=False)
    probabilities: Array = field(repr=False, compare=False)
    ranking: Array = field(repr=False, compare=False)
    """The numbers of the classes, the most likely first."""

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most likely classes with their probabilities, best first."""
        return [(self.classes[i], float(self.probabilities[i])) for i in self.ranking[:count]]


def make_predictions(
    classes: tuple[str, ...], scores: Array, probabilities: Array
) -> list[Prediction]:
    """The predictions for scores and probabilities [N, classes]. Raises NetError if a score is
    NaN: there is then no most likely class."""
    unknown = np.flatnonzero(np.isnan(scores).any(axis=-1))
    if unknown.size:
        message = f"a score of image {unknown[0]} is not a number, so it has no class"
        raise fail(message, help="look for NaN in the image, or in `net.weights`")
    return [
        Prediction(classes[best[0]], int(best[0]), float(p[best[0]]), classes, p, best)
        for best, p in zip(rank_classes(scores), probabilities, strict=True)
    ]
