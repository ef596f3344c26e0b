"""What each of several ranks reads and evaluates: together, what a single one does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from netdsl.backends.lazy_batch import DeviceImages, materialize
from netdsl.data.augment import bind_augmentation
from netdsl.data.mixing import Mixer
from netdsl.data.pictures import Pictures, SkippedPictures, write_picture
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Batch, Samples, evaluation_batches, training_batches
from netdsl.data.sampling import BALANCED, SHUFFLED
from netdsl.data.shard import Shard
from netdsl.errors import NetError
from netdsl.ranks.array_message import pack_arrays, unpack_arrays
from netdsl.training.run.tally import Tally, merge_tallies
from netdsl.types import Array
from tests.test_mixing import chosen
from tests.thread_ranks import run_ranks

SHAPE, CLASSES = (6, 5, 3), 3
KINDS = ("bytes", "device", "floats", "pictures")
MOVES = (bind_augmentation("hflip"), bind_augmentation("random_crop", pad=2))
"""They only move pixels, so that images of a device stay there."""
OTHERS = (bind_augmentation("color_jitter"), bind_augmentation("scale_jitter", sides=(6, 9)))
GOOD, BAD = 7, 4
"""The pictures in the folder, by the numbers in their names: good ones first."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(GOOD + BAD):
        picture = np.random.default_rng(i).integers(0, 256, (7 + i % 3, 8, 3), np.uint8)
        write_picture(folder / f"{i}.png", picture)
    for i in range(GOOD, GOOD + BAD):
        path = folder / f"{i}.png"
        path.write_bytes(path.read_bytes()[:-40])
    return folder


def draw_samples(data: st.DataObject, folder: Path, kind: str, n: int) -> Samples:
    rng = np.random.default_rng(n)
    images: Any = rng.integers(0, 256, (n, *SHAPE), np.uint8)
    if kind == "device":
        images = DeviceImages(images, images)
    elif kind == "floats":
        images = rng.random((n, *SHAPE), np.float32)
    elif kind == "pictures":
        numbers = data.draw(st.lists(st.integers(0, GOOD + BAD - 1), min_size=n, max_size=n))
        images = Pictures(folder, np.array([f"{i}.png" for i in numbers], dtype=object))
    if data.draw(st.booleans()):
        return Samples(images, rng.integers(0, 2, (n, CLASSES), np.uint8))
    return Samples(images, rng.integers(0, CLASSES, n).astype(np.int32))


def draw_preprocessing(data: st.DataObject, kind: str) -> Preprocessing:
    choices = {"bytes": (*MOVES, *OTHERS), "device": MOVES, "floats": ()}.get(kind, MOVES + OTHERS)
    picked = [c for c in choices if data.draw(st.booleans())]
    return Preprocessing(tuple(picked), None if kind == "floats" else SHAPE)


def draw_mixer(data: st.DataObject, epoch: int) -> Mixer | None:
    p = data.draw(st.sampled_from([0.5, 1.0]))
    names = data.draw(st.lists(st.sampled_from(["mixup", "cutmix"]), max_size=2, unique=True))
    mixings = [chosen(name, p=p) for name in names]
    return Mixer(mixings, CLASSES, 1, epoch) if mixings else None


def skip(samples: Samples) -> Samples:
    """The same, as a process of its own reads them."""
    return samples.skip_bad_pictures(SkippedPictures())


def read(batches: Iterator[Batch]) -> list[list[Array]]:
    """The arrays of each batch; an empty list for an error, which ends them."""
    found = []
    try:
        for b in batches:
            targets = [] if b.targets is None else [b.targets]
            found.append([materialize(b.images), b.labels, b.weights, *targets])
    except NetError as e:
        if "pictures in a batch can be used" not in str(e):
            raise
        found.append([])
    return found


