"""The method behind pictures of features: linear maps, objectives, ascent, receptive fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from netdsl.insight.features.ascent import AscentSettings, ascend
from netdsl.insight.features.fourier_pictures import FourierPictures
from netdsl.insight.features.objective import (
    CHOSEN,
    CHOSEN_BEFORE,
    GRADIENT,
    PAIRS,
    PEAK,
    SCORE,
    FeatureObjective,
    build_ascent_graph,
    weigh_pairs,
)
from netdsl.insight.features.resampling import resample
from netdsl.insight.receptive_field import find_receptive_field
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_graph
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.runtime.state import draw_initial_value
from netdsl.types import TensorType

sides = st.integers(1, 9)
channel_counts = st.sampled_from([1, 3])


def inner(a: Any, b: Any) -> float:
    """The inner product of real and imaginary parts."""
    return float((np.conj(a) * b).real.sum())


@settings(max_examples=25)
@given(sides, sides, channel_counts, st.integers(0, 99))
def test_the_way_back_from_pictures_is_the_adjoint(h: int, w: int, c: int, seed: int) -> None:
    form, rng = FourierPictures(h, w, c), np.random.default_rng(seed)
    shape = (2, *form.spectrum_shape)
    x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    y = rng.standard_normal((2, h, w, c))
    found = inner(form.synthesize(x), y), inner(x, form.apply_adjoint(y))
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)


@settings(max_examples=25)
@given(sides, sides, channel_counts, st.integers(0, 99))
def test_gradients_of_spectra_are_those_of_finite_differences(
    h: int, w: int, c: int, seed: int
) -> None:
    form, rng = FourierPictures(h, w, c), np.random.default_rng(seed)
    shape = (1, *form.spectrum_shape)
    x, d = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for _ in range(2))
    weights = rng.standard_normal((1, h, w, c))
    ahead, behind = ((weights * form.render(x + e * d)).sum() for e in (1e-4, -1e-4))
    gradient = form.pull_back(weights, form.render(x))
    assert inner(gradient, d) == pytest.approx((ahead - behind) / 2e-4, rel=1e-3, abs=1e-4)


def test_low_frequencies_count_most_and_colours_are_those_of_photographs() -> None:
    form = FourierPictures(16, 16, 3)
    start = form.render(form.draw([(1, 0)]))
    assert 0.3 < start.min() < start.max() < 0.7
    spectrum = np.zeros((2, *form.spectrum_shape), complex)
    spectrum[0, 0, 1, 0] = spectrum[1, 0, 4, 0] = 1
    low, high = np.abs(form.synthesize(spectrum)).max(axis=(1, 2))
    np.testing.assert_allclose(low, 4 * high, rtol=1e-5)
    assert np.ptp(low) < 0.1 * low.max()  # the first of the coordinates of colour is brightness


movements = st.tuples(*[st.floats(-40, 40), st.floats(0.5, 2), st.floats(-3, 3), st.floats(-3, 3)])


@settings(max_examples=25)
@given(sides, sides, channel_counts, movements, st.integers(0, 99))
def test_the_adjoint_of_a_movement(h: int, w: int, c: int, m: Any, seed: int) -> None:
    rng, moved = np.random.default_rng(seed), resample(h, w, m[0], m[1], (m[2], m[3]))
    x, y = rng.standard_normal((2, 2, h, w, c))
    found = inner(moved.apply(x), y), inner(x, moved.apply_adjoint(y))
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)


@settings(max_examples=25)
@given(sides, st.integers(-3, 3), st.integers(-3, 3))
def test_movements_by_whole_pixels_and_right_angles(n: int, down: int, right: int) -> None:
    x = np.random.default_rng(n).standard_normal((1, n, n, 2))
    np.testing.assert_array_equal(resample(n, n, 0, 1, (0, 0)).apply(x), x)
    turned = resample(n, n, 90, 1, (0, 0)).apply(x)
    np.testing.assert_allclose(turned, np.rot90(x, axes=(1, 2)), atol=1e-6)
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    shifted = padded[:, 3 - down : 3 - down + n, 3 - right : 3 - right + n]
    np.testing.assert_allclose(resample(n, n, 0, 1, (down, right)).apply(x), shifted, atol=1e-6)


def test_a_zoom_magnifies_about_the_centre() -> None:
    x = np.zeros((1, 9, 9, 1))
    x[0, 4, 4] = x[0, 4, 6] = 1
    found = resample(9, 9, 0, 2, (0, 0)).apply(x)[0, 4, :, 0]
    np.testing.assert_allclose(found, [0, 0, 0, 0.5, 1, 0.5, 0, 0.5, 1])


NET = """net n {
  input(7x7x1)
  a: conv(3, 3x3, pad=same) -> relu
  b: concat { conv(2, 3x3) -> relu | conv(2, 3x3) -> tanh } -> maxpool(2x2)
  c: fc(3) -> sigmoid
}"""


def build(text: str, batch: int = 3) -> tuple[Network, dict[str, Any]]:
    network = elaborate(build_program(parse(text)), None, Settings(batch, dtype="float64"))
    rng = np.random.default_rng(5)
    return network, {n.name: rng.standard_normal(n.type.shape) for n in network.graph.states}


@pytest.mark.parametrize("place", ["a", "b", "c", "b.conv1"])
@pytest.mark.parametrize(("is_neuron", "is_diverse"), [(False, False), (True, False), (0, True)])
def test_objectives_are_what_they_say(place: str, is_neuron: bool, is_diverse: bool) -> None:
    """Scores and peaks are those of the values themselves, and the gradient of the whole is that
    of finite differences."""
    network, states = build(NET)
    found = build_ascent_graph(network, FeatureObjective(place, is_neuron, is_diverse))
    assert found.has_value_before == (place in ("a", "b"))
    rng = np.random.default_rng(1)
    images = rng.standard_normal((3, 7, 7, 1))
    chosen = np.eye(found.channels)[[0, 1, 1]]
    pairs = weigh_pairs(np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0]))
    assert pairs.tolist() == [[0, 0, 0], [0, 0, 2], [0, 3, 0]]

    def evaluate(x: Any) -> dict[str, Any]:
        inputs = {"input": x, CHOSEN: chosen, CHOSEN_BEFORE: 0 * chosen, PAIRS: pairs}
        names = {n.name for n in found.graph.inputs}
        values = evaluate_graph(found.graph, {k: inputs[k] for k in names} | states)
        return {k: values[v] for k, v in found.graph.outputs.items()}

    values = evaluate_graph(network.graph, {"input": images} | states)
    value = values[network.find_node("c.fc1" if place == "c" else place).name]
    value = value.reshape(3, *(value.shape[1:] if value.ndim == 4 else (1, 1, -1)))
    middle = value[:, value.shape[1] // 2, value.shape[2] // 2]
    rows = np.arange(3), [0, 1, 1]
    out = evaluate(images)
    wanted = middle if is_neuron else value.mean(axis=(1, 2))
    np.testing.assert_allclose(out[SCORE], wanted[rows], rtol=1e-9)
    np.testing.assert_allclose(out[PEAK], value.max(axis=(1, 2))[rows], rtol=1e-9)

    def total(x: Any) -> float:
        similar = 0.0
        if is_diverse:
            last = network.find_node("a" if place == "a" else "b.conv1" if "." in place else "b")
            maps = evaluate_graph(network.graph, {"input": x} | states)[last.name]
            grams = np.einsum("nhwc,nhwd->ncd", maps, maps).reshape(3, -1)
            unit = grams / np.linalg.norm(grams, axis=1, keepdims=True)
            similar = float((pairs * (unit @ unit.T)).sum())
        return float(evaluate(x)[SCORE].sum()) - similar

    direction = rng.standard_normal(images.shape)
    slope = (total(images + 1e-6 * direction) - total(images - 1e-6 * direction)) / 2e-6
    assert (out[GRADIENT] * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_value_before_an_activation_has_a_gradient_where_that_blocks_it() -> None:
    network, states = build("net n { input(5x5x1); a: conv(2, 3x3) -> relu -> maxpool(3x3) }", 1)
    states["a.conv1.bias"] = np.array([-1e3, -1e3])
    found = build_ascent_graph(network, FeatureObjective("a"))
    one = np.eye(2)[:1]
    for chosen, before, is_blocked in ((one, 0 * one, True), (one, one, False)):
        inputs = {"input": np.ones((1, 5, 5, 1)), CHOSEN: chosen, CHOSEN_BEFORE: before}
        values = evaluate_graph(found.graph, inputs | states)
        assert values[found.graph.outputs[SCORE]] == 0
        assert (values[found.graph.outputs[GRADIENT]] == 0).all() == is_blocked


class Slope:
    """Each picture's value is the sum of its pixels, weighted."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.seen: list[Any] = []

    def climb(self, pictures: Any) -> Any:
        self.seen.append(pictures)
        return np.broadcast_to(self.weights, pictures.shape)


