"""The table of metrics: what each is, where it is measured, and whether it has a value by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netdsl.text_escaping import escape_line
from netdsl.training.metrics.class_counts import ClassCounts
from netdsl.training.metrics.ranking import Ranking
from netdsl.types import Array
from netdsl.values import format_value


@dataclass(frozen=True)
class Score:
    """What is measured on a set of images: means over them, and counts by class. `top5` is None for
    images with several labels; `ranking` is None unless all scores were kept."""

    loss: float
    accuracy: float
    top5: float | None
    images: int
    counts: ClassCounts
    ranking: Ranking | None = None


@dataclass(frozen=True)
class Metric:
    """One metric: `measure` returns its value, None where it is undefined. `measure_classes`
    returns one value for each class, [classes], NaN where undefined; the metric is then their mean
    (macro). It is measured on the images of `parts`. If it `needs_scores`, it needs the scores of
    all images, which are kept only where it is asked for."""

    name: str
    doc: str
    measure: Callable[[Score], float | None]
    measure_classes: Callable[[Score], Array | None] | None = None
    parts: tuple[str, ...] = ("val", "test")
    is_share: bool = True
    is_lower_better: bool = False
    needs_scores: bool = False
    needs_one_label: bool = False

    @property
    def title(self) -> str:
        """The name in running text."""
        return _TITLES.get(self.name, self.name.replace("_", " "))


_TITLES = {"f1": "F1", "roc_auc": "ROC AUC", "top5": "top-5"}
_ALL_PARTS = ("train", "val", "test")


def _count_metric(name: str, doc: str, values: Callable[[ClassCounts], Array]) -> Metric:
    return Metric(name, doc, lambda s: s.counts.mean(values(s.counts)), lambda s: values(s.counts))


def _rank_metric(name: str, doc: str, values: Callable[[Ranking], Array]) -> Metric:
    def measure_classes(score: Score) -> Array | None:
        return None if score.ranking is None else values(score.ranking)

    def measure(score: Score) -> float | None:
        found = measure_classes(score)
        if found is None or np.isnan(found).all():
            return None
        return float(np.nanmean(found))

    return Metric(name, doc, measure, measure_classes, needs_scores=True)


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "loss",
            "the loss of the recipe",
            lambda s: s.loss,
            parts=_ALL_PARTS,
            is_share=False,
            is_lower_better=True,
        ),
        Metric(
            "accuracy",
            "share of the images whose class is the most likely one; for images with several "
            "labels, share of the images whose labels are all right",
            lambda s: s.accuracy,
            parts=_ALL_PARTS,
        ),
        Metric(
            "top5",
            "share of the images whose class is among the five most likely ones",
            lambda s: s.top5,
            needs_one_label=True,
        ),
        _count_metric(
            "precision",
            "share of the images predicted to be of a class that really are",
            lambda c: c.precision,
        ),
        _count_metric(
            "recall",
            "share of the images of a class that are predicted as this class; its mean is the "
            "balanced accuracy",
            lambda c: c.recall,
        ),
        _count_metric("f1", "harmonic mean of precision and recall", lambda c: c.f1),
        _rank_metric(
            "roc_auc",
            "area under the ROC curve: how often an image of a class gets a larger probability "
            "for it than an image of another class",
            lambda r: r.roc_auc,
        ),
        _rank_metric(
            "average_precision",
            "mean of the precision over all thresholds, weighted by the recall that each one "
            "adds; its mean is known as mAP",
            lambda r: r.average_precision,
        ),
    )
}


def format_metric(value: float | None, metric: Metric) -> str:
    """The value for people: a share in per cent; `-` if it is undefined."""
    if value is None:
        return "-"
    return f"{value:.2%}" if metric.is_share else f"{value:.4f}"


@dataclass(frozen=True)
class MetricName:
    """A metric of the training, validation or test images, of all classes or of one:
    `val_recall("ants")`. As a text, it is its key among the metrics of an epoch."""

    part: str
    metric: Metric
    class_name: str | None = None

    @property
    def plain(self) -> str:
        """The name without a class."""
        return f"{self.part}_{self.metric.name}"

    @property
    def title(self) -> str:
        """The name in running text."""
        of_class = "" if self.class_name is None else f" of {escape_line(self.class_name)}"
        return f"{self.part} {self.metric.title}{of_class}"

    def __str__(self) -> str:
        by_class = "" if self.class_name is None else f"({format_value(self.class_name)})"
        return f"{self.plain}{by_class}"

    def measure(self, score: Score, classes: Sequence[str]) -> float | None:
        """Its value in a score of images of these classes; None if it is undefined."""
        if self.class_name is None:
            value = self.metric.measure(score)
        else:
            assert self.metric.measure_classes is not None
            values = self.metric.measure_classes(score)
            value = None if values is None else float(values[classes.index(self.class_name)])
        return None if value is None or math.isnan(value) else value


METRIC_NAMES: Mapping[str, MetricName] = {
    name.plain: name
    for part in _ALL_PARTS
    for name in (MetricName(part, m) for m in METRICS.values() if part in m.parts)
}
"""All metrics by their names without a class."""


def measured_names(part: str, requested: Iterable[MetricName]) -> tuple[MetricName, ...]:
    """The metrics that a run measures on images of a part: those that need no scores, and the
    requested ones."""
    always = [n for n in METRIC_NAMES.values() if not n.metric.needs_scores]
    return tuple(n for n in dict.fromkeys([*always, *requested]) if n.part == part)
