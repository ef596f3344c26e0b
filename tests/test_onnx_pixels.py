"""ONNX models that normalise their pixels themselves: the arithmetic moves to the data section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from netdsl.interchange.imported_net import ImportOptions
from netdsl.interchange.onnx_import.importer import import_onnx, read_onnx
from netdsl.training.store import checkpoint
from tests.onnx_models import ModelText, difference, f32, run_onnxruntime

W = (8, 3, 3, 3)
MEAN, STD = f32(0.485, 0.456, 0.406), f32(0.229, 0.224, 0.225)
NCHW = {"m": MEAN.reshape(1, 3, 1, 1), "s": STD.reshape(3, 1, 1), "w": W}
KERAS = "t = Transpose({}) perm=[0,3,1,2]\ny = Conv(t, w)"
IMAGENET = "normalize = imagenet"
HALF = "normalize = by(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])"
ROWS, PICTURE = (1, 3, 9, 8), (1, 9, 8, 3)
# lines, shape of the input, constants, the largest pixel, what the data section says
NORMALIZATIONS: list[tuple[str, tuple[int, ...], dict[str, Any], float, str]] = [
    (
        "a = Div(x, k)\nb = Sub(a, m)\nc = Div(b, s)\ny = Conv(c, w)",
        ROWS,
        {"k": f32(255), **NCHW},
        255,
        IMAGENET,
    ),
    ("b = Sub(x, m)\nc = Div(b, s)\ny = Conv(c, w)", ROWS, NCHW, 1, IMAGENET),
    (
        "b = Mul(k, x)\nc = Add(o, b)\ny = Conv(c, w)",
        ROWS,
        {"k": 1 / STD.reshape(3, 1, 1) / 255, "o": (-MEAN / STD).reshape(3, 1, 1), "w": W},
        255,
        IMAGENET,
    ),
    (
        "b = Mul(x, k)\nc = Add(b, o)\n" + KERAS.format("c"),
        PICTURE,
        {"k": f32(1 / 255), "o": f32(0), "w": W},
        255,
        "",
    ),
    (
        "b = Div(x, k)\nc = Sub(b, o)\n" + KERAS.format("c"),
        PICTURE,
        {"k": f32(127.5), "o": f32(1), "w": W},
        255,
        HALF,
    ),
    (
        "t = Transpose(x) perm=[0,3,1,2]\nb = Mul(t, k)\nc = Sub(b, o)\ny = Conv(c, w)",
        PICTURE,
        {"k": f32(2), "o": f32(1), "w": W},
        1,
        HALF,
    ),
    (
        "c = Sub(x, m)\n" + KERAS.format("c"),
        PICTURE,
        {"m": 255 * MEAN, "w": W},
        255,
        "normalize = imagenet_mean",
    ),
    (
        "b = Sub(x, m)\nc = Div(b, s)\ny = Conv(c, w)",
        (1, 1, 9, 8),
        {"m": f32(0.1307), "s": f32(0.3081), "w": (4, 1, 3, 3)},
        1,
        "normalize = mnist",
    ),
]


@pytest.mark.parametrize(("lines", "shape", "constants", "top", "entry"), NORMALIZATIONS)
def test_the_arithmetic_at_the_input_is_the_data_sections(
    lines: str,
    shape: tuple[int, ...],
    constants: dict[str, Any],
    top: float,
    entry: str,
    tmp_path: Path,
) -> None:
    source = ModelText("self", lines, shape, constants).write(tmp_path)
    found = read_onnx(source)
    assert [n.layer for n in found.graph.nodes.values()] == ["input", "conv"]
    assert found.pixels is not None
    assert found.pixels.top == top
    report = import_onnx(source, tmp_path / "x.net", None, ImportOptions())
    assert f"takes pixels from 0 to {top:g} and " in "\n".join(report.lines)
    text = (tmp_path / "x.net").read_text()
    assert entry in text
    assert ("normalize" in text) == bool(entry)
    pixels = np.random.default_rng(0).random(shape).astype(np.float32) * np.float32(top)
    assert difference(source, {"x": pixels}) < 1e-4


@settings(max_examples=15)
@given(
    mean=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    std=st.lists(st.floats(0.125, 1, width=32), min_size=3, max_size=3),
    is_bytes=st.booleans(),
)
def test_any_normalization_computes_what_onnxruntime_does(
    mean: list[float], std: list[float], is_bytes: bool, tmp_path_factory: Any
) -> None:
    top = 255 if is_bytes else 1
    constants = {"m": f32(*mean).reshape(3, 1, 1) * f32(top), "s": f32(*std).reshape(3, 1, 1)}
    constants["s"] = constants["s"] * f32(top)
    lines = "a = Sub(x, m)\nb = Div(a, s)\ny = Conv(b, w)"
    model = ModelText("drawn", lines, (1, 3, 6, 5), {**constants, "w": W})
    source = model.write(tmp_path_factory.mktemp("drawn"))
    pixels = np.random.default_rng(1).random(model.input_shape).astype(np.float32) * f32(top)
    assert difference(source, {"x": pixels}) < 1e-3


@pytest.mark.parametrize(
    ("lines", "constants"),
    [
        ("a = Sub(k, x)\ny = Conv(a, w)", {"k": f32(1), "w": W}),  # a negative
        ("a = Mul(x, k)\ny = Conv(a, w)", {"k": f32(0.1), "w": W}),  # of neither range
        ("a = Sub(x, k)\ny = Conv(a, w)", {"k": f32(-0.5), "w": W}),  # a mean outside of it
        ("a = Div(x, k)\nc = Conv(a, w)\nd = Conv(x, w)\ny = Add(c, d)", {"k": f32(255), "w": W}),
        ("c = Conv(x, w)\ny = Div(c, k)", {"k": f32(255), "w": W}),
    ],
)
def test_other_arithmetic_stays_in_the_net(
    lines: str, constants: dict[str, Any], tmp_path: Path
) -> None:
    source = ModelText("other", lines, ROWS, constants).write(tmp_path)
    assert read_onnx(source).pixels is None
    assert (
        difference(source, {"x": np.random.default_rng(2).random(ROWS).astype(np.float32)}) < 1e-4
    )


def test_what_the_options_change_is_in_the_report_and_in_the_net(
    netdsl: Any, tmp_path: Path
) -> None:
    """Also a sigmoid, which `predict` does not expect."""
    lines = "a = Conv(x, w)\nb = GlobalAveragePool(a)\nc = Flatten(b)\ny = Sigmoid(c)"
    ModelText("caffe", lines, ROWS, {"w": W}).write(tmp_path)
    options = ("--weights", "x.safetensors", "--bgr", "--scale", "255")
    code, out, _ = netdsl("import", "caffe.onnx", "-o", "x.net", *options)
    assert code == 0
    change = "the weights that read the image are reversed for red, green, blue and multiplied"
    assert f"note: {change}" in out
    assert "note: the sigmoid at the end is kept" in out
    assert change[1:] in (tmp_path / "x.net").read_text().replace("\n# ", " ")
    code, out, _ = netdsl("import", "caffe.onnx", "--into", "x.net", "-o", "y.safetensors", "--bgr")
    assert code == 0
    assert "note: the weights that read the image are reversed" in out
    text = checkpoint.load(tmp_path / "y.safetensors").net_text
    assert text.startswith("# The weights that read the image are reversed")
    assert netdsl("fmt", "--check", "x.net")[0] == 0


def test_a_picture_is_normalised_once(netdsl: Any, tmp_path: Path) -> None:
    """From the model to the prediction of a picture, against onnxruntime on its bytes."""
    from PIL import Image

    lines = NORMALIZATIONS[0][0].replace("y = Conv", "d = Conv") + (
        "\ne = GlobalAveragePool(d)\nf = Flatten(e)\ny = Softmax(f)"
    )
    source = ModelText("self", lines, ROWS, NORMALIZATIONS[0][2]).write(tmp_path)
    code, out, _ = netdsl("import", "self.onnx", "-o", "x.net", "--weights", "x.safetensors")
    assert code == 0
    assert "note: the model takes pixels from 0 to 255 and normalises them itself" in out
    assert netdsl("import", "self.onnx", "--into", "x.net", "-o", "y.safetensors")[0] == 0
    into = ("import", "self.onnx", "--into", "x.net", "-o", "z.safetensors")
    assert netdsl(*into, "--scale", "255")[0] == 0
    assert IMAGENET in checkpoint.load(tmp_path / "z.safetensors").net_text
    code, _, err = netdsl(*into, "--normalize", "imagenet")
    assert code == 2
    assert "already normalises its pixels" in err
    pixels = np.random.default_rng(3).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    image = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    expected = run_onnxruntime(source, {"x": image})[0]
    for weights in ("x.safetensors", "y.safetensors"):
        assert IMAGENET in checkpoint.load(tmp_path / weights).net_text
        arguments = ("predict", weights, "p.png", "--device", "reference", "--json")
        code, out, _ = netdsl(*arguments)
        assert code == 0
        for name, share in json.loads(out)[0]["top"]:
            assert share == pytest.approx(expected[int(name)], abs=1e-5)
