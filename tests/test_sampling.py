"""The order of an epoch: every image once, or as many of each class."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import netdsl
from netdsl.data.augment import bind_augmentation
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.rng import make_rng
from netdsl.data.samples import Samples, training_batches
from netdsl.data.sampling import BALANCED, SHUFFLED, epoch_order
from netdsl.errors import NetError
from netdsl.types import Array
from tests.conftest import ROOT

LABELS = st.lists(st.sampled_from([0, 1, 3, 4]), min_size=1, max_size=80)


def order_of(labels: list[int], seed: int, epoch: int) -> Array:
    return epoch_order(np.array(labels, np.int32), BALANCED, seed, epoch)[0]


@given(LABELS, st.integers(0, 5), st.integers(0, 1000))
def test_an_epoch_has_as_many_images_of_each_class(
    labels: list[int], seed: int, epoch: int
) -> None:
    order = order_of(labels, seed, epoch)
    assert len(order) == len(labels)
    classes = len(set(labels))
    counts = Counter(labels[i] for i in order)
    assert max(counts.values()) - min(counts[c] for c in set(labels)) <= 1
    for start in range(0, len(labels) - classes + 1, classes):  # so has every batch, nearly
        assert {labels[i] for i in order[start : start + classes]} == set(labels)
    np.testing.assert_array_equal(order, order_of(labels, seed, epoch))


@given(LABELS, st.integers(0, 5), st.integers(0, 40), st.integers(1, 30))
def test_all_images_of_a_class_are_used_equally_often(
    labels: list[int], seed: int, first: int, epochs: int
) -> None:
    """Over any epochs in a row: one more at either end, and one less for each place in an epoch's
    last round that its class does not get."""
    used = Counter(
        int(i) for epoch in range(first, first + epochs) for i in order_of(labels, seed, epoch)
    )
    left_out = epochs if len(labels) % len(set(labels)) else 0
    for c in set(labels):
        uses = [used[i] for i, label in enumerate(labels) if label == c]
        assert max(uses) - min(uses) <= 2 + left_out


def test_a_shuffle_continues_in_the_next_epoch() -> None:
    """Two classes of 6 and 3 images: an epoch has five rounds, of which the last is incomplete, so
    three of five images of the first class are in one shuffle with those of the epoch before."""
    labels = [0] * 8 + [1] * 2
    orders = [order_of(labels, 1, epoch) for epoch in range(8)]
    of_first = [i for order in orders for i in order if i < 8]
    assert all(sorted(of_first[k : k + 8]) == list(range(8)) for k in range(0, 40, 8))
    assert len({tuple(of_first[k : k + 8]) for k in range(0, 40, 8)}) == 5


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    labels = [0] * 30 + [1] * 10
    keys = [(seed, epoch) for seed in (1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(order_of(labels, *key)) for key in keys}) == 6


@given(st.integers(0, 5), st.integers(0, 40), st.integers(1, 30))
def test_a_counter_skips_numbers(seed: int, counter: int, count: int) -> None:
    whole = make_rng(seed, 7).random(4 * counter + count)
    np.testing.assert_array_equal(make_rng(seed, 7, counter).random(count), whole[4 * counter :])


def test_the_default_order_is_that_of_the_first_version() -> None:
    rng = np.random.Generator(np.random.Philox(key=np.array([3, 5], np.uint64)))
    order, rows = epoch_order(np.zeros(40, np.int32), SHUFFLED, 3, 5)
    assert order.tolist() == rows.tolist() == rng.permutation(40).tolist()


FLIP = Preprocessing((bind_augmentation("hflip"),), (1, 2, 1))


def flipped_batches(first: int = 0) -> list[tuple[list[int], list[bool]]]:
    """The images and what is flipped, in an epoch whose only image of class 1 is in every round."""
    images = np.stack([2 * np.arange(40), 1 + 2 * np.arange(40)], axis=1).astype(np.uint8)
    samples = Samples(images[:, None, :, None], (np.arange(40) == 7).astype(np.int32))
    batches = training_batches(samples, 8, 1, 2, first, FLIP, BALANCED)
    found = [np.asarray(b.images)[:, 0, 0, 0] for b in batches]
    return [((x // 2).tolist(), (x % 2 == 1).tolist()) for x in found]


def test_an_image_that_occurs_again_is_augmented_otherwise() -> None:
    flips = [
        f
        for images, flips in flipped_batches()
        for i, f in zip(images, flips, strict=True)
        if i == 7
    ]
    assert len(flips) == 20
    assert 4 <= sum(flips) <= 16


@pytest.mark.parametrize("batches", [1, 3])
def test_an_epoch_goes_on_where_it_stopped(batches: int) -> None:
    assert flipped_batches(8 * batches) == flipped_batches()[batches:]


TEXT = """net a { input(8x8x1) -> fc(10) }
data { source = digits, batch = 50, sampling = balanced, limit = [("8", 0.05)] }
train { epochs = 2 }"""


def test_a_balanced_epoch_is_described(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(TEXT)
    code, out, _ = netdsl("train", "a.net", "--dry-run")
    assert code == 0
    assert "  in an epoch: 1,186, 118 or 119 of each class (`sampling = balanced`)" in out
    code, out, _ = netdsl("train", "a.net", "--dry-run", "--json")
    assert json.loads(out)["main"]["data"]["balanced"] is True


def test_balance_needs_one_class_an_image(tmp_path: Path) -> None:
    images = np.zeros((40, 4, 4, 1), np.uint8)
    labels = np.random.default_rng(1).integers(0, 2, (40, 3))
    text = """net a { input(4x4x1) -> fc(3) }
data { batch = 8, sampling = balanced }
train { epochs = 1, loss = bce }"""
    (tmp_path / "a.net").write_text(text)
    with pytest.raises(NetError, match="needs one class per image") as e:
        netdsl.train(tmp_path / "a.net", data=(images, labels), out=tmp_path / "run")
    assert "class_weights=balanced" in e.value.render()


@pytest.mark.slow
def test_what_helps_a_rare_class(netdsl: Any) -> None:
    """Each recipe of the unbalanced digits meets its expectations."""
    file = ROOT / "models" / "unbalanced.net"
    for name in ("plain", "weighted", "focal", "sampled"):
        code, out, _ = netdsl("train", f"{file}:{name}", "-o", name)
        assert code == 0, out
