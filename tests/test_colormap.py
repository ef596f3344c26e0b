"""Colour maps and scales: what a colour says, by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.insight.color_scale import FONT_SIZE, render_scale, render_text
from netdsl.insight.colormap import (
    DIVERGING,
    SEQUENTIAL,
    ColorMap,
    blend,
    normalize,
    normalize_signed,
)

MAPS = (SEQUENTIAL, DIVERGING)
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colors", MAPS, ids=lambda m: m.name)
def test_a_map_passes_through_its_control_points(colors: ColorMap) -> None:
    found = colors(np.linspace(0, 1, len(colors.colors)))
    assert [bytes(c).hex() for c in found] == list(colors.colors)
    assert colors(np.array([[-1.0, 2.0, np.nan]])).tolist() == [
        [list(bytes.fromhex(colors.colors[i])) for i in (0, -1, 0)]
    ]


@settings(max_examples=30)
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_more_is_brighter(a: float, b: float) -> None:
    low, high = SEQUENTIAL(np.array(sorted((a, b)))) @ LUMINANCE
    assert low <= high + 1


def test_a_diverging_map_is_lightest_in_the_middle() -> None:
    brightness = DIVERGING(np.linspace(0, 1, 101)) @ LUMINANCE
    assert brightness.argmax() == 50
    blue, red = DIVERGING(np.array([0.2, 0.8])).astype(int)
    assert blue[2] > blue[0]
    assert red[0] > red[2]


@settings(max_examples=30)
@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0, 1))
def test_normalized_values_keep_their_place(a: float, b: float, share: float) -> None:
    low, high = sorted((a, b))
    found = float(normalize(np.array(low + share * (high - low)), low, high))
    assert found == pytest.approx(share if high > low else 0, abs=1e-6 + 1e-12 / (high - low or 1))


def test_zero_is_the_middle_of_signed_values() -> None:
    assert normalize_signed(np.array([-2.0, 0.0, 1.0]), 2).tolist() == [0, 0.5, 0.75]
    assert normalize_signed(np.zeros(2), 0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_a_scale_that_is_not_finite_shows_nothing(lost: float) -> None:
    values = np.array([0.5, lost])
    assert normalize(values, values.min(), values.max()).tolist() == [0, 0]
    assert normalize_signed(values, abs(values).max()).tolist() == [0.5, 0.5]


def test_opacity_mixes_picture_and_colours() -> None:
    picture, colors = np.full((1, 3, 1), 100, np.uint8), np.full((1, 3, 3), 200, np.uint8)
    assert blend(picture, colors, np.array([[0, 0.5, 1]]))[0, :, 0].tolist() == [100, 150, 200]


def test_a_scale_runs_from_high_at_the_top_to_low_at_the_bottom() -> None:
    page = render_scale(SEQUENTIAL, -1, 1, 120)
    assert page.shape[0] == 120
    bar = page[FONT_SIZE // 2 : FONT_SIZE // 2 + 120 - FONT_SIZE, 10]
    assert [bytes(bar[i]).hex() for i in (0, -1)] == [SEQUENTIAL.colors[i] for i in (-1, 0)]
    assert (page[:, 35:].min(axis=(1, 2)) < 128).any()  # numbers beside it
    assert (render_scale(SEQUENTIAL, -1, 1, 1) != 255).any()


def test_text_is_cut_to_its_width() -> None:
    page = render_text("goldfinch " * 20, 50)
    assert page.shape[1:] == (50, 3)
    assert page.min() < 128