def assert_same(found: Sequence[Array], expected: Sequence[Array]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data(), ranks=st.integers(1, 4), share=st.integers(1, 4), epoch=st.integers(0, 3))
def test_the_parts_of_the_ranks_are_the_batches_of_one(
    folder: Path, kind: str, data: st.DataObject, ranks: int, share: int, epoch: int
) -> None:
    size = ranks * share
    samples = draw_samples(data, folder, kind, data.draw(st.integers(size, 3 * size + 2)))
    first = data.draw(st.integers(0, len(samples)))
    prepare, mixer = draw_preprocessing(data, kind), draw_mixer(data, epoch)
    can_balance = not samples.is_multi_label
    sampling = BALANCED if can_balance and data.draw(st.booleans()) else SHUFFLED

    def batches(shard: Shard) -> list[list[Array]]:
        own = skip(samples)
        return read(training_batches(own, size, 1, epoch, first, prepare, sampling, shard, mixer))

    parts = [batches(Shard(rank, ranks)) for rank in range(ranks)]
    for expected, *found in zip(batches(Shard()), *parts, strict=True):
        assert_same([np.concatenate(x) for x in zip(*found, strict=True)], expected)


def test_a_rank_reads_no_more_than_its_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor, of batches that are mixed, more than the partners of it."""
    opened: list[str] = []
    open_picture = Preprocessing._open

    def counted(self: Preprocessing, path: Path) -> Any:
        opened.append(path.name)
        return open_picture(self, path)

    monkeypatch.setattr(Preprocessing, "_open", counted)
    names = np.array([f"{i % GOOD}.png" for i in range(24)], dtype=object)
    samples = Samples(Pictures(folder, names), np.zeros(24, np.int32))
    prepare, shard = Preprocessing((), SHAPE), Shard(1, 4)
    read(training_batches(samples, 12, 1, 0, augment=prepare, shard=shard))
    assert len(opened) == 6
    opened.clear()
    mixer = Mixer([chosen("mixup", p=0.5)], 1, 1, 0)
    read(training_batches(samples, 12, 1, 0, augment=prepare, shard=shard, mixer=mixer))
    assert 6 <= len(opened) <= 12


def test_a_part_without_usable_pictures_has_no_weight(folder: Path) -> None:
    """The others of the batch have some, and stand in for them."""
    names = np.array([f"{i}.png" for i in (GOOD, 0, GOOD + 1, 1)], dtype=object)
    samples = Samples(Pictures(folder, names), np.arange(4, dtype=np.int32))
    for seed in range(20):
        found = [
            read(training_batches(skip(samples), 4, seed, 0, 0, PLAIN, shard=Shard(rank, 2)))
            for rank in range(2)
        ]
        weights = [rank[0][2].sum() for rank in found]
        assert sum(weights) == 2
        if 0 in weights:
            return
    raise AssertionError("no seed puts the bad pictures into one part")


PLAIN = Preprocessing((), SHAPE)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(st.data(), st.integers(0, 20), st.integers(1, 5), st.integers(1, 5))
def test_the_batches_of_an_evaluation_are_dealt_to_the_ranks(
    folder: Path, kind: str, data: st.DataObject, n: int, size: int, ranks: int
) -> None:
    samples = draw_samples(data, folder, kind, n)
    prepare = Preprocessing((), None if kind == "floats" else SHAPE)

    def batches(shard: Shard) -> list[list[Array]]:
        return read(evaluation_batches(skip(samples), size, prepare, shard))

    parts = [batches(Shard(rank, ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1  # collectives stay in step
    dealt = chain.from_iterable(zip(*parts, strict=True))
    for found, expected in zip_longest(dealt, batches(Shard())):
        if expected is not None:
            assert_same(found, expected)
        else:
            assert not found[2].any()
            assert len(found[0]) == len(found[2]) == size


# ---- tallies


@given(
    st.dictionaries(
        st.text(max_size=4),
        arrays(
            st.sampled_from([np.int64, np.float32, np.uint8, np.bool_]), array_shapes(min_dims=0)
        ),
        max_size=4,
    )
)
def test_a_message_has_the_arrays_that_were_packed(given_arrays: dict[str, Array]) -> None:
    found = unpack_arrays(pack_arrays(given_arrays))
    assert list(found) == list(given_arrays)
    assert_same(list(found.values()), list(given_arrays.values()))


def make_outputs(rng: np.random.Generator, labels: Array, weights: Array) -> dict[str, Array]:
    """What the evaluation of a batch may find; a score may be NaN."""
    n = len(weights)
    scores = rng.normal(size=(n, CLASSES)).astype(np.float32).round(1)
    scores[rng.random(n) < 0.05] = np.nan
    sums = {key: np.float32(weights.sum() * rng.random()) for key in ("loss", "top1", "top5")}
    shares = 1 / (1 + np.exp(-scores))
    count = np.float32(weights.sum())
    return {**sums, "count": count, "scores": scores, "probabilities": shares}


@settings(max_examples=60)
@given(
    st.integers(1, 20), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_merged_tallies_are_that_of_a_single_rank(
    n: int, size: int, ranks: int, is_multi_label: bool, keeps_scores: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (n, CLASSES) if is_multi_label else (n,)
    labels = rng.integers(0, 2 if is_multi_label else CLASSES, shape).astype(np.int32)
    numbers = np.arange(n) // size  # the pixels of an image are the number of its batch
    samples = Samples(np.broadcast_to(numbers[:, None, None, None], (n, 1, 1, 1)), labels)
    batches = list(evaluation_batches(samples, size))
    outputs = [make_outputs(rng, b.labels, b.weights) for b in batches]
    empty = {key: 0 * x for key, x in outputs[-1].items()}
    whole, *parts = (
        Tally(CLASSES, is_multi_label, keeps_scores, has_matrix=not is_multi_label)
        for _ in range(ranks + 1)
    )
    for batch, out in zip(batches, outputs, strict=True):
        whole.add(batch.labels, batch.weights, out)
    for rank, part in enumerate(parts):
        for batch in evaluation_batches(samples, size, shard=Shard(rank, ranks)):
            number = int(materialize(batch.images)[0, 0, 0, 0])
            found = outputs[number] if batch.weights.any() else empty
            part.add(batch.labels, batch.weights, found)
    merged = parts[0].merge([part.pack() for part in parts])
    expected, found = whole.score(), merged.score()
    assert found.images == expected.images
    np.testing.assert_allclose(
        [found.loss, found.accuracy], [expected.loss, expected.accuracy], rtol=1e-14
    )
    assert_same(*(list(vars(s.counts).values()) for s in (found, expected)))
    assert (found.ranking is None) == (expected.ranking is None) == (not keeps_scores)
    if found.ranking is not None and expected.ranking is not None:
        assert_same(list(vars(found.ranking).values()), list(vars(expected.ranking).values()))
    kept, given = (unpack_arrays(tally.pack()) for tally in (merged, whole))
    for name in ("labels", "probabilities"):  # in the order of the images
        assert (name in kept) == (name in given) == keeps_scores
        if keeps_scores:
            assert_same([kept[name]], [given[name]])
    if whole.confusion is not None and merged.confusion is not None:
        assert_same([merged.confusion], [whole.confusion])


def test_every_rank_gets_the_same_score() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 5).astype(np.int32)
    weights = np.ones(5, np.float32)

    def work(communicator: Any) -> Any:
        own = np.random.default_rng(communicator.rank)
        tally = Tally(CLASSES, keeps_scores=True)
        tally.add(labels, weights, make_outputs(own, labels, weights))
        return merge_tallies(communicator, tally).score()

    first, *others = run_ranks(3, work)
    assert first.images == 15
    for other in others:
        assert (other.loss, other.accuracy) == (first.loss, first.accuracy)
        assert_same(list(vars(other.ranking).values()), list(vars(first.ranking).values()))


def test_where_no_image_counts_every_rank_says_so() -> None:
    def work(communicator: Any) -> str:
        labels, weights = np.zeros(2, np.int32), np.zeros(2, np.float32)
        tally = Tally(CLASSES)
        rng = np.random.default_rng(0)
        tally.add(labels, weights, make_outputs(rng, labels, weights))
        with pytest.raises(NetError, match="none of the images to evaluate on can be used"):
            merge_tallies(communicator, tally).score()
        return "said"

    assert run_ranks(2, work) == ["said", "said"]
