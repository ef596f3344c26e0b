"""Plots from Python: those of `netdsl plot`, as figures of matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netdsl.api.arguments import read_path
from netdsl.errors import fail
from netdsl.insight.plots.curves import plot_curves
from netdsl.insight.plots.figure import check_format, save_figure
from netdsl.insight.plots.history import read_histories
from netdsl.insight.plots.series import PlotOptions
from netdsl.training.step.watch import parse_watch
from netdsl.training.store.output_files import check_outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    *runs: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = (),
    watch: Sequence[str] = (),
    by: str | None = None,
    log: bool | None = None,
    each: bool = False,
    size: tuple[int, int] | None = None,
) -> Figure:
    """Plots what the runs in these directories have measured, as `netdsl plot` does, and writes the
    plot to `out`, a .png, .svg or .pdf, if that is given.

    `metrics` are columns of metrics.jsonl (default: losses and accuracies), `watch` is
    `["gradients"]`, `["activations"]` or both, `by` is `"epoch"`, `"step"` or `"seconds"`, `log`
    the scale of values (None: what shows more), `each` draws a line for each run instead of the
    mean over seeds, and `size` is in pixels. Raises NetError if a run or a metric does not exist,
    or if matplotlib is missing."""
    if not runs:
        raise fail("there is no run to plot", help='netdsl.plot("runs/digits-1")')
    for name, given in (("metrics", metrics), ("watch", watch)):
        if isinstance(given, str):
            raise fail(f"`{name}` is one text", help=f"write {name}=[{given!r}]")
    quantities = parse_watch(",".join(watch), 1).quantities if watch else ()
    histories = read_histories([Path(read_path(run, "run")) for run in runs])
    figure = plot_curves(histories, PlotOptions(tuple(metrics), quantities, by, log, each), size)
    if out is not None:
        path = Path(read_path(out, "out"))
        check_format(path)
        check_outputs([path], [file for history in histories for file in history.files])
        save_figure(figure, path)
    return figure
