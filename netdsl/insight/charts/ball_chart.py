"""The ball chart of accuracy against cost (Canziani, Culurciello, Paszke 2017, "An Analysis of Deep
Neural Network Models for Practical Applications"): a ball's area shows the number of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from netdsl.errors import fail
from netdsl.insight.charts.label_placement import PointLabel, add_labels
from netdsl.insight.charts.points import QUANTITIES, AxisQuantity, ChartPoint
from netdsl.insight.plots.axes import set_log_ticks
from netdsl.insight.plots.figure import (
    COLOURS,
    MUTED,
    PIXELS_PER_INCH,
    figure_style,
    make_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST_BALL = 0.075
"""The radius of the largest ball, as a share of the figure's shorter side."""
_LOG_RATIO = 20
"""The ratio of the largest to the smallest value from which an axis is logarithmic."""
FEW_DECADES = 4.0
"""Fewer decades than these have ticks between the powers of ten."""
_LEGEND_POINTS = 9.5
"""The size of text in a legend."""


def has_ball(point: ChartPoint, x: str, area: str) -> bool:
    """Whether a point has a place and a size: both quantities are known and above 0."""
    return bool(QUANTITIES[x].read(point) and QUANTITIES[area].read(point))


def plot_balls(
    points: Sequence[ChartPoint],
    x: str,
    area: str,
    accuracy_label: str,
    size: tuple[int, int],
) -> Figure:
    """A figure of `points`: accuracy over the quantity `x`, balls with an area in proportion to
    the quantity `area`, a colour for each group. Points without a ball are left out. `size` is in
    pixels. Raises NetError if none is left, or if matplotlib is missing."""
    with figure_style():
        return _plot_balls(points, x, area, accuracy_label, size)


def _plot_balls(
    points: Sequence[ChartPoint], x: str, area: str, accuracy_label: str, size: tuple[int, int]
) -> Figure:
    cost, quantity = QUANTITIES[x], QUANTITIES[area]
    drawn = [p for p in points if has_ball(p, x, area)]
    if not drawn:
        raise fail(f"no net here has {x} and {area} above 0")
    drawn.sort(key=lambda p: (-(quantity.read(p) or 0), p.name))  # small balls over large ones
    title = f"{accuracy_label} by {cost.label}, {len(drawn)} nets; area: {quantity.label}"
    figure = make_figure(*size, title)
    axes = figure.add_subplot()
    axes.set_xlabel(cost.label)
    axes.set_ylabel(accuracy_label)
    groups = list(dict.fromkeys(p.group for p in sorted(drawn, key=lambda p: p.group)))
    colours = {g: COLOURS[i % len(COLOURS)] for i, g in enumerate(groups)}
    xs = [_read(cost, p) for p in drawn]
    ys = [100 * p.accuracy for p in drawn]
    radii = _ball_radii(drawn, quantity, size)
    axes.scatter(
        xs,
        ys,
        s=[math.pi * r**2 for r in radii],
        c=[colours[p.group] for p in drawn],
        alpha=0.45,
        linewidths=0.8,
        edgecolors=[colours[p.group] for p in drawn],
        gid="balls",
    )
    axes.scatter(xs, ys, s=4, c=[colours[p.group] for p in drawn])
    if max(xs) > _LOG_RATIO * min(xs):
        axes.set_xscale("log")
        set_log_ticks(axes.xaxis, (min(xs), max(xs)), FEW_DECADES)
    axes.margins(0.09)
    _add_legends(figure, axes, colours, drawn, quantity, size)
    labels = [
        PointLabel(p.name, across, up, radius)
        for p, across, up, radius in zip(drawn, xs, ys, radii, strict=True)
    ]
    add_labels(figure, axes, labels)
    return figure


def _read(quantity: AxisQuantity, point: ChartPoint) -> float:
    return quantity.scale * (quantity.read(point) or 0)


def _ball_radii(
    points: Sequence[ChartPoint], quantity: AxisQuantity, size: tuple[int, int]
) -> list[float]:
    """Radii in points (1/72 inch)."""
    largest = max(_read(quantity, p) for p in points)
    return [_ball_radius(_read(quantity, p), largest, size) for p in points]


def _ball_radius(value: float, largest: float, size: tuple[int, int]) -> float:
    return 72 / PIXELS_PER_INCH * min(size) * _LARGEST_BALL * math.sqrt(value / largest)


def _add_legends(
    figure: Figure,
    axes: Any,
    colours: dict[str, str],
    points: Sequence[ChartPoint],
    quantity: AxisQuantity,
    size: tuple[int, int],
) -> None:
    """One legend of the groups, and one of areas."""
    largest = max(_read(quantity, p) for p in points)
    marks = [
        axes.scatter([], [], s=60, c=[colour], alpha=0.6, label=group)
        for group, colour in colours.items()
    ]
    figure.legend(handles=marks, loc="outside right upper", title="accuracy as reported by")
    values = [_round_down(largest * share) for share in (0.01, 0.1, 0.4, 1)]
    balls = [
        axes.scatter(
            [],
            [],
            s=math.pi * _ball_radius(value, largest, size) ** 2,
            facecolors="none",
            edgecolors=MUTED,
            label=f"{value:,g}",
        )
        for value in dict.fromkeys(values)
    ]
    space = _ball_radius(largest, largest, size) / _LEGEND_POINTS
    figure.legend(
        handles=balls,
        loc="outside right lower",
        title=quantity.label,
        labelspacing=max(0.5, 1.1 * space),
        borderpad=max(0.4, 0.9 * space),
        handletextpad=max(0.8, 0.9 * space),
        handlelength=max(2.0, 1.2 * space),
    )


def _round_down(value: float) -> float:
    """To one significant digit."""
    scale = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / scale + 1e-9) * scale
