"""Draws the charts of runs: lines with their names beside them, and bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from netdsl.insight.plots.axes import (
    LABEL_SIZE,
    LineLabel,
    format_number,
    format_share,
    label_lines,
    set_scale,
    shorten_label,
)
from netdsl.insight.plots.figure import (
    COLOURS,
    INK,
    MANY_COLOURS,
    MUTED,
    PAPER,
    figure_style,
    make_figure,
)
from netdsl.insight.plots.history import RunHistory
from netdsl.insight.plots.norms import draw_norms
from netdsl.insight.plots.series import (
    AXIS_TITLES,
    Chart,
    CurvePanel,
    PlotOptions,
    Series,
    make_chart,
)
from netdsl.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_WIDTHS, _PANEL_HEIGHT, _LEGEND_HEIGHT = (640, 540, 460), 380, 40
"""Pixels of one, two or three panels beside each other, unless the size is given."""
_MAX_COLUMNS = 3
_SHAPE = 1.4
"""The width of a panel by its height."""
_AXIS_SHARE = 0.75
"""Of the height of a panel, roughly; the rest is its title and the numbers below it."""
_MAX_NAMES, _NAME_COLUMNS, _NAME_HEIGHT = 60, 5, 18
"""Names in the legend of many lines, those in a row, and the pixels of a row."""
_STAGE_CHARACTERS = 60
"""Of the names of stages that fit above an axis, roughly."""
_PART_NAMES = {"train": "training", "val": "validation"}
_DASHES = (0, (3.5, 1.8))
_BAND = 0.18
_BEST_MARKER: dict[str, Any] = {
    "marker": "o",
    "markersize": 7,
    "markeredgecolor": PAPER,
    "markeredgewidth": 1.2,
}


def plot_curves(
    histories: Sequence[RunHistory],
    options: PlotOptions = PlotOptions(),  # noqa: B008 (frozen)
    size: tuple[int, int] | None = None,
) -> Figure:
    """Draws what runs have measured; `size` is in pixels. Raises NetError as `make_chart` does, or
    if matplotlib is missing."""
    return draw_chart(make_chart(histories, options), size)


def draw_chart(chart: Chart, size: tuple[int, int] | None = None) -> Figure:
    """The picture of a chart: panels of curves, and below them those of norms."""
    columns = _choose_columns(len(chart.curves), size)
    rows = math.ceil(len(chart.curves) / columns) if columns else 0
    norm_columns = len({panel.quantity for panel in chart.norms})
    norm_rows = len({panel.run for panel in chart.norms})
    width = _PANEL_WIDTHS[max(columns, norm_columns) - 1] * max(columns, norm_columns)
    height = _PANEL_HEIGHT * (rows + norm_rows) + _LEGEND_HEIGHT
    if rows and len(chart.labels) > len(COLOURS):
        height += _NAME_HEIGHT * math.ceil(min(len(chart.labels), _MAX_NAMES) / _NAME_COLUMNS)
    with figure_style():
        figure = make_figure(*(size or (width, height)), chart.title)
        parts = [n for n in (rows, norm_rows) if n]
        subfigures = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=parts)[:, 0]
        if rows:
            _draw_curves(subfigures[0], chart, rows, columns)
        if norm_rows:
            draw_norms(subfigures[-1], chart, norm_rows, norm_columns)
    return figure


def _choose_columns(count: int, size: tuple[int, int] | None) -> int:
    """How many panels are beside each other; in a picture of a given size, as many as bring their
    shape closest to the usual one."""
    if size is None or not count:
        return 2 if count == 4 else min(_MAX_COLUMNS, count)

    def misfit(columns: int) -> float:
        shape = size[0] / columns / (size[1] / math.ceil(count / columns))
        return abs(math.log(shape / _SHAPE))

    return min(range(1, count + 1), key=misfit)


def _draw_curves(figure: Any, chart: Chart, rows: int, columns: int) -> None:
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    palette = _choose_colours(len(chart.labels))
    height = _AXIS_SHARE * figure.bbox.height / rows
    for panel, ax in zip(chart.curves, axes, strict=False):
        _draw_panel(ax, chart, panel, palette, height)
    for ax in axes[len(chart.curves) :]:
        ax.set_axis_off()
    _add_legend(figure, chart, palette)


def _choose_colours(count: int) -> Sequence[Any]:
    """A colour for each group: those of the palette, or for many, of a colour map in the order of
    the groups."""
    if count <= len(COLOURS):
        return COLOURS[:count]
    import matplotlib

    return [matplotlib.colormaps[MANY_COLOURS](x) for x in np.linspace(0, 0.92, count)]


@dataclass(frozen=True)
class _Look:
    """How a line looks, and its name. Not `is_main`: training, where validation is drawn too."""

    colour: Any
    label: str | None
    is_main: bool = True

    @property
    def style(self) -> dict[str, Any]:
        if self.is_main:
            return {"color": self.colour, "linewidth": 1.8}
        return {"color": self.colour, "linewidth": 1.1, "linestyle": _DASHES}


def _choose_look(chart: Chart, panel: CurvePanel, line: Series, palette: Sequence[Any]) -> _Look:
    """A single run has a colour for each part, several runs have one each."""
    has_both = len({x.part for x in panel.series}) > 1
    is_main = not (has_both and line.part == "train")
    if line.group is None:
        return _Look(INK, None)
    if len(chart.labels) > 1:
        return _Look(palette[line.group], line.label if is_main else None, is_main)
    label = _PART_NAMES.get(line.part or "") if has_both else None
    return _Look(COLOURS[not is_main], label, is_main)


def _draw_panel(
    ax: Axes, chart: Chart, panel: CurvePanel, palette: Sequence[Any], height: float
) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_title(panel.title)
    ax.set_xlabel(AXIS_TITLES[panel.by])
    looks = [_choose_look(chart, panel, line, palette) for line in panel.series]
    for line, look in zip(panel.series, looks, strict=True):
        _draw_line(ax, panel, line, look)
    set_scale(ax, panel.is_log, format_share if panel.is_share else format_number)
    if panel.by != "seconds":
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if len(chart.labels) == 1:
        _note_best(ax, panel)
    _draw_stages(ax, chart, palette)
    if len(chart.labels) <= len(COLOURS):
        named = [(look, *_find_end(line)) for line, look in zip(panel.series, looks, strict=True)]
        labels = [LineLabel(look.label, look.colour, *end) for look, *end in named if look.label]
        ax.autoscale_view()
        label_lines(ax, [x for x in labels if np.isfinite(x.y)], height)


def _find_band(panel: CurvePanel, line: Series) -> tuple[Array, Array]:
    """The lower and the upper edge of a band of one standard deviation: of a share, within 0 and 1;
    on a logarithmic axis, as far below the mean as above it, which is never below 0."""
    high = line.y + line.deviation
    low = line.y**2 / high if panel.is_log else line.y - line.deviation
    return (np.maximum(low, 0.0), np.minimum(high, 1.0)) if panel.is_share else (low, high)


def _draw_line(ax: Axes, panel: CurvePanel, line: Series, look: _Look) -> None:
    """Draws a line, across epochs that were not validated; the lines of other metrics have gaps."""
    drawing = "steps-pre" if panel.is_stepwise else "default"
    shown = np.isfinite(line.y) if line.part == "val" else np.ones(len(line.y), bool)
    x, y = line.x[shown], line.y[shown]
    ax.plot(x, y, drawstyle=drawing, **look.style)
    lonely = _find_lonely(y)
    if lonely.any():
        ax.plot(x[lonely], y[lonely], "o", color=look.colour, markersize=3)
    if line.deviation is not None and look.is_main:
        low, high = _find_band(panel, line)
        ax.fill_between(x, low[shown], high[shown], color=look.colour, alpha=_BAND, linewidth=0)
    if line.best is not None and look.is_main:
        at = line.x[line.best], line.y[line.best]
        ax.plot(*at, color=look.colour, zorder=4, **_BEST_MARKER)


def _find_lonely(y: Array) -> Array:
    """Which points have no neighbour, so that a line does not show them."""
    known = np.isfinite(y)
    beside = np.zeros_like(known)
    beside[1:] |= known[:-1]
    beside[:-1] |= known[1:]
    return known & ~beside


def _find_end(line: Series) -> tuple[float, float]:
    """The last point of a line; NaN if it has none."""
    known = np.flatnonzero(np.isfinite(line.y))
    return (float(line.x[known[-1]]), float(line.y[known[-1]])) if len(known) else (math.nan,) * 2


def _note_best(ax: Axes, panel: CurvePanel) -> None:
    """The value of a single run at its best epoch, beside the title."""
    for line in panel.series:
        if line.best is not None and (line.part == "val" or len(panel.series) == 1):
            value = line.y[line.best]
            shown = f"{value:.2%}" if panel.is_share else f"{value:.4g}"
            where = _BEST_PLACES[panel.by].format(line.x[line.best])
            note = f"best epoch{where}: {shown}"
            ax.set_title(note, loc="right", color=MUTED, fontsize=LABEL_SIZE, fontweight="normal")


_BEST_PLACES = {"epoch": " {:.0f}", "step": ", step {:,.0f}", "seconds": ", {:,.1f} s"}


def _draw_stages(ax: Axes, chart: Chart, palette: Sequence[Any]) -> None:
    """Where stages start, and above it their names if they start at the same places in all groups;
    else in the colour of each group."""
    by_group = [
        [(x.name, x.start) for x in chart.stages if x.group == i] for i in range(len(chart.labels))
    ]
    is_same = all(stages == by_group[0] for stages in by_group)
    for i, stages in enumerate(by_group[:1] if is_same else by_group):
        for _, start in stages:
            if start > 0:
                colour = MUTED if is_same else palette[i]
                ax.axvline(start, color=colour, linewidth=0.9, linestyle=(0, (1, 2)))
    if is_same:
        _name_stages(ax, by_group[0])


def _name_stages(ax: Axes, stages: Sequence[tuple[str, float]]) -> None:
    """Writes the names of stages above the axis, each as far as there is room."""
    if not stages:
        return
    ax.set_title(ax.get_title("left"), pad=18)
    low, high = ax.get_xlim()
    starts = [(min(max(start, low), high) - low) / (high - low) for _, start in stages]
    room = _STAGE_CHARACTERS * np.diff([*starts, 1.0])
    for (name, _), start, characters in zip(stages, starts, room, strict=True):
        if characters >= min(len(name), 3):
            shown = name if len(name) <= characters else f"{name[: int(characters) - 1]}…"
            ax.text(
                start, 1.015, shown, transform=ax.transAxes, fontsize=7.5, color=MUTED, va="bottom"
            )


def _add_legend(figure: Any, chart: Chart, palette: Sequence[Any]) -> None:
    """What dashes, bands and points mean, and the names of the groups if they are too many to be
    written beside their lines."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [line for panel in chart.curves for line in panel.series]
    parts = {line.part for line in lines} - {None}
    handles: list[Any] = []
    if len(chart.labels) > 1 and len(parts) > 1:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.8, label="validation"))
        handles.append(
            Line2D([], [], color=MUTED, linewidth=1.1, linestyle=_DASHES, label="training")
        )
    if any(line.deviation is not None for line in lines):
        handles.append(
            Patch(color=MUTED, alpha=_BAND * 1.5, linewidth=0, label=_describe_band(lines))
        )
    if len(chart.labels) > 1 and any(line.best is not None for line in lines):
        handles.append(
            Line2D([], [], color=MUTED, linestyle="", label="best epoch", **_BEST_MARKER)
        )
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8.5)
    if len(chart.labels) > len(COLOURS):
        named = [
            Line2D([], [], color=c, linewidth=2, label=shorten_label(x))
            for c, x in zip(palette, chart.labels, strict=True)
        ]
        figure.legend(
            handles=named[:_MAX_NAMES], loc="outside lower left", ncols=_NAME_COLUMNS, fontsize=8
        )


def _describe_band(lines: Sequence[Series]) -> str:
    counts = {len(line.runs) for line in lines if line.deviation is not None}
    return f"mean ± standard deviation of {' or '.join(map(str, sorted(counts)))} runs"
