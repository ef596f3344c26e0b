"""When a running training saves its last checkpoint, and which epochs it validates."""

from __future__ import annotations

from netdsl.signature import BoundCall
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
        """Whether the epoch whose updates are all made is validated, to be asked once of each."""
        mark = progress.mark
        now = Mark(progress.epoch + 1, mark.update, mark.seconds)
        due = now.epoch == 1 or now.epoch >= self.epochs or self._timer.is_due(now)
        if due:
            self._timer.restart(now)
        return due
