"""ONNX models as nets: operators and idioms against onnxruntime, the command, the ONNX project's
own tests."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from netdsl.api.net import load
from netdsl.errors import NetError
from netdsl.interchange.imported_net import ImportOptions
from netdsl.interchange.layer_graph import layer_graph
from netdsl.interchange.onnx_import.axis_views import ViewError, axis_size, flat, row_view
from netdsl.interchange.onnx_import.idioms import IDIOMS
from netdsl.interchange.onnx_import.importer import import_onnx, read_onnx
from netdsl.interchange.onnx_import.operators import RULES
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load_program
from netdsl.training.store import checkpoint
from tests.conftest import HypothesisDraw
from tests.golden import GOLDEN_FOLDER
from tests.onnx_conformance import node_tests, run_node_test
from tests.onnx_models import MODELS, ModelText, difference, f32, i64, run_onnxruntime

BOTH = ("-o", "x.net", "--weights", "x.safetensors")
CONFORMANCE = GOLDEN_FOLDER / "onnx_conformance.txt"


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_the_import_computes_what_onnxruntime_does(model: ModelText, tmp_path: Path) -> None:
    assert difference(model.write(tmp_path), {"x": model.input()}) < 1e-4


def test_every_operator_is_in_a_model() -> None:
    used = {name for m in MODELS for name in re.findall(r"= (\w+)\(", m.lines)}
    assert {name for name in RULES if "." not in name} <= used


_PATTERN_ATTRIBUTES = {
    "ReduceMean": " axes=[1]",
    "ReduceMax": " axes=[1]",
    "HardSigmoid": f" alpha={1 / 6}",
}
_PATTERN_OPERANDS = {"Clip": ", low, six", "ReduceSum": ", axis"}


def _pattern_model(pattern: str) -> ModelText:
    """The nodes of a pattern as a model."""
    lines: list[str] = []
    constants: dict[str, Any] = {"low": f32(0), "six": f32(6), "axis": i64(1)}

    def add(part: ast.expr) -> str:
        if isinstance(part, ast.Name):
            constants.update({part.id: f32(1e-5)} if part.id.startswith("c_") else {})
            return part.id
        if isinstance(part, ast.Constant):
            name = f"k{len(constants)}"
            constants[name] = np.array(part.value, np.float32)
            return name
        assert isinstance(part, ast.Call)
        assert isinstance(part.func, ast.Name)
        operator = part.func.id
        inputs = ", ".join(map(add, part.args)) + _PATTERN_OPERANDS.get(operator, "")
        result = f"v{len(lines)}"
        lines.append(f"{result} = {operator}({inputs}){_PATTERN_ATTRIBUTES.get(operator, '')}")
        return result

    add(ast.parse(pattern, mode="eval").body)
    return ModelText("pattern", "\n".join(lines), (1, 3, 5, 4), constants)


@pytest.mark.parametrize(
    ("layer", "pattern"), [(i.operator, p) for i in IDIOMS for p in i.patterns]
)
def test_a_pattern_is_its_layer(layer: str, pattern: str, tmp_path: Path) -> None:
    model = _pattern_model(pattern)
    path = model.write(tmp_path)
    found = read_onnx(path)
    if layer == "softmax":  # at the end of a net it is left out
        assert found.notes
    else:
        assert [n.layer for n in found.graph.nodes.values()] == ["input", layer]
    assert difference(path, {"x": 3 * model.input()}) < 1e-4


@settings(max_examples=50)
@given(st.data())
def test_a_view_moves_values_as_numpy_does(data: st.DataObject) -> None:
    """A chain of transpositions and reshapes, read off the atoms, against NumPy's result."""
    draw = HypothesisDraw(data)
    shape = (1, *(draw.choice((1, 2, 3, 4, 6)) for _ in range(3)))
    values = np.arange(np.prod(shape)).reshape(shape)
    view, expected = row_view("x", shape), values
    for _ in range(draw.integer(1, 5)):
        perm = data.draw(st.permutations(range(view.rank)))
        view, expected = view.transpose(perm), expected.transpose(perm)
        sizes = list(expected.shape)
        at = draw.integer(0, len(sizes) - 1)
        factor = draw.choice([n for n in range(1, 7) if sizes[at] % n == 0])
        sizes[at : at + 1] = [factor, sizes[at] // factor]
        if len(sizes) > 5:
            sizes[:2] = [sizes[0] * sizes[1]]
        view, expected = view.reshape(sizes), expected.reshape(sizes)
    assert view.shape == expected.shape
    atoms = flat(view.base)
    split = values.reshape(tuple(a.size for a in atoms))
    order = [atoms.index(a) for a in flat(view.axes)]
    assert np.array_equal(split.transpose(order).reshape(view.shape), expected)
    assert tuple(map(axis_size, view.base)) == shape


def test_a_view_refuses_what_no_split_gives() -> None:
    with pytest.raises(ViewError):
        row_view("x", (1, 6, 4)).reshape((1, 4, 6))


SMALL = ModelText(
    "small-net",
    "c = Conv(x, w, b) pads=[1,1,1,1]\nr = Relu(c)\nm = MaxPool(r) kernel_shape=[2,2] "
    "strides=[2,2]\nf = Flatten(m)\ng = Gemm(f, v, u) transB=1\ny = Softmax(g)",
    (1, 3, 8, 8),
    {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 64), "u": (5,)},
)


