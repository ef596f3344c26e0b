"""The limit of a data section: which part of the training images a run learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netdsl.data.inventory import abbreviate
from netdsl.data.rng import LIMIT_KEY, make_rng
from netdsl.data.samples import Samples
from netdsl.errors import fail, suggest_name
from netdsl.parameter_types import (
    Float,
    Integer,
    ListOfPairs,
    QuotedText,
    TypeMismatch,
)
from netdsl.text_escaping import escape_line
from netdsl.types import Array
from netdsl.values import Value

Amount = int | float | None
"""A number of images, a share of them below 1, or None: all of them."""
Limit = Amount | tuple[tuple[str, Amount], ...]
"""Of all training images, or of those of some classes."""


_WANTED = (
    "a number of images (500), a share of them (0.1), or pairs of a class in quotes and either "
    '([("8", 0.1)])'
)


@dataclass(frozen=True)
class _AmountKind:
    """A number of images, or a share of them; all of them are None."""

    def accept(self, value: Value) -> Amount:
        if value is None:
            return None
        try:
            if isinstance(value, float):
                share = Float(above=0, high=1).accept(value)
                return None if share == 1 else share
            return Integer().accept(value)
        except TypeMismatch:
            raise TypeMismatch(_WANTED) from None


@dataclass(frozen=True)
class LimitKind:
    """An amount of the training images, or amounts of those of some classes."""

    def accept(self, value: Value) -> Limit:
        if not isinstance(value, tuple):
            return _AmountKind().accept(value)
        try:
            pairs = ListOfPairs(QuotedText(), _AmountKind()).accept(value)
        except TypeMismatch:
            raise TypeMismatch(_WANTED) from None
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise fail(f"`limit` names the class `{escape_line(twice[0])}` twice")
        return pairs or None


def check_limit_classes(limit: Limit, classes: Sequence[str]) -> None:
    """Raises NetError if a limit names a class that the data lacks."""
    for name, _ in limit if isinstance(limit, tuple) else ():
        if name not in classes:
            help = suggest_name(name, classes, "its classes are")
            message = f"`limit` names the class `{escape_line(name)}`, which is not in the data set"
            raise fail(message, help=help or f"its classes are {abbreviate(classes)}")


def limit_samples(samples: Samples, limit: Limit, classes: Sequence[str], seed: int) -> Samples:
    """The part of the samples that a limit keeps, in their order. It is drawn with the seed, and a
    larger limit keeps what a smaller one does.

    An amount of all samples takes the same share of each class, as nearly as integers allow, and at
    least one sample; with several labels per sample, of each set of labels. An amount of a class
    removes samples of that class alone; a sample of several labels must be within the amount of
    each. Raises NetError if there are not as many samples, or if a class loses its last one.
    """
    if limit is None:
        return samples
    check_limit_classes(limit, classes)
    ranked = rank_samples(samples.labels, seed)
    if isinstance(limit, tuple):
        kept = samples.take(np.flatnonzero(_is_within(limit, samples.labels, classes, ranked)))
    else:
        count = _resolve_amount(limit, len(samples), "training images")
        kept = samples.take(np.sort(ranked[:count]))
    _check_no_empty_class(samples, kept, classes)
    return kept


def _is_within(
    pairs: Sequence[tuple[str, Amount]], labels: Array, classes: Sequence[str], ranked: Array
) -> Array:
    """Whether each sample is within the amount of each of its classes."""
    found = np.ones(len(labels), bool)
    for name, amount in pairs:
        if amount is not None:
            members = ranked[_has_class(labels[ranked], classes.index(name))]
            of = f"training images of `{escape_line(name)}`"
            found[members[_resolve_amount(amount, len(members), of) :]] = False
    return found


def rank_samples(labels: Array, seed: int) -> Array:
    """The numbers of the samples in the order in which a limit takes them: first one of each class,
    then so that every class keeps its share.

    The k-th sample of a class of n has the place (k - 1/2) / n, as in the method of Webster: the
    first samples of the order round the share of each class to the nearest integer, and never lose
    one as their number grows. Sets of labels begin at a random place instead, as most of them are
    too rare to have a share.
    """
    rng = make_rng(seed, LIMIT_KEY)
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    if labels.ndim == 1:
        groups, start = shuffled, np.array(0.5)
    else:
        groups = np.unique(shuffled, axis=0, return_inverse=True)[1].ravel()
        start = rng.random(1 + groups.max())[groups]
    places = (_rank_in_group(groups) + start) / np.bincount(groups)[groups]
    places[_first_of_each_class(shuffled)] = -1
    found: Array = order[np.argsort(places, kind="stable")]
    return found


def _rank_in_group(groups: Array) -> Array:
    """The number of earlier entries with the same value, for each entry."""
    sizes = np.bincount(groups)
    ranks = np.empty(len(groups), np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    ranks[np.argsort(groups, kind="stable")] = np.arange(len(groups)) - starts
    return ranks


def _first_of_each_class(labels: Array) -> Array:
    if labels.ndim == 1:
        return np.unique(labels, return_index=True)[1]
    return np.unique(labels.argmax(axis=0)[labels.any(axis=0)])


def _has_class(labels: Array, number: int) -> Array:
    found: Array = labels == number if labels.ndim == 1 else labels[:, number] > 0
    return found


def _resolve_amount(amount: int | float, there: int, of: str) -> int:
    """The number of samples that an amount of them is. Raises NetError if it is none, or more than
    there are."""
    count = amount if isinstance(amount, int) else round(amount * there)
    if count > there:
        raise fail(
            f"`limit` asks for {count:,} {of}, but there are only {there:,}",
            help="images that are held out do not count; a share (0.5) works for any number of "
            "images, and `none` takes all of them",
        )
    if count == 0:
        message = f"a share of {amount} of {there:,} {of} rounds to 0"
        raise fail(message, help="set a larger `limit`, or a number of images")
    return count


def _check_no_empty_class(whole: Samples, kept: Samples, classes: Sequence[str]) -> None:
    before, now = (x.count_by_class(len(classes)) for x in (whole, kept))
    lost = [name for name, a, b in zip(classes, before, now, strict=True) if a and not b]
    if lost:
        share = "; `1.0` and `none` take all images" if len(kept) == 1 else ""
        raise fail(
            f"the `limit` leaves no training images of {abbreviate(lost)}",
            help=f"keep at least one image of each class: there are {len(classes):,}{share}",
        )
