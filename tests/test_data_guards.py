"""What is said of data at the edge of what is right: the last that passes, and the first that does
not; and the numbers that images are scaled and coloured by."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.data.augment import bind_augmentation
from netdsl.data.config import STATISTICS, resolve_data
from netdsl.data.idx import read_idx
from netdsl.data.npz import read_arrays
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.rng import make_rng
from netdsl.data.samples import Dataset, Samples, split, training_batches
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.evaluate import Scope, evaluate
from netdsl.language.parse import parse_expression
from netdsl.types import TensorType
from netdsl.values import Argument, Symbol
from tests.test_data import idx, samples
from tests.test_sources import GOOD, record

# ---- files that are cut off, or too long


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_an_idx_file_is_as_long_as_it_says(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Every beginning of one is refused, and so is one with anything behind it."""
    whole = idx((2, 3), bytes(range(6)))
    path = tmp_path / ("x.gz" if pack is gzip.compress else "x")
    path.write_bytes(pack(whole))
    assert read_idx(tmp_path, "x", 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    for content in (*(whole[:n] for n in range(len(whole))), whole + b"\0"):
        path.write_bytes(pack(content))
        with pytest.raises(NetError, match=r"not an idx file|fewer values|more values"):
            read_idx(tmp_path, "x", 2)
    for n in range(len(pack(whole)) if pack is gzip.compress else 0):
        path.write_bytes(pack(whole)[:n])
        with pytest.raises(NetError, match=r"x\.gz"):
            read_idx(tmp_path, "x", 2)


@pytest.mark.parametrize("rank", [1, 3])
def test_an_idx_file_has_the_axes_that_are_wanted(tmp_path: Path, rank: int) -> None:
    (tmp_path / "x").write_bytes(idx((2, 3)))
    with pytest.raises(NetError, match=f"not an idx file of bytes with {rank} axes"):
        read_idx(tmp_path, "x", rank)


@pytest.mark.parametrize("cut", [1, 100, 3072, 3073 + 3072])
def test_a_cifar_batch_is_whole_records(tmp_path: Path, cut: int) -> None:
    whole = record(0, 1, 2, 3) + record(9, 1, 2, 3)
    for name in ("data_batch_1.bin", "data_batch_2.bin"):
        (tmp_path / name).write_bytes(whole)
    assert SOURCES["cifar10"].load(tmp_path, path=None).train.labels.tolist() == [0, 9] * 2
    (tmp_path / "data_batch_2.bin").write_bytes(whole[:-cut])
    with pytest.raises(
        NetError, match=r"data_batch_2.bin has .* bytes, not a whole number of images"
    ):
        SOURCES["cifar10"].load(tmp_path, path=None)


@pytest.mark.parametrize("label", [10, 11, 255])
def test_a_cifar_label_is_one_of_ten(tmp_path: Path, label: int) -> None:
    (tmp_path / "test_batch.bin").write_bytes(record(label, 0, 0, 0))
    (tmp_path / "data_batch_1.bin").write_bytes(record(0, 0, 0, 0))
    dataset = SOURCES["cifar10"].load(tmp_path, path=None)
    assert dataset.read_test is not None
    with pytest.raises(NetError, match=f"test_batch.bin gives image 0 the label {label}"):
        dataset.read_test()


# ---- MNIST: four files that must fit


def mnist(folder: Path, **changed: bytes) -> Dataset:
    files = {
        "train_images": idx((3, 28, 28)),
        "train_labels": idx((3,), bytes([0, 9, 5])),
        "t10k_images": idx((2, 28, 28)),
        "t10k_labels": idx((2,), bytes([9, 0])),
    }
    for name, content in {**files, **changed}.items():
        part, what = name.split("_")
        (folder / f"{part}-{what}-idx{3 if what == 'images' else 1}-ubyte").write_bytes(content)
    return SOURCES["mnist"].load(folder, path=None)


def test_a_right_set_is_read(tmp_path: Path) -> None:
    found = mnist(tmp_path)
    assert found.train.labels.tolist() == [0, 9, 5]
    assert found.read_test is not None
    assert found.read_test().labels.tolist() == [9, 0]


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("train_images", idx((3, 28, 27)), "contains images of 28x27, not 28x28"),
        ("train_images", idx((3, 27, 28)), "contains images of 27x28, not 28x28"),
        ("train_images", idx((2, 28, 28)), "2 images in train-.*, 3 in train-"),
        ("train_images", idx((4, 28, 28)), "4 images in train-.*, 3 in train-"),
        ("train_labels", idx((3,), bytes([0, 10, 1])), "train-labels-.* contains the label 10"),
        ("train_labels", idx((3, 1), bytes([0, 1, 1])), "not an idx file of bytes with 1 axes"),
        ("t10k_images", idx((2, 14, 14)), "t10k-images-.* contains images of 14x14"),
        ("t10k_images", idx((3, 28, 28)), "3 images in t10k-.*, 2 in t10k-"),
        ("t10k_images", idx((1, 28, 28)), "1 images in t10k-.*, 2 in t10k-"),
        ("t10k_labels", b"", "t10k-labels-.* is not an idx file"),
    ],
)
def test_a_file_that_does_not_fit_is_named_before_training(
    tmp_path: Path, file: str, content: bytes, complaint: str
) -> None:
    with pytest.raises(NetError, match=complaint):
        mnist(tmp_path, **{file: content})


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("t10k_labels", idx((2,), bytes([10, 0])), "contains the label 10"),
        ("t10k_images", idx((2, 28, 28))[:-1], "fewer values than its header declares"),
        ("t10k_images", idx((2, 28, 28)) + b"x", "more values than its header declares"),
    ],
)
def test_what_is_wrong_in_a_test_file_is_found_when_it_is_read(
    tmp_path: Path, file: str, content: bytes, complaint: str
) -> None:
    dataset = mnist(tmp_path, **{file: content})
    assert dataset.read_test is not None
    with pytest.raises(NetError, match=complaint):
        dataset.read_test()


