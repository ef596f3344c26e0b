"""Predictions as a table (CSV): a row for each picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from netdsl.inference import TOP_K, PicturePrediction

_MAX_CLASSES = 100
"""With more classes, a table of labels has no column for the probability of each."""
_SEPARATOR = ";"
"""Between the labels of a picture."""


def format_prediction_table(found: Sequence[PicturePrediction], classes: Sequence[str]) -> str:
    """The table of predictions, with the columns of `eval --predictions` as far as they are known:
    the predicted class and its probability, then the next most likely ones; of a net for several
    labels, those that a picture has, and of up to 100 classes the probability of each. The last
    column says why a file could not be used."""
    has_labels = any(p.labels is not None for p in found)
    shown = classes if len(classes) <= _MAX_CLASSES else ()
    ranks = range(2, min(TOP_K, len(classes)) + 1)
    ranked = ["predicted", "p", *(name for i in ranks for name in (f"predicted {i}", f"p {i}"))]
    columns = ["predicted", *(f"p({name})" for name in shown)] if has_labels else ranked
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns, "error"])
    for p in found:
        cells = list(_label_cells(p, shown) if has_labels else _ranked_cells(p))
        missing = [""] * (len(columns) - len(cells))
        error = p.error.diagnostics[0].message if p.error else ""
        writer.writerow([p.path, *cells, *missing, error])
    return text.getvalue()


def _ranked_cells(prediction: PicturePrediction) -> Iterator[str]:
    for name, probability in prediction.top:
        yield from (name, f"{probability:.6g}")


def _label_cells(prediction: PicturePrediction, classes: Sequence[str]) -> Iterator[str]:
    if prediction.labels is None:
        return
    yield _SEPARATOR.join(name for name, _ in prediction.labels)
    shares = dict(prediction.top)
    yield from (f"{shares[name]:.6g}" if name in shares else "" for name in classes)
