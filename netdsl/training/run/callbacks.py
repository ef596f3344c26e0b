"""Callbacks of a run, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


OnStep = Callable[[StepReport], None]
OnEpoch = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Callbacks:
    """`on_step` is called after every update, `on_epoch` with every epoch's metrics, `should_stop`
    before every batch, and `log` with messages about damaged files. If `on_epoch` returns True, the
    epoch is the last one."""

    on_step: OnStep
    on_epoch: OnEpoch
    should_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda words: None


@dataclass(frozen=True)
class Result:
    """A finished run: the metrics of its best epoch and of the test, and its best checkpoint."""

    metrics: dict[str, Any]
    checkpoint: Path


class StopRequested(Exception):
    """`should_stop` returned True."""


def format_epoch(m: Mapping[str, Any], epochs: int) -> str:
    """The metrics of an epoch as a line."""
    line = f"epoch {m['epoch']}/{epochs}  loss {m['train_loss']:.4f}"
    if m["val_accuracy"] is not None:
        line += f"  val loss {m['val_loss']:.4f}  val accuracy {m['val_accuracy']:.2%}"
    if m.get("skipped"):
        line += f"  {m['skipped']:,} steps skipped"
    return f"{line}  {m['images_per_second']:,.0f} images/s  {m['seconds']:.1f} s"