# ---- arrays


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": np.zeros(5, int)}, "4 images and 5 labels"),
        ({"labels": np.zeros(3, int)}, "4 images and 3 labels"),
        ({"test_labels": np.zeros(3, int)}, "2 test_images and 3 test_labels"),
        ({"labels": np.array([0, 1, 2, -1])}, "the label -1"),
        ({"labels": np.array([0, 1, 2, 100_000])}, "the label 100000"),
        ({"test_labels": np.array([-1, 0])}, "`test_labels` in .* the label -1"),
        ({"test_images": np.ones((2, 5, 6, 1), np.uint8)}, "5x6x1 and 5x6x3"),
        ({"test_images": np.ones((2, 6, 5, 3), np.uint8)}, "5x6x3 and 6x5x3"),
        ({"test_images": np.ones((2, 5, 6), np.uint8)}, "5x6x1 and 5x6x3"),
        ({"images": np.ones((4, 5, 6, 3), np.int8)}, "int8"),
        ({"labels": np.array([0.0, 1, 2, 1])}, "not one integer"),
        ({"labels": np.array([True, False, True, True])}, "not one integer"),
    ],
)
def test_arrays_at_the_edge(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    np.savez(tmp_path / "x.npz", **{**GOOD, **change})
    with pytest.raises(NetError, match=complaint):
        read_arrays(tmp_path / "x.npz")


def test_the_largest_label_is_read(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 99_999])
    np.savez(tmp_path / "x.npz", **{**GOOD, "labels": labels})
    assert len(read_arrays(tmp_path / "x.npz").classes) == 100_000


# ---- samples


def test_a_fingerprint_changes_with_every_image_label_and_class() -> None:
    images, labels = (
        np.arange(24, dtype=np.uint8).reshape(3, 2, 2, 2),
        np.array([0, 1, 0], np.int32),
    )
    known = Dataset(Samples(images, labels), ("a", "b")).fingerprint
    others = [
        Dataset(Samples(images ^ np.uint8(1), labels), ("a", "b")),
        Dataset(Samples(images, 1 - labels), ("a", "b")),
        Dataset(Samples(images[::-1], labels), ("a", "b")),
        Dataset(Samples(images[:2], labels[:2]), ("a", "b")),
        Dataset(Samples(images.reshape(3, 2, 4, 1), labels), ("a", "b")),
        Dataset(Samples(images, labels), ("a", "b", "c")),
    ]
    assert len({known, *(d.fingerprint for d in others)}) == len(others) + 1
    assert Dataset(Samples(images.copy(), labels.copy()), ("a", "b")).fingerprint == known


@pytest.mark.parametrize(
    ("held_out", "left"), [(0, 10), (9, 1), (0.0, 10), (0.95, 0), (0.94, 1), (0.06, 9), (10, 0)]
)
def test_what_is_held_out_leaves_something_to_learn_from(held_out: float, left: int) -> None:
    numbered = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    one_class = Samples(numbered, np.zeros(10, np.int32))
    if not left:
        with pytest.raises(NetError, match="cannot be held out of 10"):
            split(one_class, held_out, seed=1)
        return
    train, held = split(one_class, held_out, seed=1)
    assert (len(train), len(held)) == (left, 10 - left)
    assert sorted([*train.images.ravel(), *held.images.ravel()]) == list(range(10))


