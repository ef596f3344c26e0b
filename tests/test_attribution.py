"""Saliency and Grad-CAM: gradients, completeness, known answers, and the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import netdsl as package
from netdsl.backends import open_backend
from netdsl.inference import Predictor
from netdsl.insight.attribution import (
    CHOSEN,
    GRADIENT,
    SCORES,
    Attributor,
    attribution_graph,
    compute_grad_cam,
    find_last_maps,
    integrate_gradients,
    weigh_maps,
)
from netdsl.insight.attribution_picture import sum_cells
from netdsl.insight.gradcheck import draw_inputs
from netdsl.ir.interpreter import evaluate_results
from netdsl.ir.numerical_gradient import compute_slope_error
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.runtime.state import draw_initial_value
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.store.checkpoint import Checkpoint, save
from tests.conftest import HypothesisDraw
from tests.random_nets import draw_net

DATA = """
data { source = arrays("none.npz") }
train { net = n }
"""
LINEAR = "net n { input(4x6x3); head: fc(2, bias=no) }" + DATA
CURVED = (
    """net n {
  input(8x8x3)
  c: conv(4, 3x3, pad=same) -> tanh
  d: conv(6, 3x3, pad=same) -> relu -> maxpool(2x2)
  head: globalavgpool -> fc(3)
}"""
    + DATA
)


def keep(folder: Path, text: str, **states: Any) -> Path:
    """A checkpoint with drawn weights, except for those that are given."""
    network = elaborate(build_program(parse(text)), None, Settings())
    values = {n.name: draw_initial_value(n, 1) for n in network.graph.states}
    values |= {name: np.asarray(v, np.float32) for name, v in states.items()}
    classes = ("cat", "dog", "frog")[: network.main_output.type.shape[-1]]
    save(folder / "w.safetensors", Checkpoint(values, text, classes, {}, {}))
    return folder / "w.safetensors"


def paint(folder: Path, height: int, width: int, seed: int = 0) -> Any:
    """A picture file of random pixels; returns them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "x.png")
    return pixels


@settings(max_examples=3)
@given(st.data())
def test_the_gradient_is_the_slope_of_the_score(data: st.DataObject) -> None:
    """For drawn nets in float64, along a random direction of the picture."""
    program = build_program(parse(draw_net(HypothesisDraw(data))))
    recipe = resolve_recipe(program)
    network = elaborate(program, recipe.net, Settings(batch=2, dtype="float64"))
    at = network.image_input
    graph = attribution_graph(network, recipe, at)
    rng = np.random.default_rng(1)
    given_values = draw_inputs(graph, 1, rng)
    given_values |= {n.name: draw_initial_value(n, 1) for n in graph.states}
    chosen = np.zeros(given_values[CHOSEN].shape)
    chosen[0, 1] = chosen[1, 0] = 1
    given_values[CHOSEN] = chosen
    direction = rng.standard_normal(given_values[at].shape)

    def score(step: float) -> float:
        moved = given_values | {at: given_values[at] + step * direction}
        return float((evaluate_results(graph, moved)[SCORES] * chosen).sum())

    gradient = evaluate_results(graph, given_values)[GRADIENT]
    error = compute_slope_error(score, float((gradient * direction).sum()), step=1e-4)
    assume(error is not None)
    assert error is not None
    assert error < 1e-4


VECTORS = hnp.arrays(np.float64, (5,), elements=st.floats(-3, 3))


@settings(max_examples=25)
@given(VECTORS, VECTORS, VECTORS, VECTORS, st.integers(1, 20), st.integers(1, 7))
def test_attributions_are_complete_up_to_the_error_of_the_midpoint_rule(
    a: Any, b: Any, x: Any, start: Any, steps: int, batch: int
) -> None:
    """For the sum of a x^3 + b x^2, whose attributions are known: with n steps, that of a x^3
    lacks a d^3 / (4 n^2), where d is the distance from the baseline."""
    found = integrate_gradients(lambda y: 3 * a * y**2 + 2 * b * y, x, start, steps, batch)
    exact = a * (x**3 - start**3) + b * (x**2 - start**2)
    np.testing.assert_allclose(found, exact - a * (x - start) ** 3 / (4 * steps**2), atol=1e-9)


