"""Writes the metrics of a run as event files for TensorBoard, with the writer of tensorboardX."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from netdsl.errors import fail
from netdsl.file_io import read_regular_file
from netdsl.limits import MAX_FILE_BYTES
from netdsl.optional_imports import import_optional
from netdsl.training.metrics.table import METRIC_NAMES
from netdsl.training.step.watch import WATCHABLE
from netdsl.training.store.metrics_log import MetricsReader, is_number
from netdsl.training.store.run_directory import RUN_FILES

RECIPE_FILE, METRICS_FILE = RUN_FILES[:2]
FOLDER = "tensorboard"
"""The folder of a run for its event files, unless another is given."""
_FILES = "events.out.tfevents.*"
_COUNTERS = ("epoch", "step", "watched_at", "best_epoch", "test_images")

Scalar = tuple[int, str, float]
"""A step (update), a tag and a value."""


class EventLog:
    """Copies the lines of a run's metrics.jsonl that are new to an event file. Each session of a
    run writes a file of its own, which begins by taking back all events of those before and then
    repeats what metrics.jsonl has, so that a resumed run has neither gaps nor duplicates."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run = run
        self.folder = folder.resolve()  # never a URL, which the writer would upload to
        self._reader = MetricsReader(run / METRICS_FILE)
        self._last_step = 0
        self._file: _EventFile | None = None

    def update(self) -> None:
        """Writes what is new. Raises NetError if tensorboardX is missing, and OSError if the file
        cannot be written."""
        if self._file is None:
            if not (self.run / RECIPE_FILE).is_file():
                return  # the run has not started
            self._file = _EventFile(self.folder)
            self._file.restart(_read_recipe(self.run))
        for row in self._reader.read():
            for step, tag, value in read_scalars(row, self._last_step):
                self._file.add_scalar(step, tag, value)
                self._last_step = max(self._last_step, step)
        self._file.flush()

    def close(self) -> None:
        """Writes what is new, and ends the file."""
        self.update()
        if self._file is not None:
            self._file.close()


class _EventFile:
    """A new event file in a folder."""

    def __init__(self, folder: Path) -> None:
        events, self._proto, self._summary = import_tensorboardx()
        folder.mkdir(parents=True, exist_ok=True)
        number = len([*folder.glob(_FILES)])
        self._writer = events.EventsWriter(str(folder / "events"), f".{number:06}")
        self.flush = self._writer.flush
        self.close = self._writer.close

    def restart(self, recipe: str) -> None:
        """Takes back all events of earlier files, and writes the text of the recipe."""
        started = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(0, file_version="brain.Event:2")  # of which this means that
        self._write(0, session_log=started)
        self._write(0, summary=self._summary.text("recipe", recipe))

    def add_scalar(self, step: int, tag: str, value: float) -> None:
        summary = self._summary.Summary
        self._write(step, summary=summary(value=[summary.Value(tag=tag, simple_value=value)]))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._proto.Event(step=step, wall_time=time.time(), **content))


def _read_recipe(run: Path) -> str:
    """A run's recipe.net as Markdown."""
    text = read_regular_file(run / RECIPE_FILE, MAX_FILE_BYTES).decode(errors="replace")
    return "".join(f"    {line}\n" for line in text.splitlines())


def import_tensorboardx() -> tuple[Any, Any, Any]:
    """The modules of tensorboardX that write events. Raises NetError if it is not installed."""
    what = "`--tensorboard` needs tensorboardX"
    help = "install it with `pip install 'netdsl[tensorboard]'`"
    names = ("event_file_writer", "proto.event_pb2", "summary")
    events, proto, summary = (import_optional(f"tensorboardX.{x}", what, help) for x in names)
    return events, proto, summary


def check_unused(folder: Path) -> None:
    """Raises NetError if a folder contains the event files of another run."""
    if any(folder.glob(_FILES)):
        help = "give each run its own folder"
        raise fail(f"{folder} already contains the event files of a run", help=help)


def read_scalars(row: Mapping[str, Any], last_step: int) -> Iterator[Scalar]:
    """The scalars of a line of metrics.jsonl: `loss/val`, `lr`, `gradients_norm/WEIGHT`, and those
    of the test set at the last step."""
    step = row.get("watched_at", row.get("step", last_step))
    for name, value in row.items():
        if name in WATCHABLE and isinstance(value, dict):
            for path, moments in value.items():
                for moment, number in moments.items():
                    if is_number(number):
                        yield step, f"{name}_{moment}/{path}", float(number)
        elif name not in _COUNTERS and is_number(value):
            yield step, make_tag(name), float(value)


def make_tag(column: str) -> str:
    """The tag of a column: `loss/val` for `val_loss`, so that TensorBoard groups the losses."""
    if column.partition("(")[0] not in METRIC_NAMES:
        return f"run/{column}"
    part, _, metric = column.partition("_")
    return f"{metric}/{part}"