def test_an_ascent_climbs_whatever_the_size_of_the_gradient() -> None:
    form = FourierPictures(12, 12, 1)
    weights = np.random.default_rng(2).standard_normal((1, 12, 12, 1))
    still = AscentSettings(steps=60, rate=0.1, shift=0, zoom=0, angle=0)
    found = [ascend(Slope(f * weights), form, [(1, 0)], still)[1] for f in (1e-18, 1, 1e18)]
    for pictures in found:
        np.testing.assert_allclose(pictures, found[1], atol=0.5)
        assert (weights * (pictures - 127.5)).sum() > 0.8 * 127.5 * np.abs(weights).sum()


def test_pictures_do_not_depend_on_their_neighbours_but_on_the_seed() -> None:
    form, how = FourierPictures(8, 8, 3), AscentSettings(steps=5)
    weights = np.random.default_rng(2).standard_normal((8, 8, 3))
    both = ascend(Slope(weights), form, [(1, 0), (1, 7)], how)[1]
    alone = ascend(Slope(weights), form, [(1, 7)], how)[1]
    np.testing.assert_array_equal(both[1:], alone)
    other = ascend(Slope(weights), form, [(1, 7)], AscentSettings(steps=5, seed=2))[1]
    assert np.abs(other - alone).max() > 1


