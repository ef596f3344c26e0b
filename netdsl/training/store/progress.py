"""Where a run stands: everything that the next step depends on besides the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from netdsl.errors import fail
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.recipe.schedules import Moment, rate_factor
from netdsl.training.store.checkpoint import Checkpoint

TIMING_METRICS = ("seconds", "images_per_second")
"""Metrics that differ from run to run; weights do not carry them."""


@dataclass(frozen=True)
class Progress:
    """`epoch` counts finished epochs, `seen` the images of the one under way, `step` batches and
    `update` updates of the whole run; `loss`, `hits` and `batches` are sums over this epoch;
    `lines` is how long metrics.jsonl is, `history` the metrics of every finished epoch, `changes`
    what was changed when the run was resumed."""

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
        return dict(vars(self))  # without copies of the history, which grows with the run

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Progress:
        """Raises ValueError where the values, each of its type, are not those of a standing."""
        missing = [f.name for f in fields(Progress) if f.name not in values]
        if missing:
            raise ValueError(f"`{missing[0]}` of its progress is missing")
        given = {f.name: values[f.name] for f in fields(Progress)}
        s = Progress(**given | {k: tuple(given[k]) for k in ("history", "changes")})
        numbers = [m.get("epoch", i) for i, m in enumerate(s.history, 1)]
        if numbers != list(range(1, s.epoch + 1)):
            raise ValueError("its history is not one of its epochs")
        if any(m.get("train_loss") is None for m in s.history):
            raise ValueError("its history has an epoch without a loss")
        if not s.batches <= s.step >= s.update >= s.epoch:
            raise ValueError("its steps are not those of its updates and epochs")
        if s.seen == 0 and (s.batches or s.loss or s.hits):
            raise ValueError("it has a loss, and has seen no images")
        return s

    def advance(self, images: int, batches: int) -> Progress:
        """One update later."""
        step = self.step + batches
        return replace(self, seen=self.seen + images, step=step, update=self.update + 1)

    def add_batch(self, loss: float, hit: float) -> Progress:
        """With what came out of the next batch. A loss that is no finite number is that of a step
        that was left out, and counts for nothing."""
        if not math.isfinite(loss):
            return self
        batches = self.batches + 1
        return replace(self, loss=self.loss + loss, hits=self.hits + hit, batches=batches)

    def finish_epoch(self, metrics: Mapping[str, Any]) -> Progress:
        """The epoch is over, with these metrics."""
        kept = {k: v for k, v in metrics.items() if k not in TIMING_METRICS}
        return Progress(
            epoch=self.epoch + 1,
            step=self.step,
            update=self.update,
            history=(*self.history, kept),
            changes=self.changes,
        )

    @property
    def best_epoch(self) -> int:
        """The number of the best epoch so far, counted from 1; 0 before there is any."""
        ranked = [quality(m) for m in self.history]
        return ranked.index(max(ranked)) + 1 if ranked else 0

    def is_finished(self, recipe: Recipe) -> bool:
        """Whether all epochs are over, or none has been better for too long."""
        waited = self.epoch - self.best_epoch
        return self.epoch >= recipe.epochs or (
            recipe.patience is not None and waited >= recipe.patience
        )

    def learning_rate(self, recipe: Recipe, steps: int) -> float:
        """The learning rate of the next update, where an epoch has so many of them."""
        share = min(1.0, self.seen / (steps * recipe.data.batch * recipe.accumulate))
        past = self.history if recipe.schedule.record.needs_losses else ()
        moment = Moment(self.epoch + share, recipe.epochs, steps, [selection_loss(m) for m in past])
        rate: float = recipe.optimizer.arguments["lr"]
        return rate * rate_factor(recipe.schedule, moment)

    def ema_rate(self, decay: float) -> float:
        """How far the average of the weights goes towards them: at first all the way."""
        return 1 - min(decay, self.update / (9 + self.update))


def load_progress(saved: Checkpoint) -> Progress:
    """Where the run of a checkpoint stood. Raises NetError where that cannot be known."""
    try:
        return Progress.from_json(saved.progress)
    except ValueError as e:
        raise fail(f"{saved.origin} cannot be resumed: {e}") from None


def quality(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """What the best checkpoint is best at: validation accuracy, then loss; the training loss where
    nothing is held out."""
    if metrics.get("val_accuracy") is None:
        return 0.0, -selection_loss(metrics)
    return metrics["val_accuracy"], -selection_loss(metrics)


def selection_loss(metrics: Mapping[str, Any]) -> float:
    """The loss that an epoch is judged by."""
    value = metrics.get("val_loss")
    loss = metrics["train_loss"] if value is None else value
    return math.inf if loss is None or not math.isfinite(loss) else float(loss)
