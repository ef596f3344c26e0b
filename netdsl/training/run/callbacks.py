"""What a run reports while it trains, and what it gives in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """Where a run is after an update: `step` of `steps` in the epoch, and the mean loss so far."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    images_per_second: float


OnStep = Callable[[StepReport], None]
OnEpoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Callbacks:
    """`on_step` sees every update, `on_epoch` every epoch's metrics; `should_stop` is asked before
    every batch; `log` receives what was found damaged, in words."""

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
    """`should_stop` said so."""
