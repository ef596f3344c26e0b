"""The worst mistakes of an evaluation: the images with the largest loss that are misclassified."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.backends.lazy_batch import materialize
from netdsl.data.pictures import Pictures, read_picture, shrink_picture
from netdsl.data.samples import Samples
from netdsl.insight.image_grid import scale_to_range
from netdsl.training.run.tally import Predictions
from netdsl.types import Array

MAX_SIDE = 112
"""The most pixels per side of a picture of a mistake; a smaller image keeps its size."""
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Mistake:
    """A misclassified image, `image` being its path below the folder of the data set, or its number
    counted from 0. `loss` is the cross-entropy of its probabilities, in nats; of several
    labels per image, the mean over them. `shares` are the probabilities of the predicted classes
    and `true_shares` those of its own. `picture` holds bytes [H,W,1 or 3]; None if the image cannot
    be drawn."""

    image: str
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    true_shares: tuple[float, ...]
    shares: tuple[float, ...]
    loss: float
    picture: Array | None

    def as_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "true": list(self.true),
            "predicted": list(self.predicted),
            "true_probabilities": list(self.true_shares),
            "predicted_probabilities": list(self.shares),
            "loss": self.loss,
        }


@dataclass(frozen=True)
class _WrongImage:
    number: int
    labels: Array
    predicted: Array
    probabilities: Array
    loss: float


class MistakeCollector:
    """Keeps the `count` worst mistakes of an evaluation; `add` takes the predictions of a batch."""

    def __init__(self, classes: Sequence[str], count: int) -> None:
        self.classes, self.count = classes, count
        self._samples: Samples | None = None
        self._worst: list[_WrongImage] = []

    def add(self, samples: Samples, found: Predictions) -> None:
        """Adds what is predicted for some of the samples."""
        self._samples = samples
        losses = compute_losses(found)
        wrong = found.labels != found.predicted
        rows = np.flatnonzero(wrong if wrong.ndim == 1 else wrong.any(axis=1))
        rows = rows[np.argsort(-losses[rows], kind="stable")][: self.count]
        new = (
            _WrongImage(
                int(found.numbers[i]),
                found.labels[i],
                found.predicted[i],
                found.probabilities[i],
                float(losses[i]),
            )
            for i in rows
        )
        self._worst = heapq.nlargest(self.count, [*self._worst, *new], key=lambda c: c.loss)

    def mistakes(self) -> list[Mistake]:
        """The mistakes, the one with the largest loss first."""
        samples = self._samples
        return [] if samples is None else [self._describe(samples, c) for c in self._worst]

    def _describe(self, samples: Samples, found: _WrongImage) -> Mistake:
        true, predicted = _list_classes(found.labels), _list_classes(found.predicted)
        index = np.array([found.number])
        return Mistake(
            image=_name_image(samples, found.number),
            true=tuple(self.classes[i] for i in true),
            predicted=tuple(self.classes[i] for i in predicted),
            true_shares=tuple(map(float, found.probabilities[true])),
            shares=tuple(map(float, found.probabilities[predicted])),
            loss=found.loss,
            picture=_draw_image(samples, index),
        )


def _list_classes(found: Array) -> list[int]:
    """The classes of an image: those whose indicator is set, or the one of this number; none if it
    is negative."""
    if found.ndim:
        return list(map(int, np.flatnonzero(found)))
    return [int(found)] if found >= 0 else []


def compute_losses(found: Predictions) -> Array:
    """The cross-entropy of each image [N], in nats; infinite where a probability is NaN."""
    shares = np.clip(found.probabilities.astype(np.float64), _LEAST, 1)
    if found.labels.ndim == 1:
        losses = -np.log(shares[np.arange(len(shares)), found.labels])
    else:
        likely = np.where(found.labels, shares, np.clip(1 - shares, _LEAST, 1))
        losses = -np.log(likely).mean(axis=1)
    return np.where(np.isnan(losses), np.inf, losses)


def _name_image(samples: Samples, number: int) -> str:
    """The path of a picture below the folder of its data set, or the number of another image."""
    images = samples.images
    return str(images.names[number]) if isinstance(images, Pictures) else str(number)


def _draw_image(samples: Samples, index: Array) -> Array | None:
    """One of the images as bytes, at most MAX_SIDE pixels per side; None if it is a vector, or does
    not have one or three channels."""
    if isinstance(samples.images, Pictures):
        return shrink_picture(read_picture(samples.images[index].paths[0], 3), MAX_SIDE)
    image = np.asarray(materialize(samples.images[index]))[0]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        return None
    pixels = image if image.dtype == np.uint8 else scale_to_range(image[None])[0]
    return shrink_picture(pixels, MAX_SIDE)
