"""Adds up what an evaluation measures, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import reduce
from itertools import chain

import numpy as np

from netdsl.errors import fail
from netdsl.ops.loss import predict_classes
from netdsl.ranks.array_message import pack_arrays, unpack_arrays
from netdsl.ranks.communicator import Communicator
from netdsl.training.metrics.class_counts import (
    ClassCounts,
    count_classes,
    count_labels,
    empty_counts,
)
from netdsl.training.metrics.ranking import rank_scores
from netdsl.training.metrics.table import Score
from netdsl.training.recipe.targets import LABEL_THRESHOLD
from netdsl.types import Array


@dataclass(frozen=True)
class Predictions:
    """What is predicted for some images, which are counted from 0 in `numbers` [N]: `labels` int32
    [N] and `predicted` int32 [N] (-1 if a score is NaN), or of several labels per image both bool
    [N, classes]; `probabilities` float32 [N, classes]."""

    numbers: Array
    labels: Array
    predicted: Array
    probabilities: Array


OnPredictions = Callable[[Predictions], None]


class Tally:
    """The sums of an evaluation over images of `classes` classes; with `is_multi_label` over images
    of several labels each. Images of weight 0 are not counted.

    An image one of whose scores is NaN has no predicted class, and a label whose probability is NaN
    is not predicted. With `keeps_scores`, the probabilities of all images are kept for the metrics
    that need them. With `has_matrix`, `confusion[i, j]` counts the images of class i predicted as
    j. `on_predictions` is called with the predictions of every batch.
    """

    def __init__(
        self,
        classes: int,
        is_multi_label: bool = False,
        keeps_scores: bool = False,
        has_matrix: bool = False,
        on_predictions: OnPredictions | None = None,
    ) -> None:
        self.classes, self.is_multi_label = classes, is_multi_label
        self.keeps_scores = keeps_scores
        self.confusion = np.zeros((classes, classes), np.int64) if has_matrix else None
        self.on_predictions, self._added = on_predictions, 0
        self._sums = dict.fromkeys(("loss", "top1", "top5", "count"), 0.0)
        self._counts = empty_counts(classes)
        self._labels: list[Array] = []
        self._probabilities: list[Array] = []

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs of the evaluation of a batch that `add` reads."""
        if self.is_multi_label:
            return ("loss", "top1", "count", "probabilities")
        is_read = self.keeps_scores or self.on_predictions is not None
        kept = ("probabilities",) if is_read else ()
        return (*self._sums, "scores", *kept)

    def add(self, labels: Array, weights: Array, outputs: Mapping[str, Array]) -> None:
        """Adds a batch: its labels, int32 [N] or indicators [N, classes], its weights [N], each 0
        or 1, and the outputs of its evaluation."""
        for key in self._sums:
            self._sums[key] += float(outputs[key]) if key in outputs else 0.0
        is_counted = weights > 0
        labels = labels[is_counted]
        if self.is_multi_label:
            labels = labels > 0
            predicted = outputs["probabilities"][is_counted] > LABEL_THRESHOLD
            self._counts += count_labels(labels, predicted)
        else:
            predicted = predict_classes(outputs["scores"][is_counted])
            self._add_classes(labels, predicted)
        numbers = self._added + np.flatnonzero(is_counted)
        self._added += len(weights)
        if self.keeps_scores:
            self._labels.append(labels)
            self._probabilities.append(outputs["probabilities"][is_counted])
        if self.on_predictions is not None:
            shares = outputs["probabilities"][is_counted]
            self.on_predictions(Predictions(numbers, labels, predicted, shares))

    def _add_classes(self, labels: Array, predicted: Array) -> None:
        self._counts += count_classes(labels, predicted, self.classes)
        if self.confusion is not None:
            is_known = predicted >= 0
            np.add.at(self.confusion, (labels[is_known], predicted[is_known]), 1)

    def pack(self) -> bytes:
        """Everything but `on_predictions` as bytes, for `merge`."""
        arrays = {
            "sums": np.array(list(self._sums.values()), np.float64),
            "counts": np.stack(astuple(self._counts)),
        }
        if self.confusion is not None:
            arrays["confusion"] = self.confusion
        if self._labels:
            arrays["sizes"] = np.array([len(x) for x in self._labels])
            arrays["labels"] = np.concatenate(self._labels)
            arrays["probabilities"] = np.concatenate(self._probabilities)
        return pack_arrays(arrays)

    def merge(self, parts: Sequence[bytes]) -> Tally:
        """The tally of all images, if batch k of them was added to the tally k % n of n, given as
        `parts`."""
        tallies = [unpack_arrays(part) for part in parts]
        whole = Tally(self.classes, self.is_multi_label, self.keeps_scores)
        whole._sums = dict(zip(self._sums, _sum(tallies, "sums").tolist(), strict=True))
        whole._counts = ClassCounts(*_sum(tallies, "counts"))
        if self.confusion is not None:
            whole.confusion = _sum(tallies, "confusion")
        if self._labels:
            whole._labels = _interleave(tallies, "labels")
            whole._probabilities = _interleave(tallies, "probabilities")
        return whole

    def score(self) -> Score:
        """The result. Raises NetError if every image was skipped."""
        n = self._sums["count"]
        if not n:
            raise fail("none of the images to evaluate on can be used")
        loss, top1, top5 = (self._sums[key] / n for key in ("loss", "top1", "top5"))
        ranking = None
        if self.keeps_scores:
            labels, probabilities = map(np.concatenate, (self._labels, self._probabilities))
            if not self.is_multi_label:
                labels = labels[:, None] == np.arange(self.classes)
            ranking = rank_scores(labels > 0, probabilities)
        return Score(
            loss, top1, None if self.is_multi_label else top5, int(n), self._counts, ranking
        )


def _sum(tallies: Sequence[Mapping[str, Array]], name: str) -> Array:
    """The sum in the order of the ranks."""
    return reduce(np.add, (part[name] for part in tallies))


def _interleave(tallies: Sequence[Mapping[str, Array]], name: str) -> list[Array]:
    """The arrays of batches in their order, of which each tally has every n-th."""
    batches = [np.split(part[name], np.cumsum(part["sizes"])[:-1]) for part in tallies]
    return list(chain.from_iterable(zip(*batches, strict=True)))


def merge_tallies(communicator: Communicator, tally: Tally) -> Tally:
    """The tally of the images of all ranks, the same on each of them. Their batches are those of
    `evaluation_batches`."""
    return tally if communicator.is_alone else tally.merge(communicator.all_gather(tally.pack()))
