"""Pictures of what a net has learnt: filters, feature maps, and what a channel answers to most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import netdsl
from netdsl.backends import open_backend
from netdsl.data.samples import Samples
from netdsl.errors import NetError
from netdsl.inference import Predictor
from netdsl.insight.color_scale import format_value, render_text
from netdsl.insight.colormap import DIVERGING, SEQUENTIAL
from netdsl.insight.features import visualization
from netdsl.insight.features.ascent import AscentSettings
from netdsl.insight.features.filters import (
    MAX_SIDE,
    compute_filters,
    find_filters,
    find_page,
    render_filters,
)
from netdsl.insight.features.strongest_images import ImageSearch
from netdsl.insight.features.visualization import FeatureRequest, visualize_features
from netdsl.insight.image_grid import (
    MAX_ENLARGED_SIDE,
    fit_picture,
    make_grid,
    make_sheet,
    scale_to_range,
    stack,
)
from netdsl.ir.interpreter import evaluate_graph
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
    classes = tuple("0123456789") if "digits" in text else ("cat", "dog")
    save(path, Checkpoint(values, text, classes, {}, {}))
    return path


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


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


def test_pictures_are_fitted_and_stacked() -> None:
    small = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert (fit_picture(small, 30) == small.repeat(10, 0).repeat(10, 1)).all()
    assert fit_picture(np.zeros((90, 60, 3), np.uint8), 30).shape == (30, 20, 3)
    page = stack((small, np.full((1, 5, 3), 9, np.uint8)), "down", gap=1)
    assert page.shape == (4, 5, 3)
    assert page[1, :, 2].tolist() == [3, 4, 5, 255, 255]
    assert page[2:].min(axis=2).tolist() == [[255] * 5, [9] * 5]
    assert stack((small, page), "right").shape == (4, 3 + 12 + 5, 3)


NETS_WITH_FILTERS = {
    "conv(4, 3x2, pad=1)": (4, 3, 2, 3),
    "depthwise(3x3, multiplier=2)": (6, 3, 3, 1),
    "conv(6, 3x3, groups=3)": (6, 3, 3, 1),
    "conv(5, 1x1)": (5, 1, 1, 3),
    "conv(5, 1x1, weight=weightnorm(he))": (5, 1, 1, 3),
    "fc(4)": (4, 6, 5, 3),
    "globalavgpool -> fc(4)": (4, 1, 1, 3),
    "local(2, 3x3)": (4 * 3 * 2, 3, 3, 3),
    "convtranspose(4, 2x2, stride=2)": (3, 2, 2, 4),
}


@pytest.mark.parametrize("layers", NETS_WITH_FILTERS)
def test_filters_have_the_shape_of_what_they_read(layers: str) -> None:
    """Where a value reads one window, it is the sum of the window times its filter."""
    program = build_program(parse(f"net n {{ input(6x5x3); a: {layers} }}"))
    network = elaborate(program, None, Settings(dtype="float64"))
    rng = np.random.default_rng(1)
    states = {n.name: rng.standard_normal(n.type.shape) for n in network.graph.states}
    filters = compute_filters(network, find_filters(network, None), states)
    assert filters.shape == NETS_WITH_FILTERS[layers]
    image = rng.standard_normal((1, 6, 5, 3))
    biases = {k: 0 * v for k, v in states.items() if k.endswith("bias")}
    values = evaluate_graph(network.graph, {"input": image} | states | biases)
    found = values[network.find_node("a").name].ravel()
    windows = {"fc(4)": image, "local(2, 3x3)": image[:, :3, :3], "conv(5, 1x1)": image[:, :1, :1]}
    if layers in windows:
        wanted = (windows[layers] * filters).sum(axis=(1, 2, 3))[: 2 if "local" in layers else None]
        np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=1e-9)


@given(st.integers(1, 9000), st.integers(1, 7), st.integers(1, 3), st.integers(1, 5000))
def test_pages_hold_all_filters_once(count: int, height: int, width: int, channels: int) -> None:
    weights = np.broadcast_to(np.float32(0), (count, height, width, channels))
    pages = [find_page(weights, 1)]
    pages += [find_page(weights, i) for i in range(2, pages[0].pages + 1)]
    areas = [np.ptp(p.filters) * np.ptp(p.channels) for p in pages]
    assert len({(p.filters, p.channels) for p in pages}) == len(pages)
    assert sum(areas) == count * channels
    assert len(pages) == 1 or max(count, channels) * 2 > MAX_SIDE // (2 * max(height, width) + 2)
    with pytest.raises(NetError, match="there is no page"):
        find_page(weights, len(pages) + 1)


@pytest.mark.parametrize("scale", ["filter", "layer"])
def test_filters_of_many_channels_are_a_table(scale: Any) -> None:
    """White is zero; each row is scaled by itself, or all of them by the largest weight."""
    weights = np.zeros((3, 1, 1, 4), np.float32)
    weights[1, 0, 0], weights[2, 0, 0] = [1, -1, 0, 0.5], [4, 4, -4, 0]
    page = render_filters(weights, find_page(weights, 1), scale)
    rows = page[17 + 8 :: 16][:3]  # below the line of names
    left = next(x for x in range(200) if (rows[:, x] == DIVERGING(0.5)).all(axis=-1)[0])
    limits = [1, 1, 4] if scale == "filter" else [4, 4, 4]
    positions = (weights[:, 0, 0] / np.array(limits)[:, None] + 1) / 2
    np.testing.assert_array_equal(rows[:, left : left + 64 : 16], DIVERGING(positions))


def test_filters_of_three_channels_are_in_colour(netdsl: Any, tmp_path: Path) -> None:
    weights = np.zeros((2, 3, 3, 3))
    weights[0, 0, 0] = [1, 0, -1]
    weights[1, 2, 2] = [0, 4, 0]
    path = kept(tmp_path, **{"c.conv1.weight": weights})
    said = "f.png: `c.conv1`, 2 filters of 3x3x3, -1 to 4\n"
    assert netdsl("filters", str(path), "-o", "f.png") == (0, said, "")
    page = pixels(tmp_path / "f.png")
    assert page[0, 0].tolist() == [255, 128, 0]
    assert page[62, 65 + 62].tolist() == [128, 255, 128]
    assert page[30, 30].tolist() == [128, 128, 128]
    assert (page[64:82, :60] < 128).any()  # the number of the first filter
    netdsl("filters", str(path), "-o", "g.png", "--scale", "layer")
    assert pixels(tmp_path / "g.png")[0, 0].tolist() == [159, 128, 96]


def test_filters_that_do_not_fit_on_a_page_say_so(netdsl: Any, tmp_path: Path) -> None:
    net = "net n { input(1x1x3000); a: fc(3, bias=no) }"
    net += '\ndata { source = arrays("none.npz") }\ntrain { net = n }'
    path = kept(tmp_path, net)
    code, out, _ = netdsl("filters", str(path), "-o", "f.png", "--page", "2")
    assert code == 0
    assert out.endswith("page 2 of 2 (`--page`): filters 0 to 2, channels 2048 to 2999\n")
    found = json.loads(netdsl("filters", str(path), "-o", "f.png", "--json")[1])
    assert (found["filters"], found["channels"], found["pages"]) == ([0, 3], [0, 2048], 2)
    assert netdsl("filters", str(path), "-o", "f.png", "--page", "3")[0] == 2


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
        (("filters", "W", "-o", "f.png", "--scale", "x"), "neither `filter` nor `layer`"),
        (("filters", "W", "-o", "f.jpg"), "does not end in .png"),
        (("filters", "none", "-o", "f.png"), "there is no checkpoint"),
        (("visualize", "W", "hed", "-o", "f.png"), "did you mean `head`?"),
        (("visualize", "W", "c:2", "-o", "f.png"), "its 2 channels are numbered 0 to 1"),
        (("visualize", "W", "c:x", "-o", "f.png"), "`x` is not a channel"),
        (("visualize", "W", "c:0,x", "-o", "f.png"), "give integers from 0 up: `c:0,1`"),
        (("visualize", "W", "head:dgo", "-o", "f.png"), "did you mean `dog`?"),
        (("visualize", "W", "head", "--dataset", "none", "-o", "f.png"), "none"),
        (("visualize", "W", "c", "--size", "2000", "-o", "f.png"), "1024"),
        (("visualize", "W", "input", "-o", "f.png"), "nothing is learned there"),
        (("visualize", "W", "c", "-o", "f.txt"), "does not end in .png"),
        (("activations", "W", "none.png", "c", "-o", "f.png"), "there is no picture none.png"),
        (("activations", "W", "none.png", "cc", "-o", "f.png"), "did you mean `c`?"),
        (("activations", "W", "none.png", "head", "-o", "f.png"), "a vector, not feature maps"),
        (("activations", "W", "none.png", "head", "-o", "f.png"), "IMAGE --at head` prints it"),
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
    words = ("activations", str(path), "p.png", "c", "w", "-o", "m.png", "--device", "cpu")
    code, out, _ = netdsl(*words)
    assert (code, out) == (0, "m.png: `c`, 2 maps of 6x6\nm.png: `w`, 4 maps of 6x6\n")
    page = pixels(tmp_path / "m.png")
    assert (page[:240:30, :240:30] == red).all()
    found = json.loads(netdsl(*words, "--json", "--top", "1")[1])["layers"]
    assert [f["layer"] for f in found] == ["c", "w"]
    assert found[0]["maps"] == [{"channel": 0, "low": 0, "high": pytest.approx(245 / 255)}]
    assert found[1]["shape"] == [6, 6, 4]
    assert len(found[1]["maps"]) == 1
    steps = np.arange(36).reshape(6, 6) / 35
    map_at = page[:, 252:372]
    rows = [i for i in range(80) if (map_at[i, :20] == SEQUENTIAL(0.0)).all()]
    shown = map_at[rows[0] : rows[0] + 120 : 20, ::20]
    assert np.abs(shown.astype(int) - SEQUENTIAL(steps)).max() <= 1


DIGITS = """
net n { input(8x8x1); a: conv(6, 3x3) -> relu; b: conv(6, 3x3) -> relu; head: fc(10) }
data { source = digits }
"""
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
    still = AscentSettings(steps=100, rate=0.2, shift=0, zoom=0, angle=0)
    for feature in visualize_features(trained, FeatureRequest("unit", (0, 1)), still):
        unit = weights[feature.channel].reshape(8, 8, 1)
        picture = feature.pictures[0]
        assert ((picture > 127) == (unit > 0)).mean() > 0.95
        assert feature.after[0] == pytest.approx((unit * picture).sum() / 255, rel=0.01)
        assert feature.peaks == feature.after
        assert feature.after[0] > 0.9 * unit[unit > 0].sum()
        assert feature.after > feature.before


def test_pictures_climb_and_repeat(netdsl: Any, tmp_path: Path) -> None:
    path = str(kept(tmp_path))
    words = ("visualize", path, "w", "--steps", "20", "--device", "reference", "--json")
    code, out, _ = netdsl(*words, "-o", "one.png")
    rows = json.loads(out)["channels"]
    assert code == 0
    assert [r["channel"] for r in rows] == [0, 1, 2, 3]
    assert all(p["after"] > p["before"] for r in rows for p in r["pictures"])
    netdsl(*words, "-o", "two.png")
    netdsl(*words, "-o", "three.png", "--seed", "2")
    netdsl(*words, "-o", "four.png", "--neuron")
    one, two, three, four = (
        (tmp_path / f"{n}.png").read_bytes() for n in ("one", "two", "three", "four")
    )
    assert one == two
    assert len({one, three, four}) == 3


def test_pictures_of_a_channel_differ_where_that_is_asked_for(
    netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cosine of the Gram matrices of the maps is further from 1 than without the term."""
    path = kept(tmp_path, DIGITS)
    trained = Predictor(path, open_backend("cpu"))
    request, how = FeatureRequest("b", (0, 1), diversity=3), AscentSettings(steps=40)

    def difference() -> float:
        found = visualize_features(trained, request, how)
        network = trained.network(trained.recipe.settings(training=False, batch=6))
        inputs = {network.image_input: np.concatenate([f.pictures for f in found])}
        values = evaluate_graph(network.graph, inputs | dict(trained.state.snapshot()))
        maps = values[network.find_node("b").name]
        grams = np.einsum("nhwc,nhwd->ncd", maps, maps).reshape(2, 3, -1)
        unit = grams / np.linalg.norm(grams, axis=2, keepdims=True)
        return float(1 - (unit @ unit.transpose(0, 2, 1)).mean())

    with_term = difference()
    monkeypatch.setattr(visualization, "_DIVERSITY_WEIGHT", 0.0)
    assert with_term > 5 * difference()
    words = ("--steps", "20", "--diversity", "3", "-o", "d.png")
    code, out, err = netdsl("visualize", str(path), "b:0", *words)
    assert code == 0, err
    assert out.endswith("d.png: 3 pictures\n")