def test_the_command_writes_a_net_that_its_weights_carry(netdsl: Any, tmp_path: Path) -> None:
    SMALL.write(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    command = ("import", "small_net.onnx", "-o", "x.net", "--weights", "x.safetensors")
    code, out, err = netdsl(*command, "--classes", "classes.txt", "--normalize", "imagenet")
    assert (code, err) == (0, "")
    assert "437 params" in out
    assert "the softmax at the end is left out" in out
    text = (tmp_path / "x.net").read_text()
    assert text.startswith("# Imported from small_net.onnx. ")
    assert "normalize = imagenet" in text
    assert netdsl("test", "x.net")[0] == 0
    assert netdsl("check", "x.net")[0] == 0
    assert netdsl("fmt", "--check", "x.net")[0] == 0
    found = checkpoint.load(tmp_path / "x.safetensors")
    assert found.net_text == text
    assert found.classes == ("a", "b", "c", "d", "e")
    (tmp_path / "mine.net").write_text('use "x.net"\nnet mine = small_net(classes=3)\n')
    assert '"params": 307' in netdsl("summary", "mine.net:mine", "--json")[1]
    from PIL import Image

    Image.new("RGB", (20, 16), "red").save(tmp_path / "red.png")
    code, out, _ = netdsl("predict", "x.safetensors", "red.png", "--device", "reference", "--json")
    assert code == 0
    pixels = (np.array([1.0, 0, 0]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    image = np.broadcast_to(pixels.reshape(1, 3, 1, 1), (1, 3, 8, 8)).astype(np.float32)
    expected = run_onnxruntime(tmp_path / "small_net.onnx", {"x": image})[0]
    for name, share in json.loads(out)[0]["top"]:
        assert share == pytest.approx(expected["abcde".index(name)], abs=1e-5)


def test_all_that_cannot_be_expressed_is_listed_and_nothing_is_written(
    netdsl: Any, tmp_path: Path
) -> None:
    lines = "a = Sin(x)\nb = Conv(x, w)\nc = Cos(b)\nd = Einsum(c, a) equation=ij\ny = Sin(d)"
    ModelText("odd", lines, (1, 3, 8, 8), {"w": (4, 3, 3, 3)}).write(tmp_path)
    code, _, err = netdsl("import", "odd.onnx", "-o", "odd.net", "--weights", "odd.safetensors")
    assert code == 2
    assert "3 operators that netdsl cannot express, at 4 places" in err
    assert "Sin: there is no layer for it (a, y)" in err
    assert "Cos: there is no layer for it (c)" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.onnx"]


@pytest.mark.parametrize(
    ("lines", "shape", "constants", "message"),
    [
        (
            "a = MatMul(x, q)\nt = Transpose(a) perm=[0,2,1]\nb = MatMul(a, t)\ns = Softmax(b)\n"
            "y = MatMul(s, a)",
            (1, 5, 4),
            {"q": (4, 4)},
            "the model has attention (transformers), which is not in the language",
        ),
        ("y = Conv(x, w)", (1, 2, 6, 6, 6), {"w": (2, 2, 3, 3, 3)}, "it is three-dimensional"),
        (
            "q = QuantizeLinear(x, s, z)\ny = DequantizeLinear(q, s, z)",
            (1, 3, 6, 6),
            {"s": f32(1), "z": np.array(0, np.uint8)},
            "export the floating-point model before quantisation",
        ),
    ],
)
def test_well_known_families_have_their_names(
    lines: str,
    shape: tuple[int, ...],
    constants: dict[str, Any],
    message: str,
    netdsl: Any,
    tmp_path: Path,
) -> None:
    ModelText("family", lines, shape, constants).write(tmp_path)
    code, _, err = netdsl("import", "family.onnx", "-o", "x.net")
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.onnx", "-o", "x.txt"), "does not end in `.net`"),
        (("x.onnx", "-o", "x.net", "--weights", "x.bin"), "does not end in `.safetensors`"),
        (("x.onnx", "-o", "x.net"), "cannot read x.onnx"),
        (("pointer.onnx", "-o", "x.net"), "is a pointer of Git LFS"),
        (("text.onnx", "-o", "x.net"), "is text, not an ONNX file"),
        (("empty.onnx", "-o", "x.net"), "is empty"),
        (("zeros.onnx", "-o", "x.net"), "begins with zeros"),
        (("cut.onnx", "-o", "x.net"), "is not an ONNX file, or is damaged"),
        (("small_net.onnx", "-o", "x.net", "--normalize", "nothing"), "unknown statistics"),
        (("small_net.onnx", "-o", "x.net", "--normalize", "by("), "--normalize"),
        (("small_net.onnx", *BOTH, "--classes", "none.txt"), "none.txt"),
    ],
)
def test_what_the_command_refuses(
    netdsl: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    SMALL.write(tmp_path)
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "text.onnx").write_text("<html>not found</html>")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "zeros.onnx").write_bytes(bytes(1000))
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "small_net.onnx").read_bytes()[:-100])
    code, _, err = netdsl("import", *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "x.net").exists()


