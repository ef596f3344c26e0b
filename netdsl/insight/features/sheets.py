"""Sheets of features: the pictures that activate channels most, beside images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.insight.color_scale import render_text
from netdsl.insight.features.visualization import Feature
from netdsl.insight.image_grid import fit_picture, make_sheet, stack
from netdsl.types import Array

SMALL_SIDE = 128
"""The side to which smaller pictures are enlarged."""


@dataclass(frozen=True)
class StrongestImages:
    """What a channel sees of the images that activate it most, bytes [H,W,C]; their numbers and
    the largest value in each; how many images there are, and the value that 99.9 % of them stay
    below."""

    pictures: tuple[Array, ...]
    numbers: tuple[int, ...]
    peaks: tuple[float, ...]
    count: int
    percentile: float


@dataclass(frozen=True)
class FeatureRow:
    """A feature with its name, and the images of a data set that activate it most."""

    name: str
    feature: Feature
    images: StrongestImages | None = None

    def as_json(self) -> dict[str, Any]:
        """The channel and the activations of its pictures, and of the images of the data set."""
        f = self.feature
        climbs = zip(f.before, f.after, f.peaks, strict=True)
        found: dict[str, Any] = {
            "channel": f.channel,
            "name": self.name,
            "pictures": [{"before": b, "after": a, "peak": p} for b, a, p in climbs],
        }
        if self.images is not None:
            ranked = zip(self.images.numbers, self.images.peaks, strict=True)
            strongest = [{"image": n, "peak": p} for n, p in ranked]
            about = {"count": self.images.count, "percentile_99_9": self.images.percentile}
            found["images"] = {**about, "strongest": strongest}
        return found


def render_features(rows: Sequence[FeatureRow], side: int | None = None) -> Array:
    """Features as one picture, each picture with `side` pixels, by default its own size if it is
    not small: in a grid if each has one picture; in rows, with their images of the data set beside
    them, otherwise."""
    chosen = side or max(SMALL_SIDE, max(rows[0].feature.pictures.shape[1:3]))
    if rows[0].images is None and len(rows[0].feature.pictures) == 1:
        pictures = [fit_picture(r.feature.pictures[0], chosen) for r in rows]
        return make_sheet(pictures, [r.name for r in rows], None)
    return stack([_render_row(row, chosen) for row in rows], "down", gap=8)


def _render_row(row: FeatureRow, side: int) -> Array:
    found = [fit_picture(p, side) for p in row.feature.pictures]
    shown = row.feature.after if row.images is None else row.feature.peaks
    parts = [make_sheet(found, [_activation(a) for a in shown], len(found))]
    if row.images is not None:
        images = [_center(fit_picture(p, side), side) for p in row.images.pictures]
        parts.append(make_sheet(images, [_activation(a) for a in row.images.peaks], len(images)))
    body = stack(parts, "right")
    return stack((render_text(row.name, body.shape[1]), body), "down", gap=0)


def _activation(value: float) -> str:
    return f"{value:.4g}"


def _center(picture: Array, side: int) -> Array:
    """A picture in the middle of a white square."""
    page = np.full((side, side, picture.shape[2]), 255, np.uint8)
    top, left = (side - picture.shape[0]) // 2, (side - picture.shape[1]) // 2
    page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return page
