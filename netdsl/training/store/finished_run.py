"""What a finished run has measured, read from its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.training.recipe.recipe import Recipe
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import SUFFIX, Checkpoint
from netdsl.training.store.metrics_log import last_epoch, read_test_metrics, sum_seconds
from netdsl.training.store.progress import load_progress

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class FinishedRun:
    """The metrics of a run's best epoch and of the test set. `epochs` and `seconds` of training are
    those of the run with the stages before it."""

    metrics: Mapping[str, Any]
    epochs: int
    seconds: float


def read_finished_run(
    folder: Path, last: Checkpoint, recipe: Recipe, stages: Sequence[str], has_test_set: bool
) -> FinishedRun | None:
    """Reads the run of `recipe` in a directory, whose last checkpoint is given, after `stages` in
    its subdirectories. None if it is not finished. Raises NetError if its best checkpoint is
    missing or damaged."""
    test_metrics = read_test_metrics(folder / METRICS_FILE)
    if not load_progress(last).is_finished(recipe) or (has_test_set and not test_metrics):
        return None
    best = checkpoint.load(folder / f"best{SUFFIX}").metrics
    logs = [place / METRICS_FILE for place in (*(folder / name for name in stages), folder)]
    measured = {k: v for k, v in best.items() if k not in ("epoch", "step")}
    return FinishedRun(
        {"best_epoch": best.get("epoch"), **measured, **test_metrics},
        sum(map(last_epoch, logs)),
        sum(map(sum_seconds, logs)),
    )
