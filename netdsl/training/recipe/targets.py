"""What the scores of a batch are compared with, as nodes that a loss reads."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.ir.builder import Builder
from netdsl.ir.collectives import mean_over_ranks
from netdsl.types import Node

LABEL_THRESHOLD = 0.5
"""An image is predicted to have the labels with a larger probability."""


@dataclass(frozen=True)
class Targets:
    """The targets of a batch of N images of `classes` classes.

    `labels` int32 [N] is the class of each image, for mixed images that with the larger share; None
    for data with several labels per image. `distribution` [N, classes] is the distribution of
    mixed images or, with several labels, 1 where an image has the label; None if the labels say
    all. `weights` [N] is 0 for images that do not count."""

    classes: int
    weights: Node
    labels: Node | None = None
    distribution: Node | None = None
    ranks: int = 1
    """The number of ranks, if their batches may have other sums of weights."""

    def divisor(self, b: Builder, total: Node) -> Node:
        """By what a sum over a batch is divided so that the mean over all ranks is that of all
        their batches, if `total` is the sum of weights of this one."""
        if self.ranks == 1:
            return total
        return mean_over_ranks(b, total, self.ranks)

    def smooth(self, b: Builder, smoothing: float = 0.0) -> Node:
        """The targets as [N, classes]: 1 at the label and 0 elsewhere, or the given distribution,
        with `smoothing` of it spread evenly over the classes."""
        if self.distribution is None:
            assert self.labels is not None
            return b.one_hot(self.labels, classes=self.classes, smoothing=smoothing, dtype=b.dtype)
        if smoothing == 0:
            return self.distribution
        rest = b.mul(self.distribution, b.const(1 - smoothing))
        return b.add(rest, b.const(smoothing / self.classes))
