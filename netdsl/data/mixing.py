"""Augmentations that mix the images of a batch and their labels: their table, and mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from netdsl.backends.lazy_batch import LazyBatch, materialize
from netdsl.data.revisions import Revisions
from netdsl.data.rng import MIX_KEY, make_rng
from netdsl.parameter_types import Float
from netdsl.signature import BoundCall, Param, Signature
from netdsl.types import Array

STEPS = 2**8
"""Shares are multiples of 1/256: pixels are bytes, and a product of two bytes fits into 16 bits."""
_CHUNK = 2**16
"""Pixels that are mixed at once; their products stay in the cache of a core."""


@dataclass(frozen=True)
class Mixing:
    """`mix(images, partners, share, rng)` mixes the first images, one for each of `partners` [N],
    with the image of that number: a `share` of the result is from the image itself. Returns the
    images [N,...] and the exact share."""

    signature: Signature
    mix: Callable[[Array, Array, float, np.random.Generator], tuple[Array, float]]
    doc: str
    needs_pictures: bool = False
    revisions: Revisions = ()
    mixes_labels: bool = True
    is_random: bool = True


def blend(
    images: Array, partners: Array, share: float, rng: np.random.Generator
) -> tuple[Array, float]:
    """Mixup: a weighted mean of the pixels; bytes are rounded."""
    steps = round(share * STEPS)
    if images.dtype != np.uint8:
        own, other = np.float32(steps / STEPS), np.float32(1 - steps / STEPS)
        return images[: len(partners)] * own + images[partners] * other, steps / STEPS
    found = np.empty((len(partners), *images.shape[1:]), np.uint8)
    count = max(1, _CHUNK // max(1, images[0].size))
    buffers = np.empty((2, count, *images.shape[1:]), np.uint16)  # new ones cost more than sums
    for start in range(0, len(found), count):
        part = slice(start, start + count)
        own, other = buffers[:, : len(found[part])]
        own[:], other[:] = images[: len(found)][part], images[partners[part]]
        own *= np.uint16(steps)
        other *= np.uint16(STEPS - steps)
        own += other
        own += np.uint16(STEPS // 2)
        own >>= np.uint16(8)
        found[part] = own
    return found, steps / STEPS


def paste(
    images: Array, partners: Array, share: float, rng: np.random.Generator
) -> tuple[Array, float]:
    """CutMix: a box of the partner in the same place. Its sides are those of the image times
    sqrt(1 - share), and its centre is any pixel; what is outside of the image is clipped, so the
    exact share is usually larger."""
    (top, bottom), (left, right) = (_draw_interval(side, share, rng) for side in images.shape[1:3])
    found = images[: len(partners)].copy()
    found[:, top:bottom, left:right] = images[partners, top:bottom, left:right]
    height, width = images.shape[1:3]
    return found, 1 - (bottom - top) * (right - left) / (height * width)


def _draw_interval(side: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    half, centre = int(side * sqrt(1 - share)) // 2, int(rng.integers(side))
    return max(0, centre - half), min(side, centre + half)


def _parameters(alpha: float) -> tuple[Param, Param]:
    return Param("alpha", Float(0.001, 1000), alpha), Param("p", Float(0, 1), 1)


MIXINGS: dict[str, Mixing] = {
    m.signature.name: m
    for m in (
        Mixing(
            Signature("mixup", _parameters(0.2)),
            blend,
            "averages the images and labels of a batch with a permutation of the batch, with a "
            "share from Beta(alpha, alpha) and probability `p` (Zhang et al. 2018)",
        ),
        Mixing(
            Signature("cutmix", _parameters(1)),
            paste,
            "pastes a box from another image of the batch and mixes the labels by its area, "
            "whose share is from Beta(alpha, alpha), with probability `p` (Yun et al. 2019)",
            needs_pictures=True,
        ),
    )
}


@dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed: `partners` is a random order of them."""

    chosen: BoundCall
    share: float
    partners: Array
    rng: np.random.Generator

    def __call__(
        self, images: Array | LazyBatch, labels: Array, weights: Array, own: Array, partners: Array
    ) -> tuple[Array, Array, Array]:
        """Mixes the first images, one for each of `partners` [N]. Where an image or its partner is
        of weight 0, as its label is not of its pixels, the image stays by itself. `own` are the
        labels as distributions. Returns images, labels and targets."""
        count = len(partners)
        is_whole = (weights[:count] == 0) | (weights[partners] == 0)
        partners = np.where(is_whole, np.arange(count), partners)
        mix = self.chosen.record.mix
        found, share = mix(materialize(images), partners, self.share, self.rng)
        targets = own[:count] * np.float32(share) + own[partners] * np.float32(1 - share)
        return found, labels[:count] if share >= 0.5 else labels[partners], targets


@dataclass(frozen=True)
class Mixer:
    """Mixes the batches of an epoch, by one of `mixings` each. How a batch is mixed depends only on
    seed, epoch and its number."""

    mixings: Sequence[BoundCall]
    classes: int
    seed: int
    epoch: int

    def draw(self, number: int, size: int) -> Mix | None:
        """How a batch of `size` images is mixed; None if it is not."""
        rng = make_rng(self.seed, MIX_KEY + self.epoch, number << 64)
        chosen = self.mixings[int(rng.integers(len(self.mixings)))]
        if rng.random() >= chosen.arguments["p"]:
            return None
        share = rng.beta(chosen.arguments["alpha"], chosen.arguments["alpha"])
        return Mix(chosen, share, rng.permutation(np.arange(size)), rng)

    def as_distribution(self, labels: Array) -> Array:
        """The labels as float32 [N, classes]."""
        if labels.ndim == 2:
            return labels.astype(np.float32)
        found = np.zeros((len(labels), self.classes), np.float32)
        found[np.arange(len(labels)), labels] = 1
        return found
