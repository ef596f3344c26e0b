"""Draws norms by layer and step: lines for few layers, a heat map for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netdsl.insight.plots.axes import (
    LABEL_SIZE,
    LineLabel,
    format_number,
    label_lines,
    set_scale,
    shorten_label,
)
from netdsl.insight.plots.figure import COLOURS, MANY_COLOURS
from netdsl.insight.plots.series import AXIS_TITLES, Chart, NormPanel
from netdsl.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NOTHING = "#e4e7eb"
"""The colour of 0, which has no logarithm, and of what was not measured."""
_ROW_PIXELS = 13
_MAX_STEPS = 1_000
"""Columns of a heat map; of more, every n-th one is drawn."""
_AXIS_SHARE = 0.75


def draw_norms(figure: Any, chart: Chart, rows: int, columns: int) -> None:
    """A row for each run, a column for each quantity, which has one scale of colours."""
    axes = figure.subplots(rows, columns, squeeze=False)
    runs = [*dict.fromkeys(panel.run for panel in chart.norms)]
    quantities = [*dict.fromkeys(panel.quantity for panel in chart.norms)]
    height = _AXIS_SHARE * figure.bbox.height / rows
    for column, quantity in enumerate(quantities):
        panels = [panel for panel in chart.norms if panel.quantity == quantity]
        has_lines = all(len(panel.table.layers) <= len(COLOURS) for panel in panels)
        for ax in axes[:, column]:
            ax.set_axis_off()
        of_column = [(axes[runs.index(panel.run), column], panel) for panel in panels]
        for ax, panel in of_column:
            ax.set_axis_on()
            of_run = f": {shorten_label(panel.run)}" if len(runs) > 1 else ""
            ax.set_title(f"{panel.title}{of_run}")
            ax.set_xlabel(AXIS_TITLES[panel.by])
        if has_lines:
            for ax, panel in of_column:
                _draw_lines(ax, panel, height)
        else:
            _draw_maps(figure, of_column, height)


def _draw_lines(ax: Axes, panel: NormPanel, height: float) -> None:
    ends = []
    for i, (layer, values) in enumerate(zip(panel.table.layers, panel.table.values, strict=True)):
        ax.plot(panel.x, values, color=COLOURS[i], marker="o" if len(values) == 1 else "")
        known = np.flatnonzero(np.isfinite(values) & ((values > 0) | (not panel.is_log)))
        if len(known):
            at = float(panel.x[known[-1]]), float(values[known[-1]])
            ends.append(LineLabel(layer, COLOURS[i], *at))
    set_scale(ax, panel.is_log)
    ax.autoscale_view()
    label_lines(ax, ends, height)


def _draw_maps(figure: Any, panels: Sequence[tuple[Axes, NormPanel]], height: float) -> None:
    import matplotlib
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter

    is_log = any(panel.is_log for _, panel in panels)
    values = np.concatenate([panel.table.values.ravel() for _, panel in panels])
    shown = values[np.isfinite(values) & ((values > 0) | (not is_log))]
    low, high = float(shown.min()), float(shown.max())
    norm = LogNorm(low, max(high, low * 1.001)) if is_log else Normalize(low, high)
    colours = matplotlib.colormaps[MANY_COLOURS].with_extremes(bad=_NOTHING)
    for ax, panel in panels:
        every = -(-len(panel.x) // _MAX_STEPS)
        x, z = panel.x[::every], panel.table.values[:, ::every]
        mesh = ax.pcolormesh(
            _edges(x),
            np.arange(len(panel.table.layers) + 1) - 0.5,
            np.ma.masked_where(~np.isfinite(z) | ((z <= 0) & is_log), z),
            norm=norm,
            cmap=colours,
            rasterized=True,
        )
        ax.grid(False)
        ax.invert_yaxis()  # the first layer on top
        _name_layers(ax, panel.table.layers, height)
    has_gaps = len(shown) < len(values)
    bar = figure.colorbar(mesh, ax=[ax for ax, _ in panels], pad=0.03, fraction=0.05, aspect=40)
    bar.set_label("norm (grey: 0 or none)" if has_gaps else "norm")
    bar.outline.set_visible(False)
    if is_log:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: format_number(v)))
        bar.ax.minorticks_off()


def _edges(x: Array) -> Array:
    """The borders of cells around places."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])


def _name_layers(ax: Axes, layers: Sequence[str], height: float) -> None:
    """The names of as many layers as fit."""
    every = max(1, math.ceil(len(layers) * _ROW_PIXELS / max(height, 1)))
    places = range(0, len(layers), every)
    ax.set_yticks(places, [shorten_label(layers[i]) for i in places], fontsize=LABEL_SIZE - 1)
    ax.tick_params(axis="y", length=0)
