"""Hold-outs of samples with several labels each: exact counts, shares of labels, none lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.data.samples import Samples, split
from netdsl.data.stratification import choose_stratified
from netdsl.errors import NetError
from netdsl.types import Array


def of_labels(labels: Array) -> Samples:
    return Samples(np.arange(len(labels)), labels.astype(np.uint8))


@st.composite
def indicators(draw: st.DrawFn) -> Array:
    """Labels [N, classes] with labels of any frequency, also none and all."""
    n, classes, seed = draw(st.integers(2, 80)), draw(st.integers(1, 7)), draw(st.integers(0, 99))
    shares = draw(st.lists(st.sampled_from([0, 0.02, 0.1, 0.5, 1]), min_size=7, max_size=7))
    drawn = np.random.default_rng(seed).random((n, classes)) < shares[:classes]
    found: Array = drawn.astype(np.uint8)
    return found


@given(indicators(), st.integers(0, 3), st.data())
def test_a_split_holds_out_the_count_and_no_image_twice(
    labels: Array, seed: int, data: st.DataObject
) -> None:
    n = len(labels)
    count = data.draw(st.integers(0, n - 1))
    whole = of_labels(labels)
    kept, held = split(whole, count, seed)
    assert len(held) == count
    assert sorted([*kept.images, *held.images]) == list(range(n))
    for part in (kept, held):
        np.testing.assert_array_equal(part.labels, labels[part.images])
        assert part.images.tolist() == sorted(part.images)
    assert split(whole, count, seed)[1].images.tolist() == held.images.tolist()
    if len(kept) >= labels.any(axis=0).sum():
        assert (kept.labels.any(axis=0) == labels.any(axis=0)).all()


def test_each_label_has_its_share() -> None:
    """Independent labels of different frequencies: no label is off by more than a plain draw
    would be on average, and by far less in sum."""
    labels = np.random.default_rng(1).random((600, 8)) < np.linspace(0.01, 0.6, 8)
    wanted = labels.sum(axis=0) * 0.2
    rng = np.random.default_rng(2)
    errors, plain = [], []
    for seed in range(5):
        held = split(of_labels(labels), 0.2, seed)[1]
        errors.append(np.abs(held.labels.sum(axis=0, dtype=int) - wanted).mean())
        drawn = rng.permutation(600)[:120]
        plain.append(np.abs(labels[drawn].sum(axis=0) - wanted).mean())
    assert max(errors) < 2 < np.mean(plain)


def test_labels_without_overlap_share_what_rounding_leaves() -> None:
    """Fifty labels of four images each, a tenth held out: no label gives four, none of them two."""
    labels = np.repeat(np.eye(50), 4, axis=0)
    held = choose_stratified(labels, 20, np.random.default_rng(0).permutation(200))
    assert held.sum() == 20
    assert (labels[held].sum(axis=0) <= 1).all()


def test_one_class_an_image_is_chosen_as_one_label_an_image() -> None:
    classes = np.repeat(np.arange(4), [40, 30, 20, 10])
    order = np.random.default_rng(0).permutation(100)
    by_class, by_label = (
        choose_stratified(labels, 20, order) for labels in (classes, np.eye(4)[classes])
    )
    for chosen in (by_class, by_label):
        assert np.bincount(classes[chosen]).tolist() == [8, 6, 4, 2]


def test_another_seed_splits_otherwise() -> None:
    labels = np.random.default_rng(3).random((60, 3)) < 0.4
    assert len({tuple(split(of_labels(labels), 20, seed)[1].images) for seed in range(4)}) == 4


def test_all_images_cannot_be_held_out() -> None:
    with pytest.raises(NetError, match="cannot be held out"):
        split(of_labels(np.ones((4, 2))), 4, 1)
