"""Files of an evaluation: the confusion matrix, and the prediction for each image."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netdsl.data.samples import Samples
from netdsl.errors import fail
from netdsl.file_io import AtomicFile, open_regular_file
from netdsl.inference import OnImagePredictions, name_images
from netdsl.training.run.tally import Predictions
from netdsl.training.store.output_files import check_outputs
from netdsl.types import Array

_MAX_CLASSES = 100
"""With more classes, a file of predictions has no column for the probability of each."""
_SEPARATOR = ";"
"""Between the labels of an image."""


_FIRST_HEADINGS = (b"true class,", b"image,class,predicted,p", b"image,labels,predicted")
"""How the files that are written here begin."""


def check_evaluation_files(outputs: Sequence[Path], weights: Path) -> None:
    """Raises NetError if an output cannot be written, or if it is a file that no evaluation has
    written, such as the table of the data set."""
    check_outputs(outputs, [weights])
    for out in outputs:
        if out.exists():
            with open_regular_file(out) as file:
                start = file.read(max(map(len, _FIRST_HEADINGS)))
            if start and not start.startswith(_FIRST_HEADINGS):
                message = f"{out} exists, and no evaluation has written it"
                raise fail(message, help="give another name; nothing was written")


def write_confusion(path: Path, classes: Sequence[str], confusion: Array) -> None:
    """Writes a confusion matrix as CSV: a row for each true class, a column for each predicted
    one."""
    with AtomicFile(path) as file:
        file.write(_format_rows([["true class", *classes]]))
        for name, row in zip(classes, confusion, strict=True):
            file.write(_format_rows([[name, *row.tolist()]]))


@contextmanager
def open_predictions(
    path: Path | None, classes: Sequence[str]
) -> Iterator[OnImagePredictions | None]:
    """Opens a file for the predictions of an evaluation; it is there once the block has ended
    without an error. Yields what to call with them, None without a path."""
    if path is None:
        yield None
    else:
        with AtomicFile(path) as file:
            yield PredictionsFile(file, classes).add


class PredictionsFile:
    """Writes predictions as CSV, with a row for each image: its path or number, its class, the
    predicted class and its probability, then of up to 100 classes the probability of each. Of
    several labels per image, those that it has and those that are predicted fill one cell each. An
    image with a score that is NaN has no prediction."""

    def __init__(self, file: AtomicFile, classes: Sequence[str]) -> None:
        self._file, self._classes = file, classes
        self._shown = classes if len(classes) <= _MAX_CLASSES else ()
        self._has_header = False

    def add(self, samples: Samples, found: Predictions) -> None:
        """Writes the rows of some of the samples, after the header if they are the first."""
        images = name_images(samples, found.numbers)
        is_multi_label = found.labels.ndim == 2
        if not self._has_header:
            headings = ["labels", "predicted"] if is_multi_label else ["class", "predicted", "p"]
            self._write([["image", *headings, *(f"p({c})" for c in self._shown)]])
            self._has_header = True
        describe = self._describe_labels if is_multi_label else self._describe_class
        self._write(
            [image, *describe(found, i), *map(_format_share, self._list_shares(found, i))]
            for i, image in enumerate(images)
        )

    def _write(self, rows: Iterable[Sequence[str]]) -> None:
        self._file.write(_format_rows(rows))

    def _list_shares(self, found: Predictions, i: int) -> list[float]:
        return found.probabilities[i, : len(self._shown)].tolist()

    def _describe_class(self, found: Predictions, i: int) -> list[str]:
        true, predicted = self._classes[found.labels[i]], int(found.predicted[i])
        if predicted < 0:
            return [true, "", ""]
        return [true, self._classes[predicted], _format_share(found.probabilities[i, predicted])]

    def _describe_labels(self, found: Predictions, i: int) -> list[str]:
        return [
            _SEPARATOR.join(c for c, has in zip(self._classes, row[i], strict=True) if has)
            for row in (found.labels, found.predicted)
        ]


def _format_share(share: float) -> str:
    return "" if share != share else f"{share:.6g}"


def _format_rows(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")
