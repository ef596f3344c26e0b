"""Counts of predictions by class: precision, recall and F1 follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netdsl.data.memory_limits import make_limit_error, memory_limit
from netdsl.types import Array, format_bytes

_BYTES_PER_PAIR, _MEMORY_SHARE = 32, 4
"""What a pair of classes takes in a confusion matrix, also when it is printed; and the share of the
memory limit that a matrix may take."""


@dataclass(frozen=True)
class ClassCounts:
    """Counts for each class, int64 [classes]: the images that have it (`actual`), those for which
    it is predicted, and those for which it is predicted correctly. A quotient by zero is 0, as
    `zero_division=0` of scikit-learn says."""

    correct: Array
    predicted: Array
    actual: Array

    @property
    def precision(self) -> Array:
        """The share of the predictions of each class that are correct."""
        return _divide(self.correct, self.predicted)

    @property
    def recall(self) -> Array:
        """The share of the images of each class for which it is predicted."""
        return _divide(self.correct, self.actual)

    @property
    def f1(self) -> Array:
        """The harmonic mean of precision and recall."""
        return _divide(2 * self.correct, self.predicted + self.actual)

    def mean(self, values: Array) -> float:
        """The mean over the classes (macro) of one value for each. Classes that no image has and
        that are never predicted are left out, as scikit-learn does; 0 if these are all."""
        occurs = (self.predicted + self.actual) > 0
        return float(values[occurs].mean()) if occurs.any() else 0.0

    def __add__(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(
            self.correct + other.correct,
            self.predicted + other.predicted,
            self.actual + other.actual,
        )


def empty_counts(classes: int) -> ClassCounts:
    zeros = np.zeros(classes, np.int64)
    return ClassCounts(zeros, zeros, zeros)


def count_classes(labels: Array, predictions: Array, classes: int) -> ClassCounts:
    """The counts of images with one class each: `labels` and `predictions` are class numbers [N]. A
    negative prediction is none: the image counts as one that its class was not predicted for."""
    hits = labels[labels == predictions]
    found = (hits, predictions[predictions >= 0], labels)
    return ClassCounts(*(np.bincount(x, minlength=classes) for x in found))


def count_labels(indicators: Array, predictions: Array) -> ClassCounts:
    """The counts of images with several labels each: boolean [N, classes], true where an image has
    a label or is predicted to."""
    found = (indicators & predictions, predictions, indicators)
    return ClassCounts(*(x.sum(axis=0, dtype=np.int64) for x in found))


def _divide(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def can_count_pairs(classes: int) -> bool:
    """Whether a confusion matrix of so many classes fits into the memory that it may take."""
    return _BYTES_PER_PAIR * classes**2 <= memory_limit() // _MEMORY_SHARE


def check_matrix_memory(classes: int) -> None:
    """Raises NetError if it does not."""
    if not can_count_pairs(classes):
        size = _BYTES_PER_PAIR * classes**2
        raise make_limit_error(
            f"a confusion matrix of {classes:,} classes would take {format_bytes(size)} of memory",
            memory_limit() // _MEMORY_SHARE,
            size * _MEMORY_SHARE,
        )
