"""What a net says of a picture."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NoReturn

import numpy as np

from netdsl.errors import fail
from netdsl.ops.loss import rank_classes
from netdsl.training.recipe.targets import LABEL_THRESHOLD
from netdsl.types import Array


@dataclass(frozen=True)
class Prediction:
    """The most likely class of a picture: its name, index and probability. `labels` are the names
    of the picture's labels: for a net with several labels per image, those with a probability above
    0.5, most likely first, possibly none; otherwise only that class. `classes` are all names, and
    `probabilities` their probabilities, [classes]."""

    label: str
    index: int
    probability: float
    labels: tuple[str, ...]
    classes: tuple[str, ...] = field(repr=False, compare=False)
    probabilities: Array = field(repr=False, compare=False)
    ranking: Array = field(repr=False, compare=False)
    """The numbers of the classes, the most likely first."""

    def __getitem__(self, key: object) -> NoReturn:
        """Raises TypeError, as a prediction is not a dictionary."""
        name = key if key in _ATTRIBUTES else "label"
        raise TypeError(f"a prediction has attributes, not keys: write `prediction.{name}`")

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most likely classes with their probabilities, best first: `count` of them, or all
        if there are fewer."""
        if count < 0:
            raise fail(f"`top` takes a number of classes, not {count}")
        return [(self.classes[i], float(self.probabilities[i])) for i in self.ranking[:count]]


_ATTRIBUTES = tuple(x.name for x in fields(Prediction))


def check_numbers(scores: Array) -> None:
    """Raises NetError if one of the scores [N, classes] is NaN: there is then no most likely class
    and no probability."""
    unknown = np.flatnonzero(np.isnan(scores).any(axis=-1))
    if unknown.size:
        message = f"a score of image {unknown[0]} is not a number, so it has no class"
        help = "look for NaN and infinities in the image, or in `net.weights`; `net(images)` gives "
        raise fail(message, help=help + "the scores as they are")


def make_predictions(
    classes: tuple[str, ...], scores: Array, probabilities: Array, is_multi_label: bool
) -> list[Prediction]:
    """The predictions for scores and probabilities [N, classes]."""
    found = []
    for ranking, p in zip(rank_classes(scores), probabilities, strict=True):
        best = ranking[:1]
        has = ranking[p[ranking] > LABEL_THRESHOLD] if is_multi_label else best
        labels = tuple(classes[i] for i in has)
        first = int(best[0])
        found.append(
            Prediction(classes[first], first, float(p[first]), labels, classes, p, ranking)
        )
    return found