def test_squeezenet_is_a_short_net(data_dir: Path, tmp_path: Path) -> None:
    source, out = data_dir / "squeezenet1_0.onnx", tmp_path / "squeezenet.net"
    weights = tmp_path / "squeezenet.safetensors"
    report = import_onnx(source, out, weights, ImportOptions())
    assert report.values["params"] == 1_248_424
    assert len(out.read_text().splitlines()) < 40
    found = checkpoint.load(weights)
    network = elaborate(found.program(), None, Settings())
    image = np.random.default_rng(0).standard_normal((1, 227, 227, 3)).astype(np.float32)
    scores = evaluate_results(network.graph, {**found.states, network.image_input: image})["main"]
    expected = run_onnxruntime(source, {"data": image.transpose(0, 3, 1, 2)})
    assert np.abs(scores.ravel() - expected.ravel()).max() < 1e-4 * np.abs(expected).max()


def test_names_of_modules_stay(tmp_path: Path) -> None:
    """Labels come from the graph's names, and a weight's name says where a layer belongs."""
    model = ModelText(
        "names",
        "a = Conv(x, stem.conv.weight)\nb = Relu(a)\ny = Conv(b, head.weight, head.bias)",
        (1, 3, 8, 8),
        {"stem.conv.weight": (4, 3, 3, 3), "head.weight": (2, 4, 1, 1), "head.bias": (2,)},
    )
    found = read_onnx(model.write(tmp_path)).graph
    assert [n for n in found.nodes if n != "x"] == ["stem.conv", "relu", "head"]
    assert found.nodes["head"].states == {"weight": "head.weight", "bias": "head.bias"}


def test_a_bias_of_zero_before_a_batch_norm_is_left_out(tmp_path: Path) -> None:
    model = next(m for m in MODELS if m.name == "PyTorch, not optimised")
    import_onnx(model.write(tmp_path), tmp_path / "x.net", None, ImportOptions())
    assert "conv(4, 3x3, bias=no) -> batchnorm" in (tmp_path / "x.net").read_text()


