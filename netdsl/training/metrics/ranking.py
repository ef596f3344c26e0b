"""Areas under curves over all thresholds of the scores: ROC AUC and average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netdsl.data.memory_limits import make_limit_error, memory_limit
from netdsl.types import Array, format_bytes


@dataclass(frozen=True)
class Ranking:
    """For each class, against the rest: the area under the receiver operating characteristic, and
    the average precision; float64 [classes], NaN where undefined."""

    roc_auc: Array
    average_precision: Array


def rank_scores(is_member: Array, scores: Array) -> Ranking:
    """The areas for scores [N, classes] and the images that have each class, boolean [N, classes].

    Undefined are both areas of a class that no image has or for which a score is NaN, and the AUC
    of a class that all images have."""
    areas = [_compute_areas(y, x) for y, x in zip(is_member.T, scores.T, strict=True)]
    roc_auc, average_precision = np.array(areas, np.float64).reshape(-1, 2).T
    return Ranking(roc_auc, average_precision)


def _compute_areas(is_member: Array, scores: Array) -> tuple[float, float]:
    """ROC AUC by trapezoids, so that a tie counts half (Fawcett 2006), and average precision: the
    sum of the precision at each threshold times the recall that it adds, without interpolation."""
    positives = int(is_member.sum())
    negatives = len(is_member) - positives
    if not positives or np.isnan(scores).any():
        return np.nan, np.nan
    order = np.argsort(-scores)
    ordered = scores[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)  # of the images with the same score
    seen = np.flatnonzero(is_last) + 1
    hits = np.cumsum(is_member[order])[is_last]
    new_hits, new_misses = np.diff(hits, prepend=0), np.diff(seen - hits, prepend=0)
    average_precision = (new_hits * (hits / seen)).sum() / positives
    if not negatives:
        return np.nan, float(average_precision)
    twice_area = (new_misses * (2 * hits - new_hits)).sum()
    return float(twice_area / (2 * positives * negatives)), float(average_precision)


_BYTES_PER_SCORE, _MEMORY_SHARE = 4, 4


def score_limit() -> int:
    """Bytes that all scores of a set may take: a quarter of the memory limit."""
    return memory_limit() // _MEMORY_SHARE


def can_keep_scores(images: int, classes: int) -> bool:
    """Whether the scores of that many images fit into the memory that they may take."""
    return _BYTES_PER_SCORE * images * classes <= score_limit()


def check_score_memory(images: int, classes: int) -> None:
    """Raises NetError if they do not."""
    if not can_keep_scores(images, classes):
        size = _BYTES_PER_SCORE * images * classes
        raise make_limit_error(
            f"the scores of {images:,} images for {classes:,} classes would take "
            f"{format_bytes(size)} of memory",
            score_limit(),
            size * _MEMORY_SHARE,
        )
