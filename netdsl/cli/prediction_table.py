"""Predictions as a table (CSV): a row for each picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from netdsl.inference import TOP_K, PicturePrediction

LABEL_SEPARATOR = "|"
"""What separates the labels in a cell, as in the tables that `csv(...)` reads."""


def format_prediction_table(found: Sequence[PicturePrediction], classes: Sequence[str]) -> str:
    """The table of predictions: with one class a picture, the most likely classes and their
    probabilities; with several labels, those and the probability of each class. The last column
    says why a file could not be used."""
    has_labels = any(p.labels is not None for p in found)
    ranks = range(1, min(TOP_K, len(classes)) + 1)
    ranked = [name for i in ranks for name in (f"class_{i}", f"probability_{i}")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(("labels", *classes) if has_labels else ranked), "error"])
    for p in found:
        cells = list(_label_cells(p, classes) if has_labels else _ranked_cells(p))
        missing = (1 + len(classes) if has_labels else len(ranked)) - len(cells)
        error = p.error.diagnostics[0].message if p.error else ""
        writer.writerow([p.path, *cells, *[""] * missing, error])
    return text.getvalue()


def _ranked_cells(prediction: PicturePrediction) -> Iterator[str]:
    for name, probability in prediction.top:
        yield from (name, f"{probability:.6g}")


def _label_cells(prediction: PicturePrediction, classes: Sequence[str]) -> Iterator[str]:
    if prediction.labels is None:
        return
    yield LABEL_SEPARATOR.join(name for name, _ in prediction.labels)
    shares = dict(prediction.top)
    yield from (f"{shares[name]:.6g}" if name in shares else "" for name in classes)
