"""Augmentation of small images, on bytes, each change determined by seed, epoch and image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.kinds import Number, Whole
from netdsl.signature import Chosen, Param, Signature
from netdsl.types import Array


@dataclass(frozen=True)
class Augmentation:
    """`apply(images, draws, **arguments)` changes a batch; `draws` are `uses` numbers in [0, 1)
    for each of its images."""

    signature: Signature
    apply: Callable[..., Array]
    uses: int
    doc: str = ""


def _flipped(images: Array, draws: Array, p: float) -> Array:
    chosen = draws[:, 0] < p
    return np.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def _cropped(images: Array, draws: Array, pad: int) -> Array:
    """He et al. 2016: zeros around it, then a window of its own size."""
    n, h, w, _ = images.shape
    wide = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = (np.floor(draws[:, i] * (2 * pad + 1)).astype(np.int64) for i in (0, 1))
    rows = (top[:, None] + np.arange(h))[:, :, None]
    columns = (left[:, None] + np.arange(w))[:, None, :]
    return wide[np.arange(n)[:, None, None], rows, columns]


def _cut_out(images: Array, draws: Array, size: int) -> Array:
    """DeVries & Taylor 2017: a grey square about a point anywhere; part of it may lie outside."""
    _, h, w, _ = images.shape
    y, x = (np.floor(draws[:, i] * side).astype(np.int64) for i, side in ((0, h), (1, w)))
    rows = np.abs(np.arange(h) - y[:, None] + 0.5 * (1 - size % 2)) <= size / 2 - 0.25
    columns = np.abs(np.arange(w) - x[:, None] + 0.5 * (1 - size % 2)) <= size / 2 - 0.25
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return np.where(hole, np.uint8(128), images)


def _entry(name: str, apply: Any, uses: int, doc: str, *params: Param) -> Augmentation:
    return Augmentation(Signature(name, params), apply, uses, doc)


AUGMENTATIONS: dict[str, Augmentation] = {
    a.signature.name: a
    for a in (
        _entry(
            "hflip",
            _flipped,
            1,
            "left and right changed over, with probability `p`",
            Param("p", Number(0, 1), 0.5),
        ),
        _entry(
            "random_crop",
            _cropped,
            2,
            "moved by up to `pad` pixels either way, black where nothing was (He et al. 2016)",
            Param("pad", Whole(1, 1024), 4),
        ),
        _entry(
            "cutout",
            _cut_out,
            2,
            "a grey square somewhere (DeVries & Taylor 2017)",
            Param("size", Whole(1, 1024), 8),
        ),
    )
}


@dataclass(frozen=True)
class Augmenter:
    """The augmentations of one epoch. What happens to an image does not depend on its batch."""

    chosen: Sequence[Chosen]
    draws: tuple[Array, ...]

    def __call__(self, images: Array, index: Array) -> Array:
        for chosen, draws in zip(self.chosen, self.draws, strict=True):
            images = chosen.record.apply(images, draws[index], **chosen.arguments)
        return images


def augmenter(chosen: Sequence[Chosen], rng: np.random.Generator, images: int) -> Augmenter:
    """The draws of an epoch, made at once: image i has the i-th of each."""
    return Augmenter(chosen, tuple(rng.random((images, c.record.uses)) for c in chosen))
