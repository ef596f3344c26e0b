"""The confusion matrix as shaded cells; of many classes, only those that fail most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.inference import ClassResult, EvaluationReport

MAX_CLASSES = 25
"""With more classes, there is no matrix, and only the worst classes and pairs are shown."""
MAX_PAIRS, MAX_WORST = 10, 40
LEVELS = 8
"""The number of shades; level 0 has none."""


@dataclass(frozen=True)
class Cell:
    """The images of a row's class that are predicted as a column's; `level`, from 0 to LEVELS, is
    their share of the row, rounded up."""

    count: int
    level: int
    is_correct: bool


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that are predicted as another, and their share of the class."""

    true: str
    predicted: str
    count: int
    share: float


def make_cells(report: EvaluationReport) -> list[tuple[str, list[Cell]]] | None:
    """A row of cells for each class; None if there is no matrix, or too many classes for one."""
    matrix = report.confusion
    if matrix is None or len(report.classes) > MAX_CLASSES:
        return None
    return [
        (name, [_make_cell(int(n), int(row.sum()), i == j) for j, n in enumerate(row)])
        for i, (name, row) in enumerate(zip(report.classes, matrix, strict=True))
    ]


def _make_cell(count: int, total: int, is_correct: bool) -> Cell:
    return Cell(count, math.ceil(LEVELS * count / total) if count else 0, is_correct)


def find_pairs(report: EvaluationReport) -> Sequence[ConfusedPair]:
    """The pairs of classes that are confused most often."""
    images = {r.name: r.images for r in report.class_results()}
    return [
        ConfusedPair(true, predicted, count, count / images[true])
        for true, predicted, count in report.confused_pairs()[:MAX_PAIRS]
    ]


def list_classes(report: EvaluationReport) -> Sequence[ClassResult]:
    """The classes in their order; of many, those with the lowest F1 that have images."""
    results = report.class_results()
    if len(results) <= MAX_WORST:
        return results
    present = [r for r in results if r.images]
    return sorted(present, key=lambda r: r.metrics["f1"] or 0)[:MAX_WORST]
