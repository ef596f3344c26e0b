"""The progress of a run: everything besides the weights that determines the next step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from netdsl.errors import fail
from netdsl.training.recipe.best import Criterion
from netdsl.training.recipe.intervals import Mark
from netdsl.training.recipe.rate_rules import rate_scale
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.recipe.schedules import Moment, rate_factor
from netdsl.training.store.checkpoint import Checkpoint

TIMING_METRICS = ("seconds", "images_per_second")
"""Metrics that differ from run to run; checkpoints do not store them."""


@dataclass(frozen=True)
class Progress:
    """`epoch` counts finished epochs, `seen` the images of the current one, `step` the batches and
    `update` the updates of the whole run. `loss`, `hits` and `batches` are sums over the current
    epoch. `lines` is the length of metrics.jsonl, `history` holds the metrics of every finished
    epoch, and `changes` notes what was changed when the run was resumed."""

    epoch: int = 0
    seen: int = 0
    step: int = 0
    update: int = 0
    loss: float = 0.0
    hits: float = 0.0
    batches: int = 0
    lines: int = 0
    history: tuple[Mapping[str, Any], ...] = ()
    changes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))  # no copy of the history, which grows with the run

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Progress:
        """Raises ValueError if the values, each of the right type, are missing or inconsistent."""
        missing = [f.name for f in fields(Progress) if f.name not in values]
        if missing:
            raise ValueError(f"`{missing[0]}` of its progress is missing")
        given = {f.name: values[f.name] for f in fields(Progress)}
        s = Progress(**given | {k: tuple(given[k]) for k in ("history", "changes")})
        numbers = [m.get("epoch", i) for i, m in enumerate(s.history, 1)]
        if numbers != list(range(1, s.epoch + 1)):
            raise ValueError("its history does not match its epochs")
        if any(m.get("train_loss") is None for m in s.history):
            raise ValueError("its history has an epoch without a loss")
        if not s.batches <= s.step >= s.update >= s.epoch:
            raise ValueError("its steps do not match its updates and epochs")
        if s.seen == 0 and (s.batches or s.loss or s.hits):
            raise ValueError("it has a loss but has seen no images")
        return s

    def advance(self, images: int, batches: int) -> Progress:
        """The progress after one more update."""
        step = self.step + batches
        return replace(self, seen=self.seen + images, step=step, update=self.update + 1)

    def add_batch(self, loss: float, hit: float) -> Progress:
        """The progress with the results of the next batch added. A non-finite loss belongs to a
        skipped step and is not counted."""
        if not math.isfinite(loss):
            return self
        batches = self.batches + 1
        return replace(self, loss=self.loss + loss, hits=self.hits + hit, batches=batches)

    def finish_epoch(self, metrics: Mapping[str, Any]) -> Progress:
        """The progress after the current epoch, which ended with these metrics."""
        kept = {k: v for k, v in metrics.items() if k not in TIMING_METRICS}
        return Progress(
            epoch=self.epoch + 1,
            step=self.step,
            update=self.update,
            history=(*self.history, kept),
            changes=self.changes,
        )

    def best_epoch(self, best: Criterion | None) -> int:
        """The number of the best epoch so far by a recipe's `best`, counted from 1; 0 before the
        first."""
        ranked = [(quality(self.history[i], best), i) for i in find_candidates(self.history)]
        return max(ranked, key=lambda x: x[0])[1] + 1 if ranked else 0

    def count_waited(self, best: Criterion | None) -> int:
        """The number of candidates after the best epoch."""
        first = self.best_epoch(best)
        return sum(i >= first for i in find_candidates(self.history))

    def is_finished(self, recipe: Recipe) -> bool:
        """Whether all epochs are done, or none improved for `patience` candidates."""
        waited = self.count_waited(recipe.best)
        return self.epoch >= recipe.epochs or (
            recipe.patience is not None and waited >= recipe.patience
        )

    def setting_to_continue(self, recipe: Recipe) -> str:
        """The setting that continues a finished run."""
        return "train.epochs=N" if self.epoch >= recipe.epochs else "train.patience=none"

    def learning_rate(self, recipe: Recipe, steps: int) -> float:
        """The learning rate of the next update; `steps` is the number of updates per epoch."""
        share = min(1.0, self.seen / (steps * recipe.images_per_update))
        past = self.history if recipe.schedule.record.needs_losses else ()
        losses = [selection_loss(past[i]) for i in find_candidates(past)]
        moment = Moment(self.epoch + share, recipe.epochs, steps, losses)
        rate: float = recipe.optimizer.arguments["lr"]
        rate *= rate_scale(recipe.lr_rule, recipe.images_per_update, moment)
        return rate * rate_factor(recipe.schedule, moment)

    @property
    def mark(self) -> Mark:
        """Where the run is now."""
        return Mark(self.epoch, self.update, time.monotonic())

    @property
    def epoch_mark(self) -> Mark:
        """Where the current epoch began, at the clock's time now."""
        update = self.history[-1].get("step", 0) if self.history else 0
        return Mark(self.epoch, update, time.monotonic())

    def ema_rate(self, decay: float) -> float:
        """The rate at which the average of the weights moves towards them: 1 at first."""
        return 1 - min(decay, self.update / (9 + self.update))


def load_progress(saved: Checkpoint) -> Progress:
    """The progress of a checkpoint's run. Raises NetError if it is invalid."""
    try:
        return Progress.from_json(saved.progress)
    except ValueError as e:
        raise fail(f"{saved.origin} cannot be resumed: {e}") from None


def find_candidates(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """The indices of the epochs that can be the best one: those that were validated, or all if
    there is no validation set. The first epoch is always validated, so its metrics tell."""
    validated = [i for i, m in enumerate(history) if m.get("val_loss") is not None]
    return validated or list(range(len(history)))


def quality(metrics: Mapping[str, Any], best: Criterion | None) -> tuple[float, float]:
    """The sort key of the best checkpoint: the metric of `best`, then loss. Without `best`, it is
    the validation accuracy, or the training loss alone if there is no validation set."""
    if best is not None:
        return best.rank(metrics), -selection_loss(metrics)
    if metrics.get("val_accuracy") is None:
        return 0.0, -selection_loss(metrics)
    return metrics["val_accuracy"], -selection_loss(metrics)


def best_metric(metrics: Mapping[str, Any], best: Criterion | None) -> str:
    """The name of the metric that `quality` compares first."""
    if best is not None:
        return str(best.metric)
    return "train_loss" if metrics.get("val_accuracy") is None else "val_accuracy"


def selection_loss(metrics: Mapping[str, Any]) -> float:
    """The loss by which epochs are compared."""
    value = metrics.get("val_loss")
    loss = metrics["train_loss"] if value is None else value
    return math.inf if loss is None or not math.isfinite(loss) else float(loss)