def test_classes_are_named_and_sizes_chosen(netdsl: Any, tmp_path: Path) -> None:
    text = NET.replace("head: fc(2)", "head: globalavgpool -> fc(2)")
    path = str(kept(tmp_path, text))
    words = ("visualize", path, "--steps", "2", "--device", "reference", "-o", "v.png")
    code, out, _ = netdsl(*words, "head:dog,cat", "--size", "20")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[:2]] == ["head:1 dog", "head:0 cat"]
    code, _, err = netdsl(*words, "c", "--size", "9")
    assert code == 0, err
    code, _, err = netdsl("visualize", str(kept(tmp_path)), *words[2:], "c", "--size", "20")
    assert code == 2
    assert "does not take pictures of 20x20" in err
    assert "the net's own size, 8x8" in err


def test_what_takes_no_picture_is_not_visualised(netdsl: Any, tmp_path: Path) -> None:
    for shape in ("8x8x2", "64"):
        path = kept(tmp_path, ONE_UNIT.replace("8x8x1", shape))
        code, _, err = netdsl("visualize", str(path), "unit", "-o", "f.png")
        assert code == 2
        assert f"the net takes {shape}; pictures have 1 or 3 channels" in err


def test_dead_channels_are_named_and_left_out(netdsl: Any, tmp_path: Path) -> None:
    """A channel that is 0 for noise is not dead if the value before its ReLU has a gradient."""
    weights = np.zeros((2, 3, 3, 3))
    weights[0, 1, 1] = 1
    path = kept(tmp_path, **{"c.conv1.weight": weights})
    words = ("--device", "reference", "-o", "f.png")
    code, out, err = netdsl("visualize", str(path), "c", "--steps", "3", *words)
    assert code == 0
    assert "dead channels are left out: c:1 (no increase in 3 steps from noise)" in err
    assert out.splitlines()[-1] == "f.png: 1 pictures"
    assert netdsl("visualize", str(path), "c:1", "--steps", "3", *words)[0] == 2
    silent = NET.replace("conv(2, 3x3, bias=no)", "conv(2, 3x3, bias=constant(-2))")
    path = kept(tmp_path, silent, **{"c.conv1.weight": weights})
    code, out, _ = netdsl("visualize", str(path), "c:0", "--steps", "60", *words, "--json")
    assert code == 0
    (found,) = json.loads(out)["channels"][0]["pictures"]
    assert found["before"] == 0 < found["after"]


