"""Places labels beside points so that they cover neither each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.insight.plots.figure import MUTED

_DIRECTIONS = (0, 180, 90, 270, 45, 315, 135, 225)
"""Degrees, in order of preference: right, left, above, below, then the diagonals."""
_DISTANCES = (0.0, 0.7, 1.6, 2.8, 4.5)
"""Gaps between a point and its label, in heights of the label."""


@dataclass(frozen=True)
class LabelBox:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def overlap(self, other: LabelBox) -> float:
        """The area that both cover, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def contains(self, other: LabelBox) -> bool:
        return self.overlap(other) == (other.right - other.left) * (other.top - other.bottom)


@dataclass(frozen=True)
class Anchor:
    """A ball at `x`, `y` with a radius, and the width and height of its label, in pixels."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def box(self) -> LabelBox:
        r = self.radius
        return LabelBox(self.x - r, self.y - r, self.x + r, self.y + r)

    def candidates(self) -> Iterator[LabelBox]:
        """Where the label can be, best first."""
        for distance in _DISTANCES:
            for degrees in _DIRECTIONS:
                dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
                reach = self.radius + 2 + distance * self.height
                x = self.x + dx * (reach + self.width / 2)
                y = self.y + dy * (reach + self.height / 2)
                half_width, half_height = self.width / 2, self.height / 2
                yield LabelBox(x - half_width, y - half_height, x + half_width, y + half_height)


def place_labels(anchors: Sequence[Anchor], frame: LabelBox) -> list[LabelBox]:
    """A box for the label of each anchor inside the frame, greedily in the order given: the first
    candidate that overlaps nothing, else the one that overlaps least."""
    placed: list[LabelBox] = []
    # a large ball is mostly empty: only its centre must stay visible
    centres = [Anchor(a.x, a.y, min(a.radius, 4.0), 0, 0).box for a in anchors]
    for anchor in anchors:
        inside = [box for box in anchor.candidates() if frame.contains(box)]
        options = inside or list(anchor.candidates())
        placed.append(min(options, key=lambda box: _conflict(box, placed, centres)))
    return placed


def _conflict(box: LabelBox, labels: Sequence[LabelBox], centres: Sequence[LabelBox]) -> float:
    return sum(map(box.overlap, labels)) + sum(map(box.overlap, centres))


_LABEL_POINTS = 7.5


@dataclass(frozen=True)
class PointLabel:
    """A name, the place of its point in the units of the axes, and the point's radius in points
    (1/72 inch)."""

    text: str
    x: float
    y: float
    radius: float = 3.0


def add_labels(figure: Any, axes: Any, labels: Sequence[PointLabel]) -> None:
    """Writes labels beside their points, with a line to the point where there is a gap. Everything
    else must be in the figure already: the layout is computed here."""
    figure.draw_without_rendering()
    to_data = axes.transData.inverted()
    frame = axes.get_window_extent()
    anchors = [_measure(axes, label, figure.dpi / 72) for label in labels]
    boxes = place_labels(anchors, LabelBox(frame.x0, frame.y0, frame.x1, frame.y1))
    for label, anchor, box in zip(labels, anchors, boxes, strict=True):
        dx, dy = (c - a for c, a in zip(box.centre, (anchor.x, anchor.y), strict=True))
        gap = math.hypot(max(abs(dx) - anchor.width / 2, 0), max(abs(dy) - anchor.height / 2, 0))
        has_line = gap > 1.5 * anchor.height  # from the centre: large balls overlap
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=to_data.transform(box.centre),
            fontsize=_LABEL_POINTS,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6} if has_line else None,
        )


def _measure(axes: Any, label: PointLabel, pixels_per_point: float) -> Anchor:
    probe = axes.text(label.x, label.y, label.text, fontsize=_LABEL_POINTS)
    extent = probe.get_window_extent()
    probe.remove()
    x, y = axes.transData.transform((label.x, label.y))
    return Anchor(x, y, label.radius * pixels_per_point, extent.width, extent.height)