class Contrast:
    """Each pixel climbs away from grey."""

    def climb(self, pictures: Any) -> Any:
        return pictures - 127.5


def test_what_moves_before_the_net_sees_it_is_moved_back_behind_it() -> None:
    form, how = FourierPictures(16, 16, 1), AscentSettings(steps=30, shift=0.2)
    start, end = ascend(Contrast(), form, [(1, 0), (1, 1)], how)
    assert np.corrcoef(start.ravel(), end.ravel())[0, 1] > 0.5
    assert end.std() > 4 * start.std()


def test_beyond_the_edge_of_a_moved_picture_is_grey() -> None:
    slope = Slope(np.zeros(()))
    ascend(slope, FourierPictures(8, 8, 1), [(1, 0)], AscentSettings(steps=4, shift=0.5))
    assert any((x == 127.5).any() for x in slope.seen)


FIELDS = [
    "conv(1, 3x3, stride=2, pad=1) -> conv(1, 2x3, dilation=2)",
    "conv(1, 5x3, pad=[2, 1, 0, 1]) -> avgpool(3x3, stride=2, pad=1)",
    "conv(1, 3x3) -> upsample(2) -> conv(1, 3x3, pad=same)",
    "conv(1, 3x3, stride=3) -> convtranspose(1, 4x4, stride=2, pad=1)",
]


@pytest.mark.parametrize("chain", FIELDS)
@settings(max_examples=3, phases=[Phase.explicit, Phase.generate])
@given(st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_receptive_field_holds_all_pixels_that_count(chain: str, y: float, x: float) -> None:
    """The gradient of one value is 0 outside its window. Without transposed convolutions and
    repeated pixels, whose windows have the size of the largest, it reaches all edges."""
    network, states = build(f"net n {{ input(17x17x1); a: {chain} }}", 1)
    target = network.find_node("a")
    _, field = find_receptive_field(network.graph, target)
    _, height, width, _ = target.type.shape
    place = int(y * height), int(x * width)
    b = Builder(network.graph, "float64")
    one_hot = b.input("one", TensorType(target.type.shape, "float64"))
    gradient = grad(b, target, [b.nodes["input"]], cotangent=one_hot)["input"]
    cotangent = np.zeros(target.type.shape)
    cotangent[0, *place] = 1
    graph = b.build({"g": gradient})
    image = np.random.default_rng(1).standard_normal((1, 17, 17, 1))
    values = evaluate_graph(graph, {"input": image, "one": cotangent} | states)
    rows, columns = (np.flatnonzero(values[gradient.name][0, ..., 0].any(axis=a)) for a in (1, 0))
    (top, left), (bottom, right) = field.window(place)
    assert top <= rows[0] <= rows[-1] < bottom
    assert left <= columns[0] <= columns[-1] < right
    if "transpose" not in chain and "upsample" not in chain:
        clipped = [max(top, 0), min(bottom, 17) - 1, max(left, 0), min(right, 17) - 1]
        assert clipped == [rows[0], rows[-1], columns[0], columns[-1]]


def test_a_net_for_images_of_another_size() -> None:
    program = build_program(parse("net n { input(9x9x3); conv(2, 3x3) -> globalavgpool -> fc(2) }"))
    network = elaborate(program, None, Settings(image_size=(20, 30)))
    assert network.image_shape == (20, 30, 3)
    assert network.params == elaborate(program, None, Settings()).params
    assert draw_initial_value(network.graph.states[0], 1).shape == (2, 3, 3, 3)