def test_a_share_that_is_no_sample_is_told() -> None:
    with pytest.raises(NetError, match=r"a share of 0\.04 of 10 samples rounds to 0"):
        split(samples(10), 0.04, seed=1)


# ---- numbers that images are made of

PUBLISHED = {
    "mnist": ([0.1307], [0.3081]),
    "fashion_mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "imagenet_mean": ([0.485, 0.456, 0.406], [1 / 255] * 3),
    "by(mean=[0.1, 0.2], std=[0.5, 0.25])": ([0.1, 0.2], [0.5, 0.25]),
    "by(mean=0.5, std=[0.5, 0.25])": ([0.5, 0.5], [0.5, 0.25]),
}
"""What examples of libraries and papers take away from pixels in [0, 1], and divide by."""


def prepared(normalize: str, pixels: np.ndarray) -> np.ndarray:
    chosen = evaluate(parse_expression(normalize, ""), Scope())
    entries = (Argument("source", Symbol("digits")), Argument("normalize", chosen))
    config = resolve_data(entries, None)
    b = Builder(dtype="float32")
    x = b.input("x", TensorType(pixels.shape, "uint8"))
    return evaluate_results(b.build({"y": config.normalize_pixels(b, x)}), {"x": pixels})["y"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_are_normalised_by_published_numbers(name: str) -> None:
    mean, std = (np.array(v) for v in PUBLISHED[name])
    pixels = np.array([0, 1, 128, 255], np.uint8)[:, None, None, None].repeat(len(mean), axis=3)
    expected = (pixels / 255.0 - mean) / std
    np.testing.assert_allclose(prepared(name, pixels), expected, rtol=1e-5, atol=1e-5 / std.min())


def test_every_known_normalisation_has_its_numbers_here() -> None:
    assert {name.partition("(")[0] for name in PUBLISHED} == STATISTICS.keys()


@pytest.mark.parametrize(
    ("normalize", "channels"),
    [("cifar10", 1), ("by(mean=[0, 0], std=1)", 3), ("by(mean=0, std=[1, 1])", 3)],
)
def test_statistics_of_other_channels_are_refused(normalize: str, channels: int) -> None:
    with pytest.raises(NetError, match=f"the image has {channels}"):
        prepared(normalize, np.zeros((1, 2, 2, channels), np.uint8))


def changed(name: str, image: list[int], draws: list[float], **given: Any) -> list[float]:
    chosen = bind_augmentation(name, **given)
    images = np.array(image, np.uint8).reshape(1, 1, 1, 3)
    found = chosen.record.apply(images, np.array([draws]), (1, 1), **chosen.arguments)
    return [int(v) for v in found.reshape(-1)]


def test_a_picture_without_saturation_has_the_brightness_of_rec_601() -> None:
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 1.0}
    for image, grey in (([200, 0, 0], 60), ([0, 200, 0], 117), ([0, 0, 200], 23)):
        assert changed("color_jitter", image, [0.5, 0.5, 0.0, 0.0], **none) == [grey] * 3


@pytest.mark.parametrize(
    ("component", "added"),
    [
        (0, [-0.5675 * 55.46, -0.5808 * 55.46, -0.5836 * 55.46]),
        (1, [0.7192 * 4.794, -0.0045 * 4.794, -0.6948 * 4.794]),
        (2, [0.4009 * 1.148, -0.8140 * 1.148, 0.4203 * 1.148]),
    ],
)
def test_light_is_added_along_the_published_components(component: int, added: list[float]) -> None:
    """Of two deviations, as a draw of 0.97725 is; the others are drawn as 0."""
    draws = [0.977249868 if i == component else 0.5 for i in range(3)]
    found = changed("lighting", [128, 128, 128], draws, std=1.0)
    assert found == [round(128 + 2 * a) for a in added]


def test_an_image_has_the_draw_of_its_own_number() -> None:
    """Whatever place it has in the order of an epoch: a run goes on with the same pictures."""
    seed, epoch, n = 3, 5, 40
    images = np.tile(np.array([1, 2], np.uint8).reshape(1, 1, 2, 1), (n, 1, 1, 1))
    flips = Preprocessing((bind_augmentation("hflip"),), (1, 2, 1))
    draws = make_rng(seed, 2**33 + epoch).random((n, 1))[:, 0]
    labelled = Samples(images, np.arange(n, dtype=np.int32))
    for batch in training_batches(labelled, 8, seed, epoch, augment=flips):
        first = np.asarray(batch.images)[:, 0, 0, 0]
        assert (first == 2).tolist() == (draws[batch.labels] < 0.5).tolist()