def test_a_linear_net_has_its_weights_as_attributions(netdsl: Any, tmp_path: Path) -> None:
    path, pixels = keep(tmp_path, LINEAR), paint(tmp_path, 4, 6)
    common = (str(path), "x.png", "--class", "dog", "--steps", "3", "--device", "reference")
    for baseline in (0, 100):
        extra = ("--baseline", str(baseline), "-o", "x.npy")
        code, out, err = netdsl("saliency", *common, *extra, "--json")
        assert (code, err) == (0, "")
        weights = package.load(path).weights["head.weight"][1]
        wanted = weights.reshape(4, 6, 3) * (pixels.astype(float) - baseline) / 255
        np.testing.assert_allclose(np.load("x.npy"), wanted, atol=1e-5)
        report = json.loads(out)
        assert report["sum"] == pytest.approx(wanted.sum(), abs=1e-4)
        assert report["sum"] == pytest.approx(report["score"] - report["baseline_score"], abs=1e-4)
        assert (report["class"], report["index"]) == ("dog", 1)


def test_more_steps_come_closer_and_the_class_defaults_to_the_prediction(
    netdsl: Any, tmp_path: Path
) -> None:
    path = keep(tmp_path, CURVED)
    paint(tmp_path, 8, 8)
    net = package.load(path, device="reference")
    best = net.predict("x.png")[0]
    errors = []
    for steps in ("2", "200"):
        command = ("saliency", str(path), "x.png", "-o", "s.png", "--steps", steps, "--json")
        report = json.loads(netdsl(*command, "--device", "reference")[1])
        assert report["class"] == best.label
        assert report["probability"] == pytest.approx(best.probability, rel=1e-5)
        assert report["score"] == pytest.approx(float(net("x.png").max()), rel=1e-5)
        gap = abs(report["sum"] - (report["score"] - report["baseline_score"]))
        difference = abs(report["score"] - report["baseline_score"])
        assert report["completeness_error"] == pytest.approx(gap / difference, rel=1e-3)
        errors.append(report["completeness_error"])
    assert errors[1] < min(0.01, errors[0])


@pytest.mark.parametrize("end", ["softmax", "sigmoid"])
def test_a_final_function_of_the_scores_is_left_out(end: str, tmp_path: Path) -> None:
    pixels = paint(tmp_path, 4, 6).astype(np.float32)[None]
    found = []
    for tail in ("", f"; {end}"):
        path = keep(tmp_path, LINEAR.replace("bias=no)", f"bias=no){tail}"))
        found.append(Attributor(Predictor(path, open_backend("reference"))).run(pixels, 1))
    for key in (SCORES, GRADIENT):
        np.testing.assert_allclose(found[0][key], found[1][key], rtol=1e-5)


POOLED = (
    """net n {
  input(6x8x3)
  a: conv(4, 3x3, pad=same) -> relu
  head: globalavgpool -> fc(2)
}"""
    + DATA
)


def test_grad_cam_of_averaged_maps_is_their_sum_by_the_weights_of_the_class(
    tmp_path: Path, netdsl: Any
) -> None:
    """There it is the class activation map of Zhou et al. 2016, cut at 0."""
    path = keep(tmp_path, POOLED)
    paint(tmp_path, 6, 8)
    net = package.load(path, device="reference")
    weights = net.weights["head.fc1.weight"]
    maps = net("x.png", at="a")[0]
    for index, name in enumerate(("cat", "dog")):
        command = ("gradcam", str(path), "x.png", "--class", name, "--device", "reference")
        code, out, err = netdsl(*command, "-o", "x.npy", "--json")
        heat = np.load("x.npy")
        wanted = np.maximum(maps @ weights[index] / 48, 0)
        np.testing.assert_allclose(heat, wanted, atol=1e-6)
        report = json.loads(out)
        assert (code, report["class"], report["index"]) == (0, name, index)
        assert (report["layer"], report["shape"]) == ("a.relu1", [6, 8])
        assert report["largest"] == pytest.approx(float(wanted.max()), rel=1e-5)
        assert ("do not support" in err) == (not wanted.any())


