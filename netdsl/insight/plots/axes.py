"""Parts of figures: scales with plain numbers, names beside lines that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from netdsl.insight.plots.figure import INK, PIXELS_PER_INCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

LABEL_SIZE = 8.5
"""Points of the names beside lines."""
_MAX_LABEL = 28
_FEW_DECADES = 2.0


def format_number(value: float) -> str:
    """A number of an axis, without a superscript: `0.001`, `1e-07`."""
    return f"{value:.12g}"


def format_share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.6g}%"


def set_scale(ax: Axes, is_log: bool, format_value: Callable[[float], str] = format_number) -> None:
    """Makes the vertical axis linear or logarithmic, with numbers as `format_value` writes them."""
    from matplotlib.ticker import FuncFormatter

    if is_log:
        ax.set_yscale("log", nonpositive="mask")
        set_log_ticks(ax.yaxis, ax.get_ylim(), _FEW_DECADES, format_value)
    else:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value)))


def set_log_ticks(
    axis: Axis,
    limits: tuple[float, float],
    few_decades: float,
    format_value: Callable[[float], str] = format_number,
) -> None:
    """The ticks of a logarithmic axis: powers of ten, and if it has fewer decades than
    `few_decades`, their double and fivefold."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = limits
    is_short = low > 0 and math.log10(high / low) < few_decades
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value)))
    axis.set_minor_formatter(NullFormatter())


def shorten_label(text: str) -> str:
    """A name that fits beside a plot."""
    return text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…"


@dataclass(frozen=True)
class LineLabel:
    """The name of a line that ends at `x`, `y`."""

    text: str
    colour: Any
    x: float
    y: float


def label_lines(ax: Axes, labels: Sequence[LineLabel], height: float) -> None:
    """Writes the names of lines: beside an axis of about `height` pixels those of lines that reach
    its right side, each as near to the end of its line as the others allow, with a short rule in
    its colour from there, and the others at the ends of their lines. To be called when the limits
    of the axis are final."""
    ends = [_find_place(ax, label) for label in labels]
    gap = LABEL_SIZE * PIXELS_PER_INCH / 72 * 1.25 / max(height, 1.0)
    for is_beside in (True, False):
        chosen = [
            (x, end)
            for x, end in zip(labels, ends, strict=True)
            if (end[0] >= _AT_SIDE) == is_beside
        ]
        places = spread([end[1] for _, end in chosen], gap)
        for (label, end), place in zip(chosen, places, strict=True):
            x = 1.035 if is_beside else end[0] + 0.02
            rule = {"color": label.colour, "linewidth": 1.1, **_RULE} if is_beside else None
            ax.annotate(
                shorten_label(label.text),
                xy=end,
                xytext=(x, place),
                xycoords="axes fraction",
                textcoords="axes fraction",
                fontsize=LABEL_SIZE,
                color=INK,
                va="center",
                annotation_clip=False,
                arrowprops=rule,
            )


_RULE: dict[str, Any] = {"arrowstyle": "-", "shrinkA": 1, "shrinkB": 1, "relpos": (0.0, 0.5)}
_AT_SIDE = 0.9
"""The share of an axis from which on a line reaches its right side."""


def _find_place(ax: Axes, label: LineLabel) -> tuple[float, float]:
    """The end of a line as shares of the axis."""
    x, y = ax.transLimits.transform(ax.transScale.transform((label.x, label.y)))
    return float(x), float(y)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves places so that neighbours are `gap` apart, in the same order, as little as possible:
    the least squares solution, by pooling those that would overlap."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[tuple[float, int]] = []  # the sum of the wanted starts, and the number of members
    for rank, i in enumerate(order):
        blocks.append((places[i] - rank * gap, 1))
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            (a, n), (b, m) = blocks.pop(-2), blocks.pop()
            blocks.append((a + b, n + m))
    starts = [_mean(block) for block in blocks for _ in range(block[1])]
    moved = np.zeros(len(places))
    moved[order] = [start + rank * gap for rank, start in enumerate(starts)]
    return [float(x) for x in moved]


def _mean(block: tuple[float, int]) -> float:
    return block[0] / block[1]
