"""When a running training saves its last checkpoint, and which epochs it validates."""

from __future__ import annotations

from dataclasses import replace

from netdsl.signature import BoundCall
from netdsl.training.job import Job
from netdsl.training.recipe.intervals import Mark, is_due
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.store.progress import Progress


class IntervalTimer:
    """Says when what is done at an interval, and was done last at `last`, is due."""

    def __init__(self, interval: BoundCall, last: Mark) -> None:
        self.interval, self._last = interval, last

    def is_due(self, now: Mark) -> bool:
        return is_due(self.interval, self._last, now)

    def restart(self, now: Mark) -> None:
        """Counts from `now`, when it was done."""
        self._last = now


class ValidationTimer:
    """Says which epochs are validated: the first, so that a fault in the validation set shows soon
    and there is always a best epoch; the last; and those at whose end the interval has passed."""

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        self.epochs = recipe.epochs
        self._timer = IntervalTimer(recipe.validate_every, progress.epoch_mark)

    def is_due(self, progress: Progress) -> bool:
        """Whether the epoch whose updates are all made is to be validated. The clocks of several
        ranks may disagree: all do what one of them says."""
        now = _end_of_epoch(progress)
        return now.epoch == 1 or now.epoch >= self.epochs or self._timer.is_due(now)

    def restart(self, progress: Progress) -> None:
        """Counts from the end of this epoch, which is validated."""
        self._timer.restart(_end_of_epoch(progress))


def _end_of_epoch(progress: Progress) -> Mark:
    return replace(progress.mark, epoch=progress.epoch + 1)


def explain_short_interval(job: Job) -> tuple[str, ...]:
    """That epochs are longer than the interval at which they are to be validated, as a line."""
    chosen, steps = job.recipe.validate_every, job.steps_per_epoch
    if chosen.name != "steps" or chosen.arguments["count"] >= steps:
        return ()
    count = chosen.arguments["count"]
    return (
        f"validation comes at the end of an epoch: every {steps:,} steps, not every {count:,} "
        "(`validate_every`)",
    )