@settings(max_examples=30)
@given(
    hnp.arrays(np.float64, (3, 4, 2), elements=st.floats(-5, 5)),
    hnp.arrays(np.float64, (3, 4, 2), elements=st.floats(-5, 5)),
)
def test_heat_is_never_negative_and_falls_with_the_opposite_gradient(maps: Any, grads: Any) -> None:
    heat, opposite = weigh_maps(maps, grads), weigh_maps(maps, -grads)
    assert (heat >= 0).all()
    assert not (heat * opposite).any()
    np.testing.assert_allclose(heat - opposite, maps @ grads.mean(axis=(0, 1)), atol=1e-9)


def test_the_last_maps_are_those_before_the_scores(tmp_path: Path) -> None:
    program = build_program(parse(CURVED))
    assert find_last_maps(elaborate(program, None, Settings())) == "d.maxpool1"
    trained = Predictor(keep(tmp_path, CURVED), open_backend("reference"))
    pixels = paint(tmp_path, 8, 8)[None]
    by_default = compute_grad_cam(trained, pixels)
    named = compute_grad_cam(trained, pixels, "d", by_default.chosen.name)
    np.testing.assert_array_equal(by_default.heat, named.heat)
    earlier = compute_grad_cam(trained, pixels, "c.conv1")
    assert earlier.heat.shape == (8, 8)


def test_python_gives_what_the_commands_write(netdsl: Any, tmp_path: Path) -> None:
    path, pixels = keep(tmp_path, CURVED), paint(tmp_path, 8, 8)
    net = package.load(path, device="reference")
    options = ("--class", "frog", "--device", "reference", "-o", "x.npy")
    assert netdsl("saliency", str(path), "x.png", "--steps", "5", *options)[0] == 0
    for image in ("x.png", pixels):
        found = net.saliency(image, "frog", steps=5)
        np.testing.assert_array_equal(np.load("x.npy"), found.attributions.astype(np.float32))
        np.testing.assert_array_equal(found.picture, pixels)
    assert netdsl("gradcam", str(path), "x.png", "c", *options)[0] == 0
    heat = net.grad_cam("x.png", at="c", class_name=2).heat
    np.testing.assert_array_equal(np.load("x.npy"), heat.astype(np.float32))
    for wrong, complaint in (
        (np.zeros((2, 8, 8, 3), np.uint8), "one picture is explained at a time"),
        (np.zeros((1, 8, 8, 3)), "floats are not pictures"),
    ):
        with pytest.raises(package.NetError, match=complaint):
            net.saliency(wrong)


