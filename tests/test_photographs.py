"""Preparation of photographs: sizes, ranges, nothing random where nothing is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.augment import bind_augmentation as chosen
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Samples, evaluation_batches, training_batches
from netdsl.errors import NetError
from netdsl.values import Size

sides = st.integers(1, 40)
unit = st.floats(0, 1, exclude_max=True)


def image(h: int, w: int, channels: int = 3) -> Any:
    return np.random.default_rng(h * 100 + w).integers(0, 256, (1, h, w, channels), np.uint8)


def changed(
    picture: Any, name: str, draws: tuple[float, ...] = (), window: Any = (8, 9), **given: Any
) -> Any:
    c = chosen(name, **given)
    return c.record.apply(picture, np.array([draws]), window, **c.arguments)


@given(sides, sides, st.integers(1, 50))
def test_resize_sets_the_short_side_and_keeps_the_shape(h: int, w: int, to: int) -> None:
    found = changed(image(h, w), "resize", size=to).shape[1:3]
    assert min(found) == to
    assert max(found) == max(h, w) * to // min(h, w)


def test_resize_to_both_sides_and_to_what_the_net_takes() -> None:
    assert changed(image(30, 20), "resize", size=Size((7, 5))).shape == (1, 7, 5, 3)
    assert changed(image(30, 20), "resize").shape == (1, 13, 9, 3)
    assert changed(image(4, 20), "resize").shape == (1, 8, 40, 3)
    same = image(12, 20)
    assert changed(same, "resize", size=12) is same


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resizing_keeps_channels_apart(channels: int) -> None:
    picture = np.empty((1, 9, 7, channels), np.uint8)
    picture[...] = np.arange(channels) * 60 + 10
    found = changed(picture, "resize", size=20)
    assert (found == np.arange(channels) * 60 + 10).all()


@given(sides, sides, st.integers(1, 20), st.integers(1, 20))
def test_the_middle_is_cut_out(h: int, w: int, wide: int, tall: int) -> None:
    picture = image(h, w)
    found = changed(picture, "center_crop", window=(tall, wide))
    assert found.shape[1:3] == (tall, wide)
    around = [max(0, a - b) for a, b in ((tall, h), (wide, w))]
    black = np.pad(picture, ((0, 0), *((n // 2, n - n // 2) for n in around), (0, 0)))
    top, left = (round((a - b) / 2) for a, b in zip(black.shape[1:3], (tall, wide), strict=True))
    np.testing.assert_array_equal(found, black[:, top : top + tall, left : left + wide])


@given(st.integers(8, 40), st.integers(9, 40), unit, unit)
def test_a_random_crop_is_a_part(h: int, w: int, a: float, b: float) -> None:
    picture = image(h, w)
    found = changed(picture, "random_crop", (a, b), pad=0)
    top, left = int(a * (h - 7)), int(b * (w - 8))
    np.testing.assert_array_equal(found, picture[:, top : top + 8, left : left + 9])


def test_random_crops_reach_every_place() -> None:
    corners = [
        changed(image(10, 12), "random_crop", (a, b)) for a in (0, 0.999) for b in (0, 0.999)
    ]
    picture = image(10, 12)
    for found, (top, left) in zip(corners, [(0, 0), (0, 3), (2, 0), (2, 3)], strict=True):
        np.testing.assert_array_equal(found, picture[:, top : top + 8, left : left + 9])


def test_black_pixels_stand_around_pictures_that_are_no_larger() -> None:
    assert not changed(image(8, 9), "random_crop", (0, 0))[:, :4].any()
    assert changed(image(9, 10), "random_crop", (0, 0))[:, 0].any()
    with pytest.raises(NetError, match="224 black pixels"):
        changed(image(30, 30), "random_crop", (0, 0), pad=224)


@given(unit, sides, sides)
def test_scale_jitter_keeps_to_its_ends(draw: float, h: int, w: int) -> None:
    found = changed(image(h, w), "scale_jitter", (draw,), sides=(5, 9)).shape[1:3]
    assert 5 <= min(found) <= 9


def test_scale_jitter_reaches_both_ends() -> None:
    ends = [changed(image(4, 6), "scale_jitter", (d,), sides=(5, 9)) for d in (0, 0.9999)]
    assert [min(x.shape[1:3]) for x in ends] == [5, 9]


NEUTRAL = {"color_jitter": (0.5, 0.5, 0.5, 0.3), "lighting": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("name", NEUTRAL)
def test_colours_stay_where_the_draw_is_neutral(name: str) -> None:
    picture = image(5, 6)
    np.testing.assert_array_equal(changed(picture, name, NEUTRAL[name]), picture)
    moved = changed(picture, name, (0.9, 0.2, 0.7, 0.1)[: len(NEUTRAL[name])])
    assert moved.dtype == np.uint8
    assert moved.shape == picture.shape
    assert (moved != picture).any()


def test_color_jitter_changes_what_it_says() -> None:
    picture = np.clip(image(20, 20), 60, 120)
    plain = picture.astype(float)
    widths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    brighter = changed(picture, "color_jitter", (1, 0, 0, 0), **{**widths, "brightness": 0.5})
    np.testing.assert_allclose(brighter, plain * 1.5, atol=0.51)
    flatter = changed(picture, "color_jitter", (0, 0, 0, 0), **{**widths, "contrast": 1.0})
    assert np.ptp(flatter) == 0
    assert abs(float(flatter.mean()) - plain.mean()) < 5
    grey = changed(picture, "color_jitter", (0, 0, 0, 0), **{**widths, "saturation": 1.0})
    assert (grey == grey[..., :1]).all()
    assert changed(image(5, 5, 1), "color_jitter", (0.9,) * 4).shape == (1, 5, 5, 1)


def test_lighting_adds_one_colour_to_every_pixel() -> None:
    picture = np.full((1, 4, 4, 3), 128, np.uint8)
    picture[:, :2] = 100
    moved = changed(picture, "lighting", (0.9, 0.4, 0.2)).astype(int) - picture
    assert len(np.unique(moved.reshape(-1, 3), axis=0)) == 1
    rng = np.random.default_rng(1)
    many = np.full((3000, 1, 1, 3), 128, np.uint8)
    c = chosen("lighting", std=0.1)
    added = c.record.apply(many, rng.random((3000, 3)), (1, 1), **c.arguments) - 128.0
    strongest = np.linalg.eigh(np.cov(added.reshape(-1, 3).T))
    assert strongest.eigenvalues[-1] ** 0.5 == pytest.approx(5.546, rel=0.05)
    assert np.abs(strongest.eigenvectors[:, -1]).min() > 0.5
    with pytest.raises(NetError, match="1 channels"):
        changed(image(4, 4, 1), "lighting", (0.5,) * 3)


PHOTOGRAPHS = (
    chosen("scale_jitter", sides=(10, 20)),
    chosen("random_crop", pad=0),
    chosen("hflip"),
    chosen("color_jitter"),
    chosen("lighting"),
)
SAMPLES = Samples(
    np.random.default_rng(0).integers(0, 256, (20, 12, 16, 3), np.uint8), np.arange(20)
)


def epoch(size: int, seed: int = 1, number: int = 0) -> dict[int, Any]:
    batches = training_batches(
        SAMPLES, size, seed, number, 0, Preprocessing(PHOTOGRAPHS, (8, 9, 3))
    )
    return {int(n): x for b in batches for n, x in zip(b.labels, b.images, strict=True)}


def test_a_photograph_depends_on_seed_epoch_and_itself() -> None:
    whole = epoch(20)
    assert {x.shape for x in whole.values()} == {(8, 9, 3)}
    for n, x in epoch(4).items():
        np.testing.assert_array_equal(x, whole[n])
    for other in (epoch(20, seed=2), epoch(20, number=1)):
        assert sum(np.array_equal(x, whole[n]) for n, x in other.items()) < 3


STEADY = [n for n, a in AUGMENTATIONS.items() if not a.draw_count]


def test_evaluation_has_nothing_random() -> None:
    assert STEADY == ["resize", "center_crop"]
    transform = Preprocessing((chosen("resize", size=10), chosen("center_crop")), (8, 9, 3))
    first, again = (
        np.concatenate([b.images for b in evaluation_batches(SAMPLES, size, transform)])[:20]
        for size in (20, 7)
    )
    assert first.shape == (20, 8, 9, 3)
    np.testing.assert_array_equal(first, again)


def test_pictures_that_no_change_cuts_are_fitted() -> None:
    found = Preprocessing((chosen("scale_jitter", sides=(10, 20)),), (8, 9, 3))(SAMPLES.images)
    assert found.shape == (20, 8, 9, 3)


@given(st.lists(st.sampled_from(sorted(AUGMENTATIONS)), max_size=5), st.integers(9, 30), st.data())
def test_any_list_of_changes_gives_bytes_of_the_net_s_shape(
    names: list[str], side: int, data: st.DataObject
) -> None:
    small = {"scale_jitter": {"sides": (9, 15)}, "resize": {"size": data.draw(st.integers(1, 20))}}
    kept = [chosen(n, **small.get(n, {})) for n in names]
    prepare = Preprocessing((*kept, chosen("scale_jitter", sides=(9, 15))), (8, 9, 3))
    images = image(side, 20).repeat(3, axis=0)
    rng = np.random.default_rng(5)
    found = prepare(images, prepare.draw(rng, 3))
    assert found.shape == (3, 8, 9, 3)
    assert found.dtype == np.uint8