@pytest.mark.parametrize("shape", [(1,), (), (1, 1)])
def test_a_number_added_to_one_value_is_its_bias(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = ModelText(
        "one score",
        "f = Flatten(x)\nm = MatMul(f, w)\ny = Add(b, m)",
        (2, 3, 2, 2),
        {"w": (12, 1), "b": shape},
    )
    path, out = model.write(tmp_path), tmp_path / "x.net"
    report = import_onnx(path, out, None, ImportOptions())
    assert report.values["params"] == 13
    assert "  fc(1)" in out.read_text()
    assert difference(path, {"x": model.input()}) < 1e-5


def test_a_number_added_to_a_value_that_is_read_again_stays(tmp_path: Path) -> None:
    lines = "f = Flatten(x)\nm = MatMul(f, w)\na = Add(m, b)\ny = Mul(a, m)"
    model = ModelText("two readers", lines, (2, 3, 2, 2), {"w": (12, 1), "b": (1,)})
    assert difference(model.write(tmp_path), {"x": model.input()}) < 1e-5


def test_what_takes_a_net_of_two_inputs(netdsl: Any, tmp_path: Path) -> None:
    from onnx import parser, save_model

    text = (
        '<ir_version: 8, opset_import: ["" : 17]> m (float[1,3,8,8] img, float[1,5] vec) => '
        "(float[1,8] y) { p = GlobalAveragePool(img) f = Flatten(p) y = Concat<axis=1>(f, vec) }"
    )
    save_model(parser.parse_model(text), tmp_path / "m.onnx")
    code, out, err = netdsl("import", "m.onnx", *BOTH)
    assert (code, err) == (0, "")
    assert "note: the inputs are `img` (8x8x3), `vec` (5): `check`, `summary`, `test`" in out
    commands = (("check", "x.net"), ("summary", "x.net"), ("test", "x.net"))
    export = ("export", "x.safetensors", "-o", "y.onnx", "--raw")
    assert [netdsl(*c)[0] for c in (*commands, export)] == [0, 0, 0, 0]
    code, _, err = netdsl("predict", "x.safetensors", "x.png", "--device", "reference")
    assert (code, "training and prediction take nets of one image" in err) == (2, True)
    net = load(tmp_path / "x.safetensors")
    with pytest.raises(NetError, match="has the inputs `img`"):
        net(np.zeros((1, 8, 8, 3)))
    wanted = net({"img": np.full((1, 8, 8, 3), 2.0), "vec": np.ones((1, 5))})
    assert wanted.tolist() == [[2, 2, 2, 1, 1, 1, 1, 1]]


def test_a_convolution_that_is_used_twice_has_its_weights_once(tmp_path: Path) -> None:
    model = next(m for m in MODELS if m.name == "one convolution twice")
    out = tmp_path / "x.net"
    report = import_onnx(model.write(tmp_path), out, None, ImportOptions())
    assert report.values["params"] == 81
    assert "shared" in out.read_text()


def test_a_graph_has_the_form_of_a_net_of_our_own(tmp_path: Path) -> None:
    """The layers of an import are those of the net that it writes."""
    path, out = SMALL.write(tmp_path), tmp_path / "x.net"
    import_onnx(path, out, None, ImportOptions())
    written = layer_graph(elaborate(load_program(str(out)), None, Settings()))
    found = read_onnx(path).graph
    assert [(n.layer, n.shape) for n in written.nodes.values()] == [
        (n.layer, n.shape) for n in found.nodes.values()
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # NumPy's, while the tests are made
def test_the_node_tests_of_onnx_pass(tmp_path: Path) -> None:
    """Those that do not are in the golden file, with the reason. Tests of other versions of onnx
    that it does not know are left out."""
    found = {t.name: run_node_test(t, tmp_path) for t in node_tests()}
    if os.environ.get("NETDSL_GOLDEN") == "write":
        passed = sum(not reason for reason in found.values())
        lines = [f"{name}: {reason or 'passes'}" for name, reason in sorted(found.items())]
        CONFORMANCE.write_text("\n".join((f"{passed} of {len(found)} pass", *lines)) + "\n")
    known = dict(line.split(": ", 1) for line in CONFORMANCE.read_text().splitlines()[1:])
    assert len(known.keys() & found.keys()) > 300
    wrong = {
        name: reason
        for name, reason in found.items()
        if name in known and (reason == "") != (known[name] == "passes")
    }
    assert not wrong
