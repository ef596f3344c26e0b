"""Callbacks of a run, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.training.metrics.table import METRIC_NAMES, METRICS, format_metric
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.run.phase import OnPhase, ignore_phase
from netdsl.training.store.progress import Progress, best_metric


@dataclass(frozen=True)
class StepReport:
    """The state of a run after an update: `step` of `steps` in the epoch, and the mean loss so
    far."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    images_per_second: float

    @property
    def completed_steps(self) -> int:
        """The updates of the run so far."""
        return self.epoch * self.steps + self.step


OnStep = Callable[[StepReport], None]
OnEpoch = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Callbacks:
    """`on_step` is called after every update, `on_epoch` with every epoch's metrics, `should_stop`
    before every batch, `log` with messages about damaged files, and `on_phase` when the run starts
    to do something else than updates. If `on_epoch` returns True, the epoch is the last one."""

    on_step: OnStep
    on_epoch: OnEpoch
    should_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda words: None
    on_phase: OnPhase = ignore_phase


@dataclass(frozen=True)
class Result:
    """A finished run: the metrics of its best epoch and of the test, and its best checkpoint."""

    metrics: dict[str, Any]
    checkpoint: Path


class StopRequested(Exception):
    """`should_stop` returned True."""


def format_epoch(m: Mapping[str, Any], recipe: Recipe) -> str:
    """The metrics of an epoch as a line: loss and accuracy, and what `best` goes by, if they were
    measured. An epoch whose updates were all made before the run was resumed has no images a
    second."""
    line = f"epoch {m['epoch']}/{recipe.epochs}  loss {m['train_loss']:.4f}"
    line += f"  accuracy {format_metric(m['train_accuracy'], METRICS['accuracy'])}"
    names = ["val_loss", "val_accuracy"] if m["val_accuracy"] is not None else []
    shown = {name: METRIC_NAMES[name] for name in names}
    if recipe.best is not None and names:
        shown[str(recipe.best.metric)] = recipe.best.metric
    for name, known in shown.items():
        line += f"  {known.title} {format_metric(m[name], known.metric)}"
    if m.get("skipped"):
        line += f"  {m['skipped']:,} steps skipped"
    if m["images_per_second"] is not None:
        line += f"  {m['images_per_second']:,.0f} images/s"
    return f"{line}  {m['seconds']:.1f} s"


def format_end(progress: Progress, recipe: Recipe) -> str:
    """Which epoch of a finished run is the best one by what, and why it ended early, if it did."""
    best, epoch = progress.best_epoch(recipe.best), progress.epoch
    metrics = progress.history[best - 1]
    name = best_metric(metrics, recipe.best)
    known = METRIC_NAMES[name] if recipe.best is None else recipe.best.metric
    value = metrics[name] if recipe.best is None else recipe.best.value(metrics)
    line = f"best epoch {best}: {name} {format_metric(value, known.metric)}"
    if epoch >= recipe.epochs:
        return line
    line += f"; the run ended after {epoch} of {recipe.epochs} epochs"
    if progress.is_finished(recipe):
        waited = progress.count_waited(recipe.best)
        what = f"{waited}" if waited == epoch - best else f"{waited} validated ones"
        line += f": {what} without a better one (patience = {recipe.patience})"
    return line
