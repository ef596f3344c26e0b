"""Redraws the plot of a run while it trains, rarely enough not to slow the training."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from netdsl.insight.plots.curves import plot_curves
from netdsl.insight.plots.figure import save_figure
from netdsl.insight.plots.history import is_run, read_history

MAX_SHARE = 0.03
"""Of the time of a run that drawing may take; the last picture, when a run ends, always comes."""
_FIRST_COST = 1.0
"""Seconds that the first picture is assumed to take, with the import of matplotlib."""


def draw_run(run: Path, out: Path) -> None:
    """Draws the run in a directory, with its stages, if it has finished an epoch. Raises NetError
    if the file cannot be written."""
    history = read_history(run) if is_run(run) else None
    if history is not None and history.columns:
        save_figure(plot_curves([history]), out)


class LivePlot:
    """The plot of the run in a directory, in the file `out`; `draw` draws it, and `clock` gives the
    time in seconds."""

    def __init__(
        self,
        run: Path,
        out: Path,
        draw: Callable[[Path, Path], None] = draw_run,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.run, self.out, self._draw, self._clock = run, out, draw, clock
        self._cost, self._since = _FIRST_COST, clock()

    def update(self) -> None:
        """Draws if the time since the last picture makes up for it. Raises NetError if the picture
        cannot be drawn or written."""
        passed = self._clock() - self._since
        if self._cost <= MAX_SHARE * (passed + self._cost):
            self.close()

    def close(self) -> None:
        """Draws the picture."""
        started = self._clock()
        try:
            self._draw(self.run, self.out)
        finally:
            self._since = self._clock()
            self._cost = self._since - started
