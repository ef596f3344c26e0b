"""The order of the training images in an epoch."""

from __future__ import annotations

import numpy as np

from netdsl.data.rng import CLASSES_KEY, NUMBERS_PER_COUNT, SHUFFLES_KEY, make_rng
from netdsl.types import Array
from netdsl.values import Symbol

SHUFFLED, BALANCED = Symbol("shuffled"), Symbol("balanced")


def epoch_order(labels: Array, sampling: Symbol, seed: int, epoch: int) -> tuple[Array, Array]:
    """The numbers of the samples [N] in the order of an epoch, and for each the row of the epoch's
    draws by which it is augmented. It depends only on labels, seed and epoch.

    `shuffled`: every sample once, whose number is that of its row. `balanced`: of N samples as many
    of each class as integers allow, each with a row of its own.
    """
    if sampling == SHUFFLED:
        order = make_rng(seed, epoch).permutation(len(labels))
        return order, order
    return _balance(labels, seed, epoch), np.arange(len(labels))


def _balance(labels: Array, seed: int, epoch: int) -> Array:
    """An epoch of rounds, each of one sample of each class in random order; the last round may be
    incomplete. The samples of a class come from an endless sequence of its shuffles, which the next
    epoch continues, so that all of them are used equally often."""
    sizes = np.bincount(labels)
    sizes = sizes[sizes > 0]
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    rounds = -(-len(labels) // len(members))
    rng = make_rng(seed, CLASSES_KEY + epoch)
    classes = rng.permuted(np.tile(np.arange(len(members)), (rounds, 1)), axis=1)
    first = epoch * rounds
    samples = np.stack(
        [_repeat_shuffled(m, seed, c, first, rounds) for c, m in enumerate(members)], axis=1
    )
    found: Array = np.take_along_axis(samples, classes, axis=1).ravel()[: len(labels)]
    return found


def _repeat_shuffled(members: Array, seed: int, number: int, first: int, count: int) -> Array:
    """`count` entries, from entry `first`, of an endless sequence of shuffles of `members`."""
    size = len(members)
    start, stop = first // size, -(-(first + count) // size)
    counts = -(-size // NUMBERS_PER_COUNT)  # of one shuffle, whose last numbers may be unused
    rng = make_rng(seed, SHUFFLES_KEY + number, start * counts)
    draws = rng.random((stop - start, counts * NUMBERS_PER_COUNT))[:, :size]
    shuffles: Array = members[np.argsort(draws, axis=1, kind="stable")].ravel()
    return shuffles[first - start * size :][:count]
