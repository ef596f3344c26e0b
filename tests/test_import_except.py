"""`import --into NET --except GLOB`: layers that are drawn, whatever the file holds for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.interchange.weights.drawn_layers import SEED
from netdsl.language.elaborate import Settings, elaborate
from netdsl.runtime.state import draw_initial_value
from netdsl.training.recipe.score_layers import SCORE_SCALE, shrink_score_weights
from netdsl.training.store import checkpoint
from tests.test_foreign_weights import TENSORS, safetensors

NET = """net a(classes=3) { input(8x8x3)
  c: conv(4, 3x3, pad=same) -> relu -> globalavgpool
  mid: fc(6) -> relu
  head: fc(classes) }
"""
RNG = np.random.default_rng(0)
MIDDLE = {
    "classifier.0.weight": RNG.normal(size=(6, 4)).astype(np.float32),
    "classifier.0.bias": RNG.normal(size=6).astype(np.float32),
}
BODY = {k: v for k, v in TENSORS.items() if k.startswith("features")}


def head(classes: int) -> dict[str, Any]:
    """A last layer that stands in the middle of the tree of names, as that of VGG."""
    shapes = {"classifier.3.weight": (classes, 6), "classifier.3.bias": (classes,)}
    return {k: np.ones(shape, np.float32) for k, shape in shapes.items()}


def check(path: Path, expected: dict[str, Any]) -> None:
    """The states are the expected ones; those of the head are drawn as a run draws them behind
    trained features."""
    found = checkpoint.load(path)
    network = elaborate(found.program(), None, Settings())
    states = {n.name: n for n in network.graph.states}
    states |= {n.name: n for n in shrink_score_weights(network, states, SCORE_SCALE)}
    for name, node in states.items():
        drawn = draw_initial_value(node, SEED)
        np.testing.assert_array_equal(found.states[name], expected.get(name, drawn))


@pytest.mark.parametrize("classes", [0, 3, 10])
def test_weights_without_the_head_or_with_another(
    netdsl: Any, tmp_path: Path, classes: int
) -> None:
    (tmp_path / "a.net").write_text(NET)
    given = {**BODY, **MIDDLE, **(head(classes) if classes else {})}
    (tmp_path / "w.safetensors").write_bytes(safetensors(given))
    command = ("import", "w.safetensors", "--into", "a.net", "-o", "x.safetensors")
    code, out, _ = netdsl(*command, "--except", "head.*")
    assert code == 0
    assert "drawn from seed 1: head" in out
    assert "2 of 3 layers of `a` have their weights" in out
    assert ("classifier.3.weight" in out) == (classes > 0)
    check(
        tmp_path / "x.safetensors",
        {
            "c.conv1.weight": given["features.0.weight"].transpose(0, 2, 3, 1),
            "c.conv1.bias": given["features.0.bias"],
            "mid.fc1.weight": given["classifier.0.weight"],
            "mid.fc1.bias": given["classifier.0.bias"],
        },
    )


def test_a_checkpoint_of_a_net_with_other_classes(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(NET)
    (tmp_path / "b.net").write_text('use "a.net"\nnet b = a(classes=5)\n')
    (tmp_path / "w.safetensors").write_bytes(safetensors({**BODY, **MIDDLE, **head(3)}))
    assert netdsl("import", "w.safetensors", "--into", "a.net", "-o", "x.safetensors")[0] == 0
    into = ("--into", "b.net:b", "-o", "y.safetensors", "--except", "head.*", "--json")
    code, out, _ = netdsl("import", "x.safetensors", *into)
    assert code == 0
    assert json.loads(out)["drawn"] == ["head"]
    states = checkpoint.load(tmp_path / "x.safetensors").states
    check(tmp_path / "y.safetensors", {k: v for k, v in states.items() if not k.startswith("head")})


@pytest.mark.parametrize("classes", [0, 3, 10])
def test_a_model_without_the_head_or_with_another(
    netdsl: Any, tmp_path: Path, classes: int
) -> None:
    pytest.importorskip("onnx")
    from tests.onnx_models import ModelText

    lines = "p = Conv(x, w, b) pads=[1,1,1,1]\nq = Relu(p)\nr = GlobalAveragePool(q)\n"
    lines += "s = Flatten(r)\nt = Gemm(s, v, u) transB=1\ny = Relu(t)"
    constants: dict[str, Any] = {"w": (4, 3, 3, 3), "b": (4,), "v": (6, 4), "u": (6,)}
    if classes:
        lines = lines.replace("y = ", "z = ") + "\ny = Gemm(z, h, g) transB=1"
        constants |= {"h": (classes, 6), "g": (classes,)}
    model = ModelText("m", lines, (1, 3, 8, 8), constants)
    model.write(tmp_path)
    (tmp_path / "a.net").write_text(NET)
    into = ("--into", "a.net", "-o", "x.safetensors", "--except", "head.*", "--json")
    code, out, _ = netdsl("import", "m.onnx", *into)
    assert code == 0
    report = json.loads(out)
    assert report["drawn"] == ["head"]
    assert len(report["unused"]) == (2 if classes else 0)
    arrays = model.arrays()
    check(
        tmp_path / "x.safetensors",
        {
            "c.conv1.weight": arrays["w"].transpose(0, 2, 3, 1),
            "c.conv1.bias": arrays["b"],
            "mid.fc1.weight": arrays["v"],
            "mid.fc1.bias": arrays["u"],
        },
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--except", "haed.*"), "no weight matches"),
        (("--except", "*.bias"), "leaves out whole layers"),
        (("--except", "*"), "matches every layer"),
        ((), "has no weights of the right shape"),
        ((), '--except "head.*"'),
    ],
)
def test_what_is_refused(
    netdsl: Any, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "a.net").write_text(NET)
    (tmp_path / "w.safetensors").write_bytes(safetensors({**BODY, **MIDDLE}))
    command = ("import", "w.safetensors", "--into", "a.net", "-o", "x.safetensors")
    code, _, err = netdsl(*command, *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "x.safetensors").exists()
