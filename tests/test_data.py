"""Samples, splits, batches, the idx format and what is said of damaged files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.data.idx import read_idx
from netdsl.data.pictures import read_picture
from netdsl.data.samples import Samples, evaluation_batches, split, training_batches
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError


def samples(n: int) -> Samples:
    labels = np.arange(n, dtype=np.int32)
    return Samples(labels.astype(np.uint8).reshape(n, 1, 1, 1), labels)


def of_classes(labels: list[int]) -> Samples:
    return Samples(np.arange(len(labels)), np.array(labels, np.int32))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 3), st.data())
def test_a_split_is_a_partition_by_class_and_depends_on_the_seed(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    n, whole = len(labels), of_classes(labels)
    count = data.draw(st.integers(0, n - len(set(labels))))
    kept, held = split(whole, count, seed)
    assert len(held) == count
    assert sorted([*kept.images, *held.images]) == list(range(n))
    assert set(kept.labels) == set(labels)
    for part in (kept, held):
        np.testing.assert_array_equal(part.labels, whole.labels[part.images])
        assert part.images.tolist() == sorted(part.images)
    again = split(whole, count, seed)[1]
    assert again.images.tolist() == held.images.tolist()
    sizes, taken = (np.bincount(x, minlength=6) for x in (whole.labels, held.labels))
    shares = sizes * count / n
    capped = np.minimum(shares, np.maximum(sizes - 1, 0))
    assert (taken >= np.floor(capped)).all()
    if (np.ceil(shares) < sizes)[sizes > 0].all():
        assert (np.abs(taken - shares) < 1).all()


def test_another_seed_splits_otherwise() -> None:
    found = {tuple(split(of_classes([0, 1] * 50), 20, seed)[1].images) for seed in range(5)}
    assert len(found) == 5


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        ([0] * 50 + [1] * 50, 10, [5, 5]),
        ([0] * 90 + [1] * 10, 0.1, [9, 1]),
        ([0] * 95 + [1] * 5, 0.1, [9, 1]),
        ([0] * 99 + [1], 0.5, [50, 0]),
        ([0] * 2 + [1] * 2, 2, [1, 1]),
        ([0] * 40 + [2] * 40, 20, [10, 0, 10]),
        ([1], 0, [0, 0]),
    ],
)
def test_each_class_is_held_out_by_its_share(
    labels: list[int], count: int | float, expected: list[int]
) -> None:
    found = np.bincount(split(of_classes(labels), count, 1)[1].labels, minlength=len(expected))
    assert found.tolist() == expected


def test_no_split_takes_all_of_a_class() -> None:
    with pytest.raises(NetError, match="3 samples held out of 4 leave no training samples"):
        split(of_classes([0, 0, 1, 1]), 3, 1)
    with pytest.raises(NetError, match="cannot be held out"):
        split(of_classes([0, 0, 1, 1]), 4, 1)
    with pytest.raises(NetError, match="rounds to 0"):
        split(of_classes([0, 0, 1, 1]), 0.01, 1)


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_sees_every_sample_at_most_once(n: int, size: int, seed: int) -> None:
    batches = [b.labels for b in training_batches(samples(n), size, seed, epoch=0)]
    assert [len(b) for b in batches] == [size] * (n // size)
    seen = np.concatenate(batches) if batches else np.array([])
    assert len(set(seen.tolist())) == len(seen)


def test_epochs_differ_and_repeat() -> None:
    first, second, again = (
        next(training_batches(samples(50), 50, 1, epoch)).labels.tolist() for epoch in (0, 1, 0)
    )
    assert first == again != second


@given(st.integers(1, 50), st.integers(1, 12))
def test_evaluation_counts_every_sample_once(n: int, size: int) -> None:
    counted = [
        label
        for b in evaluation_batches(samples(n), size)
        for label, weight in zip(b.labels, b.weights, strict=True)
        if weight
    ]
    assert counted == list(range(n))


def idx(shape: tuple[int, ...], body: bytes | None = None) -> bytes:
    head = struct.pack(">BBBB", 0, 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    return head + (bytes(int(np.prod(shape))) if body is None else body)


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_are_read(tmp_path: Path, compressed: bool) -> None:
    content = idx((2, 3), bytes(range(6)))
    name = tmp_path / ("labels.gz" if compressed else "labels")
    name.write_bytes(gzip.compress(content) if compressed else content)
    assert read_idx(tmp_path, "labels", 2).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08\x01", "not an idx file"),
        (idx((3,), b"ab"), "fewer values"),
        (idx((1,), b"ab"), "more values"),
        (b"\0\0\x09" + idx((1,))[3:], "not an idx file"),
        (idx((4_000_000_000,), b"ab"), "damaged"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(NetError, match=complaint) as e:
        read_idx(tmp_path, "labels", 1)
    assert "labels" in str(e.value)


def test_a_truncated_gz_is_told(tmp_path: Path) -> None:
    (tmp_path / "labels.gz").write_bytes(gzip.compress(idx((1000,)))[:-12])
    with pytest.raises(NetError, match="cannot read"):
        read_idx(tmp_path, "labels", 1)


def write_mnist(folder: Path, images: bytes, labels: bytes) -> None:
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (idx((2, 28, 28)), idx((3,)), "2 images in"),
        (idx((1, 14, 14)), idx((1,)), "images of 14x14"),
        (idx((0, 28, 28)), idx((0,)), "no images"),
        (idx((1, 28, 28)), idx((1,), b"\x0b"), "label 11"),
    ],
)
def test_sources_check_what_they_read(
    tmp_path: Path, images: bytes, labels: bytes, complaint: str
) -> None:
    write_mnist(tmp_path, images, labels)
    with pytest.raises(NetError, match=complaint):
        SOURCES["mnist"].load(tmp_path, path=None)


def test_missing_files_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path))
    with pytest.raises(NetError) as e:
        SOURCES["mnist"].load(None, path=None)
    assert "t10k-images-idx3-ubyte.gz" in e.value.render()
    assert str(tmp_path) in e.value.render()


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.image_shape])
def test_sources_give_what_they_announce(name: str, request: pytest.FixtureRequest) -> None:
    source = SOURCES[name]
    if name == "digits":
        dataset = source.load(None)
    else:
        folder = request.getfixturevalue("data_dir") / name
        if not folder.is_dir():
            pytest.skip(f"no {folder}")
        dataset = source.load(folder, path=None)
    assert dataset.train.images.shape[1:] == source.image_shape
    assert dataset.classes == source.classes
    assert set(np.unique(dataset.train.labels)) == set(range(len(source.classes)))
    assert dataset.train.images.dtype == np.uint8
    assert dataset.read_test is not None or name == "cifar10"


def picture(path: Path, mode: str, size: tuple[int, int]) -> Path:
    from PIL import Image

    Image.new(mode, size).save(path)
    return path


@pytest.mark.parametrize(("mode", "name"), [("L", "a.png"), ("RGBA", "b.png"), ("P", "c.gif")])
def test_pictures_become_bytes_of_the_net_s_shape(tmp_path: Path, mode: str, name: str) -> None:
    found = read_picture(picture(tmp_path / name, mode, (5, 9)), 3)
    assert found.shape == (9, 5, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_what_is_no_picture_is_told(tmp_path: Path, content: Any) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(NetError, match="not a readable picture"):
        read_picture(tmp_path / "x.png", 1)
