"""Chooses some of the samples of a set so that each class or label has its share of them."""

from __future__ import annotations

import numpy as np

from netdsl.types import Array


def choose_stratified(labels: Array, count: int, order: Array) -> Array:
    """Which samples to choose, [N] bool: `count` of them, of each class or label the same share as
    nearly as integers allow, the first ones in `order`, a permutation of the samples.

    Of labels [N], one class per sample, never all of a class: `count` is at most the samples less
    one for each class. Of labels [N, classes], several a sample, `count` may be any up to N; a
    label that a sample has remains among those that are not chosen if there are at least as many
    of these as labels."""
    if labels.ndim == 2:
        return _choose_by_label(labels[order].astype(bool), count)[np.argsort(order)]
    sizes = np.bincount(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]
    rank_in_class = np.arange(len(labels)) - np.repeat(
        np.cumsum(sizes) - sizes, sizes
    )  # of each sample in its class
    is_chosen = np.zeros(len(labels), bool)
    is_chosen[by_class[rank_in_class < np.repeat(compute_quotas(sizes, count), sizes)]] = True
    return is_chosen


def compute_quotas(sizes: Array, count: int) -> Array:
    """How many samples to take from classes of these sizes, `count` in all, by largest remainder
    (ties: the smaller class first); never all of a class. `count` may be at most the total less one
    per class."""
    shares = sizes.astype(np.int64) * count
    found, remainders = shares // sizes.sum(), shares % sizes.sum()
    while missing := count - int(found.sum()):
        candidates = np.flatnonzero(found + 1 < sizes)
        ranked = candidates[np.lexsort((found[candidates], -remainders[candidates]))][:missing]
        found[ranked] += 1
        remainders[ranked] = 0
    return found


def _choose_by_label(has_label: Array, count: int) -> Array:
    """Iterative stratification (Sechidis et al. 2011) into two parts of given sizes: the rarest
    label among the samples that are left is divided first, as later labels, of more samples, can
    make up for what it does to them. What rounding takes from one label, the next one gets."""
    n, by_label = len(has_label), np.ascontiguousarray(has_label.T)
    wanted = has_label.sum(axis=0) * (count / n)
    is_left, is_chosen = ~_cover_labels(by_label, n - count), np.zeros(n, bool)
    rounding = 0.0
    sizes = has_label[is_left].sum(axis=0)
    while sizes.any():
        label = int(np.where(sizes, sizes, n + 1).argmin())
        members = np.flatnonzero(is_left & by_label[label])
        share = min(max(wanted[label] + rounding, 0.0), float(len(members)))
        to_choose = count - int(is_chosen.sum())
        to_leave = int(is_left.sum()) - to_choose
        quota = min(max(round(share), len(members) - to_leave), to_choose)
        rounding = min(max(share - quota, -0.5), 0.5)
        chosen = members[:quota]
        is_chosen[chosen], is_left[members] = True, False
        wanted -= has_label[chosen].sum(axis=0)
        sizes -= has_label[members].sum(axis=0)
    unlabelled = np.flatnonzero(is_left)
    is_chosen[unlabelled[: count - int(is_chosen.sum())]] = True
    return is_chosen


def _cover_labels(by_label: Array, limit: int) -> Array:
    """Samples that together have every label, the rarest labels first; at most `limit` of them.
    `by_label` [classes, N] says which samples have each label."""
    sizes, n = by_label.sum(axis=1), by_label.shape[1]
    is_cover = np.zeros(n, bool)
    for label in np.argsort(sizes, kind="stable"):
        members = np.flatnonzero(by_label[label])
        if len(members) and not is_cover[members].any() and is_cover.sum() < limit:
            is_cover[members[0]] = True
    return is_cover
