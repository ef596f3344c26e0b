"""Pictures of what a net has learnt: filters, feature maps, and what a channel answers to most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netdsl.backends import open_backend
from netdsl.inference import Predictor
from netdsl.insight.feature_visualization import GREY, AscentSettings, ascend, visualize_channels
from netdsl.insight.filters import MAX_FILTERS, render_filters
from netdsl.insight.image_grid import MAX_ENLARGED_SIDE, make_grid, scale_signed, scale_to_range
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.runtime.state import draw_initial_value
from netdsl.training.store.checkpoint import Checkpoint, save

NET = """
net n {
  input(8x8x3)
  c: conv(2, 3x3, bias=no) -> relu
  w: conv(4, 1x1, weight=weightnorm(he)) -> batchnorm
  head: fc(2)
}
data { source = arrays("none.npz") }
train { net = n }
"""


def kept(folder: Path, text: str = NET, **states: Any) -> Path:
    """A checkpoint of a net whose weights are as drawn, but those that are given."""
    network = elaborate(build_program(parse(text)), None, Settings())
    values = {n.name: draw_initial_value(n, 1) for n in network.graph.states}
    values |= {name: np.asarray(v, dtype=np.float32) for name, v in states.items()}
    path = folder / "weights.safetensors"
    save(path, Checkpoint(values, text, ("0", "1"), {}, {}))
    return path


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


def test_a_filter_is_scaled_about_middle_grey() -> None:
    maps = np.array([[-2.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).reshape(2, 2, 2, 1)
    assert scale_signed(maps).reshape(2, 4).tolist() == [[0, 128, 191, 255], [128, 128, 128, 128]]


def test_a_map_is_stretched_from_black_to_white() -> None:
    maps = np.array([[3.0, 4.0, 5.0, 8.0], [7.0, 7.0, 7.0, 7.0]]).reshape(2, 2, 2, 1)
    assert scale_to_range(maps).reshape(2, 4).tolist() == [[0, 51, 102, 255], [0, 0, 0, 0]]


def test_tiles_lie_row_by_row() -> None:
    maps = (
        np.arange(3, dtype=np.uint8)
        .reshape(3, 1, 1, 1)
        .repeat(MAX_ENLARGED_SIDE, 1)
        .repeat(MAX_ENLARGED_SIDE, 2)
    )
    page = make_grid(maps)[..., 0]
    assert page.shape == (2 * MAX_ENLARGED_SIDE + 2, 2 * MAX_ENLARGED_SIDE + 2)
    corners = [page[0, 0], page[0, -1], page[-1, 0], page[-1, -1], page[MAX_ENLARGED_SIDE, 0]]
    assert corners == [0, 1, 2, 255, 255]
    assert (page[:MAX_ENLARGED_SIDE, :MAX_ENLARGED_SIDE] == 0).all()


def test_small_maps_are_enlarged_and_large_ones_are_not() -> None:
    small, large = (np.zeros((1, n, n, 1), np.uint8) for n in (5, MAX_ENLARGED_SIDE + 1))
    assert make_grid(small).shape == (60, 60, 1)
    assert make_grid(large).shape == (MAX_ENLARGED_SIDE + 1, MAX_ENLARGED_SIDE + 1, 1)


def test_filters_of_many_channels_are_rows_of_grey_maps() -> None:
    weights = np.zeros((MAX_FILTERS + 3, 1, 1, 4), np.float32)
    weights[1, 0, 0] = [1, -1, 0, 0.5]
    page = render_filters(weights)[..., 0]
    step = MAX_ENLARGED_SIDE + 2
    assert page.shape == (MAX_FILTERS * step - 2, 4 * step - 2)
    assert page[step, ::step].tolist() == [255, 0, 128, 191]


def test_filters_of_three_channels_are_in_colour(netdsl: Any, tmp_path: Path) -> None:
    weights = np.zeros((2, 3, 3, 3))
    weights[0, 0, 0] = [1, 0, -1]
    weights[1, 2, 2] = [0, 4, 0]
    path = kept(tmp_path, **{"c.conv1.weight": weights})
    assert netdsl("filters", str(path), "-o", "f.png") == (
        0,
        "f.png: `c.conv1`, 2 filters of 3x3x3\n",
        "",
    )
    page = pixels(tmp_path / "f.png")
    assert page.shape == (63, 128, 3)
    assert page[0, 0].tolist() == [255, 128, 0]
    assert page[-1, -1].tolist() == [128, 255, 128]
    assert page[30, 30].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    ("shape", "tiles", "said"),
    [
        ((96, 3, 3, 3), 96, "96 filters of 3x3x3"),
        ((130, 5, 5, 1), 130, "130 filters of 5x5x1"),
        (
            (96, 1, 1, 70),
            64 * 64,
            "the first 64 of 96 filters of 1x1x70, the first 64 of 70 channels",
        ),
        ((8, 1, 1, 65), 8 * 64, "8 filters of 1x1x65, the first 64 of 65 channels"),
        ((65, 1, 1, 2), 64 * 2, "the first 64 of 65 filters of 1x1x2"),
    ],
)
def test_what_is_said_of_filters_is_what_is_drawn(
    shape: tuple[int, ...], tiles: int, said: str, netdsl: Any, tmp_path: Path
) -> None:
    """Each tile has a pixel at its upper left that is not paper, beside gaps that are."""
    k, r, s, c = shape
    net = f"net n {{ input({r}x{s}x{c}); a: conv({k}, {r}x{s}, bias=no) }}"
    net += '\ndata { source = arrays("none.npz") }\ntrain { net = n }'
    path = kept(tmp_path, net, **{"a.weight": np.zeros(shape)})
    code, out, err = netdsl("filters", str(path), "-o", "f.png")
    assert code == 0, err
    assert out == f"f.png: `a`, {said}{' of each' * ('channels' in said)}\n"
    page, step = pixels(tmp_path / "f.png"), MAX_ENLARGED_SIDE // max(r, s) * max(r, s) + 2
    assert (page[::step, ::step].reshape(-1, 3 if c == 3 else 1) == 128).all(axis=1).sum() == tiles
    found = json.loads(netdsl("filters", str(path), "-o", "f.png", "--json")[1])
    assert np.prod(found["drawn"]) // (c if c in (1, 3) else 1) == tiles


def test_filters_that_are_computed_from_other_weights(netdsl: Any, tmp_path: Path) -> None:
    path = kept(tmp_path)
    code, out, _ = netdsl("filters", str(path), "w", "-o", "f.png", "--json")
    assert (code, json.loads(out)["layer"], json.loads(out)["shape"]) == (
        0,
        "w.conv1",
        [4, 1, 1, 2],
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("filters", "W", "c.conv", "-o", "f.png"), "did you mean `c.conv1`?"),
        (("filters", "W", "-o", "f.jpg"), "does not end in .png"),
        (("filters", "none", "-o", "f.png"), "there is no checkpoint"),
        (("visualize", "W", "hed", "-o", "f.png"), "did you mean `head`?"),
        (("visualize", "W", "c:2", "-o", "f.png"), "its 2 channels are numbered 0 to 1"),
        (("visualize", "W", "c:x", "-o", "f.png"), "`x` is not a channel"),
        (("visualize", "W", "input", "-o", "f.png"), "nothing is learned there"),
        (("visualize", "W", "c", "-o", "f.txt"), "does not end in .png"),
        (("activations", "W", "none.png", "c", "-o", "f.png"), "there is no picture none.png"),
        (("activations", "W", "none.png", "cc", "-o", "f.png"), "did you mean `c`?"),
        (("activations", "W", "none.png", "head", "-o", "f.png"), "a vector, not feature maps"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    netdsl: Any, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    path = kept(tmp_path)
    code, out, err = netdsl(*(str(path) if w == "W" else w for w in words))
    assert (code, out) == (2, "")
    assert said in err
    assert not list(tmp_path.glob("f.*"))


def test_feature_maps_of_a_picture(netdsl: Any, tmp_path: Path) -> None:
    weights = np.zeros((2, 3, 3, 3))
    weights[0, 1, 1, 0] = 1  # the red channel, a pixel cut off all round
    path = kept(tmp_path, **{"c.conv1.weight": weights})
    red = np.zeros((8, 8, 3), np.uint8)
    red[1:7, 1:7, 0] = np.arange(36).reshape(6, 6) * 7
    Image.fromarray(red).save(tmp_path / "p.png")
    code, out, _ = netdsl("activations", str(path), "p.png", "c", "-o", "m.png", "--device", "cpu")
    assert (code, out) == (0, "m.png: `c`, 2 maps of 6x6\n")
    page = pixels(tmp_path / "m.png")
    factor = MAX_ENLARGED_SIDE // 6
    shown = page[: 6 * factor : factor, : 6 * factor : factor].astype(int)
    assert np.abs(shown - np.round(np.arange(36).reshape(6, 6) / 35 * 255)).max() <= 1
    assert (page[: 6 * factor, 6 * factor + 2 :] == 0).all()


ONE_UNIT = """
net n { input(8x8x1); unit: fc(2, bias=no) }
data { source = arrays("none.npz") }
train { net = n }
"""


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_unit_of_known_weights_is_answered_best_by_their_signs(
    tmp_path: Path, device: str
) -> None:
    rng = np.random.default_rng(3)
    weights = rng.uniform(0.5, 1, (2, 64)) * rng.choice((-1, 1), (2, 64))
    trained = Predictor(kept(tmp_path, ONE_UNIT, **{"unit.weight": weights}), open_backend(device))
    bare = AscentSettings(steps=400, jitter=0, decay=0, blur=0)
    channels, found = visualize_channels(trained, "unit", None, 16, bare)
    assert channels == (0, 1)
    best = np.where(weights > 0, 255.0, 0.0).reshape(2, 8, 8, 1)
    np.testing.assert_array_equal(found.pictures, best)
    np.testing.assert_allclose(
        found.final_activations, (weights * best.reshape(2, 64)).sum(1) / 255, rtol=1e-5
    )
    assert all(
        a > b for a, b in zip(found.final_activations, found.initial_activations, strict=True)
    )


def test_pictures_climb_and_repeat(netdsl: Any, tmp_path: Path) -> None:
    path = str(kept(tmp_path))
    words = ("visualize", path, "w", "--steps", "40", "--device", "reference", "--json")
    code, out, _ = netdsl(*words, "-o", "one.png")
    rows = json.loads(out)["channels"]
    assert code == 0
    assert [r["channel"] for r in rows] == [0, 1, 2, 3]
    assert all(r["after"] > r["before"] for r in rows)
    netdsl(*words, "-o", "two.png")
    netdsl(*words, "-o", "three.png", "--seed", "2")
    one, two, three = ((tmp_path / f"{n}.png").read_bytes() for n in ("one", "two", "three"))
    assert one == two != three
    assert pixels(tmp_path / "one.png").shape == (130, 130, 3)


def test_what_moves_before_a_look_is_moved_back_behind_it() -> None:
    """An ascent that makes each pixel more of what it is: all of them keep their places."""
    how = AscentSettings(steps=40, rate=6.0, jitter=2, decay=0.0, blur=0.0, seed=3)
    shape = (2, 16, 16, 1)
    start = np.random.default_rng(3).standard_normal(shape)
    found = ascend(lambda x: (x.std(axis=(1, 2, 3)), x - GREY), shape, how)
    assert ((found.pictures > GREY) == (start > 0)).all()
    assert min(found.final_activations) > 4 * max(found.initial_activations)


def test_what_takes_no_picture_is_not_visualised(netdsl: Any, tmp_path: Path) -> None:
    for given in ("8x8x2", "64"):
        path = kept(tmp_path, ONE_UNIT.replace("8x8x1", given))
        code, _, err = netdsl("visualize", str(path), "unit", "-o", "f.png")
        assert code == 2
        assert f"the net takes {given}; pictures have 1 or 3 channels" in err


def test_a_dead_channel_is_told(netdsl: Any, tmp_path: Path) -> None:
    path = kept(tmp_path, **{"c.conv1.weight": -np.ones((2, 3, 3, 3))})
    code, _, err = netdsl("visualize", str(path), "c:1", "-o", "f.png", "--steps", "3")
    assert code == 0
    assert "there is no gradient to follow for c:1" in err