def test_a_long_caption_widens_its_column_and_is_cut_at_twice_the_picture() -> None:
    picture = np.zeros((4, 200, 3), np.uint8)
    widths = [make_sheet([picture] * 2, ["short", "m" * n], 2).shape[1] // 2 for n in (1, 25, 99)]
    assert widths[0] == 201
    assert widths[0] < widths[1] < widths[2] == 401
    dotted = render_text("m" * 99, 400)
    assert (dotted == render_text("m" * 98, 400)).all()
    assert (dotted[:, -4:] == 255).all()


@given(st.floats(-999_999, 999_999))
def test_values_below_a_million_have_no_exponent_unless_they_are_tiny(value: float) -> None:
    text = format_value(value)
    assert "e+" not in text
    assert float(text) == pytest.approx(value, rel=5e-3)


def test_features_of_digits_beat_the_digits(netdsl: Any, tmp_path: Path) -> None:
    """The peak of each stands above the 99.9th percentile of those of all images, and the images
    beside it are the strongest."""
    biases = {"b.conv1.bias": np.array([0, 0, -1e4, 0, 0, 0])}
    path = kept(tmp_path, DIGITS, **biases)
    words = ("visualize", str(path), "b", "--dataset", "run", "--device", "cpu", "--json")
    code, out, err = netdsl(*words, "--neuron", "--steps", "60", "-o", "f.png")
    assert code == 0, err
    found = json.loads(out)
    assert found["dead"] == [2]
    assert "left out: b:2 (the same value for all images)" in err
    assert [r["channel"] for r in found["channels"]] == [0, 1, 3, 4, 5]
    for row in found["channels"]:
        peaks = [x["peak"] for x in row["images"]["strongest"]]
        assert len(peaks) == 4
        assert peaks == sorted(peaks, reverse=True)
        assert row["images"]["percentile_99_9"] <= peaks[0]
        assert row["pictures"][0]["peak"] > row["images"]["percentile_99_9"]
    assert pixels(tmp_path / "f.png").shape[1] > 5 * 128


def test_strongest_images_are_cut_to_what_a_channel_sees(tmp_path: Path) -> None:
    weights = np.zeros((2, 3, 3, 3))
    weights[:, 1, 1] = 1
    path = kept(tmp_path, **{"c.conv1.weight": weights})
    images = np.zeros((5, 8, 8, 3), np.uint8)
    images[3, 2, 6] = [200, 100, 50]
    images[1, 0, 0] = 255  # the centre of no window
    images[4, 5, 1] = 40
    search = ImageSearch(
        Predictor(path, open_backend("cpu")), "c", Samples(images, np.zeros(5, np.int32))
    )
    peaks = search.find_peaks()
    assert peaks.strongest(0, 2) == [3, 4]
    assert peaks.positions[3, 0].tolist() == [1, 5]
    np.testing.assert_array_equal(search.cut(peaks, 3, 0), images[3, 1:4, 5:8])


@pytest.mark.slow
def test_features_of_squeezenet_beat_photographs(
    netdsl: Any, tmp_path: Path, data_dir: Path
) -> None:
    """The must-show of real weights: each peak stands above the 99.9th percentile of those over the
    photographs, and the same seed gives the same bytes."""
    model, photographs = data_dir / "squeezenet1_0.onnx", data_dir / "hymenoptera" / "val"
    if not (model.exists() and photographs.exists()):
        pytest.skip("needs squeezenet1_0.onnx and hymenoptera/val in the data folder")
    words = ("--bgr", "--normalize", "imagenet_mean")
    assert netdsl("import", str(model), "-o", "s.net", "--weights", "s.safetensors", *words)[0] == 0
    for place in ("fire2:0,1", "fire4:3,7", "fire8:5,9"):
        drawn = ("visualize", "s.safetensors", place, "--size", "128", "--steps", "96", "--json")
        code, out, err = netdsl(*drawn, "--dataset", str(photographs), "-o", "v.png")
        assert code == 0, err
        for row in json.loads(out)["channels"]:
            assert row["pictures"][0]["peak"] > row["images"]["percentile_99_9"], row
    netdsl("visualize", "s.safetensors", "fire2:0", "--steps", "8", "-o", "a.png")
    netdsl("visualize", "s.safetensors", "fire2:0", "--steps", "8", "-o", "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_features_in_python(tmp_path: Path) -> None:
    net = netdsl.load(kept(tmp_path), device="reference")
    (found,) = net.visualize("w", [3], diversity=2, steps=3)
    assert (found.channel, found.pictures.shape, found.pictures.dtype) == (
        3,
        (2, 8, 8, 3),
        np.uint8,
    )
    again = net.visualize("w", [3], diversity=2, steps=3, seed=2)[0]
    assert (again.pictures != found.pictures).any()
    for wrong in ({"channels": [4]}, {"channels": [-1]}, {"steps": 0}, {"size": 20}, {"seed": -1}):
        with pytest.raises(NetError):
            net.visualize("w", **wrong)


def test_weights_that_are_no_numbers_are_named(netdsl: Any, tmp_path: Path) -> None:
    weight = np.ones((2, 3, 3, 3))
    weight[0, 0, 0, 0] = np.inf
    path = kept(tmp_path, **{"c.conv1.weight": weight})
    code, _, err = netdsl("filters", str(path), "-o", "f.png")
    assert (code, "not finite: 1;" in err) == (0, True)
    assert np.ptp(pixels(Path("f.png"))[2:20, 2:20]) == 0
    code, _, err = netdsl("visualize", str(path), "c:0", "--steps", "2", "-o", "v.png")
    assert code == 2
    assert "the weights `c.conv1.weight` are not finite" in err
    path = kept(tmp_path, **{"c.conv1.weight": np.full((2, 3, 3, 3), 3e38)})
    code, _, err = netdsl("visualize", str(path), "c:0", "--steps", "2", "-o", "v.png")
    assert code == 2
    assert "is not a finite number" in err