@settings(max_examples=25)
@given(
    hnp.arrays(np.float64, st.tuples(*[st.integers(1, 9)] * 3), elements=st.floats(-9, 9)),
    st.integers(1, 10),
)
def test_cells_keep_the_total(attributions: Any, cell: int) -> None:
    found = sum_cells(attributions, cell)
    assert found.shape == tuple(-(-n // cell) for n in attributions.shape[:2])
    assert found[0, 0] == pytest.approx(attributions[:cell, :cell].sum(), abs=1e-9)
    assert found.sum() == pytest.approx(attributions.sum(), abs=1e-9)


def test_what_adds_is_red_and_what_takes_away_blue(netdsl: Any, tmp_path: Path) -> None:
    weights = np.ones((2, 4, 6, 3))
    weights[:, :, 3:] = -1
    path = keep(tmp_path, LINEAR, **{"head.weight": weights.reshape(2, -1)})
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(tmp_path / "x.png")
    command = ("saliency", str(path), "x.png", "--size", "40", "--device", "reference")
    contents = []
    for name in ("a.png", "b.png"):
        code, out, _ = netdsl(*command, "-o", name)
        assert code == 0
        assert f"{name}: integrated gradients, 64 steps" in out
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    page = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    colors = {tuple(c) for c in page.reshape(-1, 3)}
    assert (103, 0, 31) in colors
    assert (5, 48, 97) in colors
    red = np.argwhere((page == (103, 0, 31)).all(axis=-1))[:, 1]
    blue = np.argwhere((page == (5, 48, 97)).all(axis=-1))[:, 1]
    overlay = 60 + 8 + 8, 2 * 60 + 8 + 8  # the photograph is 60 wide, with a gap and a margin
    assert np.isin(range(overlay[0], overlay[0] + 30), red).all()
    assert np.isin(range(overlay[0] + 30, overlay[1]), blue).all()


def test_a_black_picture_differs_nowhere_from_the_baseline(netdsl: Any, tmp_path: Path) -> None:
    path = keep(tmp_path, CURVED)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    command = ("saliency", str(path), "x.png", "-o", "s.png", "--json", "--device", "reference")
    code, out, err = netdsl(*command)
    report = json.loads(out)
    assert (code, err, report["sum"], report["completeness_error"]) == (0, "", 0, 0)
    assert report["score"] == report["baseline_score"]


def test_the_hottest_place_is_the_brightest(netdsl: Any, tmp_path: Path) -> None:
    weight = np.ones((4, 3, 3, 3))
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[4, 6] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    states = {"a.conv1.weight": weight, "head.fc1.weight": np.ones((2, 4))}
    path = keep(tmp_path, POOLED, **states)
    command = ("gradcam", str(path), "x.png", "-o", "cam.png", "--size", "60")
    code, out, _ = netdsl(*command, "--device", "reference")
    assert code == 0
    assert "Grad-CAM of `a.relu1`, 6x8" in out
    page = np.asarray(Image.open(tmp_path / "cam.png")).astype(int)
    top = page.shape[0] - 8 - 60
    overlay = page[top : top + 60, 8 + 80 + 8 : 8 + 80 + 8 + 80]
    brightness = overlay.sum(axis=-1)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert 30 <= row < 60
    assert 50 <= column < 80
    assert brightness[0, 0] < brightness.max() / 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("saliency w.safetensors x.png -o s.png --class dgo", "did you mean `dog`?"),
        ("saliency w.safetensors x.png -o s.png --class 3", "there is no class `3`"),
        ("saliency w.safetensors x.png -o x.png", "a file that this command reads"),
        ("saliency w.safetensors x.png -o x.jpg", "x.jpg does not end in .png or .npy"),
        ("saliency w.safetensors none.png -o s.png", "none.png"),
        ("saliency w.safetensors w.safetensors -o s.png", "w.safetensors"),
        ("gradcam w.safetensors x.png nowhere -o s.png", "has no place `nowhere`"),
        ("gradcam w.safetensors x.png head -o s.png", "the last place with maps is `d.maxpool1`"),
        ("gradcam w.safetensors x.png input.x -o s.png", "has no place `input.x`"),
        ("gradcam x.png x.png -o s.png", "x.png is a picture, not"),
    ],
)
def test_what_cannot_be_explained_is_an_error(
    netdsl: Any, tmp_path: Path, words: str, complaint: str
) -> None:
    keep(tmp_path, CURVED)
    paint(tmp_path, 8, 8)
    code, out, err = netdsl(*words.split(), "--device", "reference")
    assert (code, out) == (2, "")
    assert complaint in err


def test_a_net_of_vectors_has_no_maps(netdsl: Any, tmp_path: Path) -> None:
    keep(tmp_path, "net n { input(4x4x3); fc(8) -> relu -> fc(2) }" + DATA)
    paint(tmp_path, 4, 4)
    code, _, err = netdsl(
        *("gradcam", "w.safetensors", "x.png", "-o", "s.png", "--device", "reference")
    )
    assert code == 2
    assert "has no layer with maps\nhelp: `netdsl saliency` takes any net" in err


@pytest.mark.slow
def test_squeezenet_sees_the_bee(netdsl: Any, tmp_path: Path, data_dir: Path) -> None:
    """With ImageNet weights: the pixels sum to the score, and the heat is where the bee is."""
    model, photo = data_dir / "squeezenet1_0.onnx", "10870992_eebeeb3a12.jpg"
    picture = data_dir / "hymenoptera" / "val" / "bees" / photo
    if not model.is_file() or not picture.is_file():
        pytest.skip(f"there is no {model} or no {picture}")
    options = ("-o", "s.net", "--weights", "s.safetensors", "--bgr", "--normalize", "imagenet_mean")
    assert netdsl("import", str(model), *options)[0] == 0
    command = ("s.safetensors", str(picture), "-o", "x.npy", "--json")
    report = json.loads(netdsl("saliency", *command)[1])
    assert (report["class"], report["completeness_error"] < 0.05) == ("309", True)
    assert netdsl("gradcam", *command)[0] == 0
    heat = np.load("x.npy")
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (heat.shape, row // 5, column // 5) == ((15, 15), 1, 1)
