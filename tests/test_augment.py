"""Augmentation depends on seed, epoch and image alone; batches are made ready in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from netdsl.data.augment import bind_augmentation as chosen
from netdsl.data.prefetch import prefetch
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Samples, training_batches

ALL = Preprocessing((chosen("hflip"), chosen("random_crop", pad=2), chosen("cutout", size=3)))
RNG = np.random.default_rng(0)
SAMPLES = Samples(RNG.integers(0, 256, (40, 8, 9, 3)).astype(np.uint8), np.arange(40))


def changed(size: int, epoch: int = 0, seed: int = 1, begin: int = 0) -> dict[int, Any]:
    """Every image of an epoch after augmentation, by its label."""
    batches = training_batches(SAMPLES, size, seed, epoch, begin, ALL)
    return {
        int(label): image for b in batches for label, image in zip(b.labels, b.images, strict=True)
    }


def test_what_happens_to_an_image_does_not_depend_on_its_batch() -> None:
    whole = changed(40)
    for size, begin in ((1, 0), (8, 0), (5, 10), (4, 36)):
        for label, image in changed(size, begin=begin).items():
            np.testing.assert_array_equal(image, whole[label])


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 2}])
def test_epochs_and_seeds_differ(other: dict[str, int]) -> None:
    first, second = changed(40), changed(40, **other)
    same = sum(np.array_equal(first[i], second[i]) for i in range(40))
    assert same < 4
    again = changed(40, **other)
    assert all(np.array_equal(second[i], again[i]) for i in range(40))


def apply(name: str, draws: list[list[float]], **arguments: Any) -> Any:
    c = chosen(name, **arguments)
    images = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1).repeat(len(draws), axis=0)
    return c.record.apply(images, np.array(draws), (5, 5), **c.arguments)[..., 0]


def test_flips() -> None:
    kept, flipped = apply("hflip", [[0.7], [0.3]])
    np.testing.assert_array_equal(flipped, kept[:, ::-1])


def test_crops_move_the_image() -> None:
    plain = apply("hflip", [[0.9]])[0]
    first, middle, last = apply("random_crop", [[0, 0], [0.5, 0.5], [0.999, 0.999]], pad=2)
    np.testing.assert_array_equal(middle, plain)
    np.testing.assert_array_equal(first[2:, 2:], plain[:-2, :-2])
    assert not first[:2].any()
    assert not first[:, :2].any()
    np.testing.assert_array_equal(last[:-2, :-2], plain[2:, 2:])


def test_pictures_that_are_enlarged_are_not_padded() -> None:
    """Whether there are pixels around them is decided by the size that they have."""
    images = np.full((20, 8, 8, 1), 200, np.uint8)
    crop, draws = chosen("random_crop"), np.random.default_rng(0).random((20, 2))
    for window, black in (((16, 16), False), ((8, 8), True), ((9, 9), False)):
        found = crop.record.apply(images, draws, window, **crop.arguments)
        assert found.shape == (20, *window, 1)
        assert (found == 0).any() == black


@pytest.mark.parametrize(("size", "pixels"), [(1, 1), (2, 4), (3, 9), (4, 16)])
def test_cutout_is_a_square_that_may_lie_outside(size: int, pixels: int) -> None:
    inside, corner = apply("cutout", [[0.5, 0.5], [0.0, 0.0]], size=size)
    assert (inside == 128).sum() == pixels
    assert 0 < (corner == 128).sum() <= pixels
    assert corner[0, 0] == 128


def test_prefetched_items_come_in_order_and_in_advance() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    stream = prefetch(items(), depth=3)
    assert next(stream) == 0
    for _ in range(100):
        if len(made) >= 4:
            break
        time.sleep(0.01)
    assert 4 <= len(made) <= 6
    assert list(stream) == list(range(1, 20))


def test_what_goes_wrong_in_the_background_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("a broken image")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="a broken image"):
        next(stream)


def test_nobody_asks_any_more_and_the_thread_ends() -> None:
    before = threading.active_count()
    stream = prefetch(iter(range(10**9)), depth=2)
    assert next(stream) == 0
    stream.close()
    assert threading.active_count() == before


def test_a_run_with_augmentation_resumes_to_the_same_bits(tmp_path: Any) -> None:
    from netdsl.backends import open_backend
    from netdsl.language.parse import parse
    from netdsl.language.program import build_program
    from netdsl.training.run.trainer import Trainer
    from netdsl.training.store.resume import load_continuation

    text = """net a { input(8x8x1); fc(10) }
    data { source = digits, batch = 50, augment = [random_crop(1), hflip(0.2), cutout(2)] }
    train { epochs = 2 }"""
    ends = []
    for stop in (None, 5, 30):
        out, asked = tmp_path / str(stop), iter([False] * (stop or 999) + [True] * 99)
        trainer = Trainer(build_program(parse(text)), None, open_backend("reference"))
        try:
            trainer.run(out, lambda p: None, lambda m: None, lambda asked=asked: next(asked))
        except KeyboardInterrupt:
            found = load_continuation(out)
            trainer = Trainer(found.program, None, trainer.backend, saved=found.saved)
            trainer.run(out, lambda p: None, lambda m: None)
        ends.append((out / "last.safetensors").read_bytes())
    assert ends[0] == ends[1] == ends[2]
