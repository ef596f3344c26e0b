"""Exports to ONNX: every layer and net as onnxruntime computes it, and back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.interchange.onnx_export import layer_rules as onnx_export_layers
from netdsl.interchange.onnx_export import model as onnx_model
from netdsl.interchange.onnx_export import operator_rules as onnx_export_ops
from netdsl.interchange.onnx_export.comparison import relative_difference
from netdsl.interchange.onnx_export.exporter import ExportOptions, export_graph, restore_states
from netdsl.interchange.onnx_export.metadata import restore_checkpoint
from netdsl.interchange.onnx_export.model import make_model
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.network_builder import ShrinkSettings
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.layers import LAYERS
from netdsl.ops import OPS
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.store import checkpoint
from netdsl.types import dims
from tests.conftest import ROOT, HypothesisDraw
from tests.onnx_checkpoints import (
    constants_of,
    draw_states,
    evaluate_scores,
    metadata_of,
    model_inputs,
    run_model,
    write_checkpoint,
    zoo_text,
)
from tests.random_nets import draw_net, draw_single_layer_net
from tests.torch_cases import LAYER_CASES

KEPT, FOLDED = ExportOptions(keeps_batch_norms=True), ExportOptions()


def network_of(text: str) -> Network:
    return elaborate(build_program(parse(text)), None, Settings(batch=3))


def check_export(network: Network, options: ExportOptions = FOLDED) -> Any:
    """Exports a net and runs it in batches of 3 and 1; then restores its states and evaluates the
    net with them. Differences are those from float64, and may be a few times that of float32."""
    states = draw_states(network)
    model = make_model(export_graph(network, states, options), {})
    inputs, _ = model_inputs(network, 3)
    wide = [{k: v.astype(np.float64) for k, v in x.items()} for x in (states, inputs)]
    exact = evaluate_scores(network, *wide)
    rounding = relative_difference(evaluate_scores(network, states, inputs), exact)
    most = 1e-4 + 4 * rounding
    for count in (3, 1):
        _, given = model_inputs(network, count)
        assert relative_difference(run_model(model, given), exact[:count]) < most
    restored = restore_states(network, constants_of(model), options, "the model")
    assert {k: v.shape for k, v in restored.items()} == {k: v.shape for k, v in states.items()}
    assert relative_difference(evaluate_scores(network, restored, inputs), exact) < most
    return model


def can_run(text: str) -> bool:
    """onnxruntime requires positive numbers of local response normalisation."""
    return not any(f"{k}={x}" in text for k in ("alpha", "beta") for x in ("-", "0,", "0)"))


@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=2)
@given(st.data())
def test_a_layer_with_any_arguments(layer: str, data: st.DataObject) -> None:
    text = draw_single_layer_net(HypothesisDraw(data), LAYERS[layer])
    if text is not None and can_run(text):
        check_export(network_of(text))


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.text)
def test_the_cases_of_layers(case: Any) -> None:
    network = network_of(f"net n {{ input({dims(case.shape)})\n x: {case.text} }}")
    assert network.layers[-1].path in {n.name for n in check_export(network, KEPT).graph.node}


@settings(max_examples=5)
@given(st.data())
def test_random_nets(data: st.DataObject) -> None:
    text = draw_net(HypothesisDraw(data))
    if can_run(text):
        check_export(network_of(text))


@pytest.mark.parametrize(
    ("layers", "ops"),
    [
        ("conv(4, 3x3) -> batchnorm -> relu", "Conv Relu"),
        ("conv(4, 3x3, bias=no, weight=weightnorm) -> batchnorm -> relu", "Conv Relu"),
        ("convtranspose(4, 3x3, groups=2) -> batchnorm(affine=no)", "ConvTranspose"),
        ("fc(5, bias=no) -> batchnorm -> relu", "Flatten Gemm Relu"),
        ("x: conv(4, 3x3)\n batchnorm -> add { x | identity }", "Conv BatchNormalization Add"),
        ("shared c = conv(6, 3x3, pad=same) -> batchnorm; c -> c", "Conv BatchNormalization " * 2),
        ("relu -> batchnorm", "Relu BatchNormalization"),
        ("flatten -> relu -> dropout -> fc(3)", "Flatten Relu Gemm"),
        (
            "conv(2, 1x1) -> silu -> globalavgpool -> fc(3)",
            "Conv Sigmoid Mul GlobalAveragePool Flatten Gemm",
        ),
        ("layernorm(axis=channels)", "Transpose LayerNormalization Transpose"),
        ("fc(4) -> layernorm", "Flatten Gemm LayerNormalization"),
        ("groupnorm(3)", "Reshape InstanceNormalization Reshape Mul Add"),
        ("shuffle(2)", "Reshape Transpose Reshape"),
        ("upsample(2) -> pixel_shuffle(1)", "Resize DepthToSpace"),
        ("pad(height=1, mode=reflect)", "Pad"),
        ("flatten", "Flatten Reshape Transpose Reshape"),
        ("identity", "Identity"),
    ],
)
def test_a_graph_is_as_others_write_it(layers: str, ops: str) -> None:
    model = check_export(network_of(f"net n {{ input(6x6x6)\n {layers} }}"))
    assert [n.op_type for n in model.graph.node] == ops.split()


def test_names_are_paths() -> None:
    text = """block cbr(c) { conv(c, 3x3, pad=1) -> batchnorm -> relu }
    net n { input(8x8x3)
      stem: cbr(4) * 2 -> maxpool(2x2)
      head: fc(5) }"""
    graph = check_export(network_of(text), KEPT).graph
    assert [n.name for n in graph.node] == [
        *(f"stem.cbr{i}.{x}1" for i in (1, 2) for x in ("conv", "batchnorm", "relu")),
        "stem.maxpool1",
        "head.flatten",
        "head",
    ]
    assert [x.name for x in graph.input] == ["input"]
    assert [x.name for x in graph.output] == ["scores"]
    assert "stem.cbr2.conv1.weight" in {t.name for t in graph.initializer}
    assert all(n.output[0] == n.name for n in graph.node[:-1])


@pytest.mark.parametrize("layer", ["gelu", "mish", "relu", "rmsnorm", "mish -> rmsnorm"])
def test_the_least_opset_that_does(layer: str) -> None:
    model = check_export(network_of(f"net n {{ input(4x4x3)\n {layer} }}"))
    (opset,) = model.opset_import
    assert opset.version == {"gelu": 20, "relu": 17, "rmsnorm": 17}.get(layer, 18)


def zoo_network(file: str, net: str) -> Network:
    program = load_program(str(ROOT / "models" / f"{file}.net"))
    return elaborate(program, net, Settings(batch=3, shrink=ShrinkSettings(8)))


@pytest.mark.parametrize(
    ("file", "net"),
    [
        ("googlenet", "googlenet_small"),
        ("mobilenet_v3", "mobilenet_v3_digits"),
        ("resnet", "resnet18"),
        ("preact", "preact8"),
        ("shufflenet", "shufflenet_small"),
        ("siamese", "siamese"),
        ("convnext", "convnext_small"),
        ("unet", "unet_small"),
        ("mlp", "local_small"),
    ],
)
def test_nets_of_the_zoo(file: str, net: str) -> None:
    check_export(zoo_network(file, net))


# ---- files


TEXT = """
net small(classes=4) {
  input(6x5x3)
  conv(4, 3x3, bias=no) -> batchnorm -> relu -> dropout(0.5) -> fc(classes)
  output aux(weight=0.3): fc(classes)
}
data {
  source = digits, normalize = by(mean=[0.5, 0.4, 0.3], std=[0.25])
  eval_transform = [resize(8), center_crop]
}
train { epochs = 3 }
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    write_checkpoint(path, TEXT)
    return path


@pytest.mark.parametrize("options", [(), ("--raw",), ("--half",), ("--keep-batchnorm", "--raw")])
def test_an_export_and_its_way_back(netdsl: Any, weights: Path, options: tuple[str, ...]) -> None:
    code, out, err = netdsl("export", str(weights), "-o", "x.onnx", "--json", *options)
    assert (code, err) == (0, "")
    report = json.loads(out)
    is_raw, is_half = "--raw" in options, "--half" in options
    assert report["difference"] < (1e-2 if is_half else 1e-5)
    assert report["folded"] == (0 if "--keep-batchnorm" in options else 1)
    shape, dtype = ([3, 6, 5], "float32") if is_raw else ([6, 5, 3], "uint8")
    assert report["inputs"] == [{"name": "input", "dtype": dtype, "shape": shape}]
    model = onnx.load("x.onnx")
    assert model.producer_name == "netdsl"
    assert {t.data_type for t in model.graph.initializer if t.dims} <= {
        onnx.TensorProto.FLOAT16 if is_half else onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }
    metadata = metadata_of(model)
    assert json.loads(metadata["netdsl.classes"]) == [f"class {i}" for i in range(4)]
    (described,) = json.loads(metadata["netdsl.input"])
    assert described["eval_transform"] == ["resize(size=8)", "center_crop"]
    assert described["layout"] == ("NCHW" if is_raw else "NHWC")
    assert described["is_included"] is not is_raw
    saved = checkpoint.load(weights)
    found = restore_checkpoint(metadata, constants_of(model), "x.onnx")
    assert (found.net_text, found.classes) == (TEXT, saved.classes)
    assert found.states.keys() == saved.states.keys()
    if "--keep-batchnorm" in options:
        assert all(
            np.array_equal(found.states[k], v)
            for k, v in saved.states.items()
            if not k.startswith("aux")
        )


def test_import_gives_an_export_back(netdsl: Any, weights: Path) -> None:
    """The same text, and the same file when that is exported."""
    assert netdsl("export", str(weights), "-o", "x.onnx", "--keep-batchnorm")[0] == 0
    assert netdsl("import", "x.onnx", "-o", "x.net", "--weights", "x.safetensors")[0] == 0
    assert Path("x.net").read_text() == TEXT
    assert netdsl("export", "x.safetensors", "-o", "y.onnx", "--keep-batchnorm")[0] == 0
    assert Path("x.onnx").read_bytes() == Path("y.onnx").read_bytes()


def refused(netdsl: Any, weights: Path, *options: str) -> str:
    """The message of an export that is refused and writes nothing."""
    code, out, err = netdsl("export", str(weights), "-o", "x.onnx", *options)
    assert (code, out) == (2, "")
    assert not Path("x.onnx").exists()
    return str(err)


def test_all_layers_that_onnx_lacks_are_listed(
    netdsl: Any, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(onnx_export_ops.OP_RULES, "relu")
    monkeypatch.delitem(onnx_export_layers.LAYER_RULES, "batchnorm")
    message = refused(netdsl, weights, "--keep-batchnorm")
    assert "`batchnorm1` (`batchnorm`): `concat`, `normalize`, `reshape`" in message
    assert "`relu1` (`relu`): `relu`" in message


def test_a_layer_of_known_operators_needs_no_rule() -> None:
    """A layer that is added to the table is exported, unless it needs an operator that has none."""
    composed = {n for n in LAYERS if n not in onnx_export_layers.LAYER_RULES}
    assert {"relu", "maxpool", "relu6", "add", "globalavgpool"} <= composed
    assert onnx_export_ops.OP_RULES.keys() <= OPS.keys()
    assert onnx_export_layers.LAYER_RULES.keys() <= LAYERS.keys()


def test_other_scores_are_refused(
    netdsl: Any, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        onnx_export_ops.OP_RULES, "relu", lambda site, node, x: replace(x, name=x.name)
    )
    assert "onnxruntime and netdsl compute different scores" in refused(netdsl, weights)


def test_what_onnxruntime_cannot_run_is_refused(netdsl: Any, tmp_path: Path) -> None:
    path = tmp_path / "lrn.safetensors"
    text = TEXT.replace("relu", "lrn(beta=-1)")
    write_checkpoint(path, text)
    assert "onnxruntime cannot run the model" in refused(netdsl, path)


def test_bytes_are_no_vector_beside_an_image(netdsl: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    net = "image: input(8x8x3); v: input(5); concat { image -> flatten | v } -> fc(5)"
    text = f"net two {{ {net} }}\ndata {{ batch = 4 }}\ntrain {{ epochs = 1 }}\n"
    write_checkpoint(path, text)
    assert "`v` is not an image" in refused(netdsl, path)
    assert netdsl("export", str(path), "-o", "x.onnx", "--raw")[0] == 0


def test_without_onnxruntime(netdsl: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, _ = netdsl("export", str(weights), "-o", "x.onnx")
    assert code == 0
    assert "not run: `pip install onnxruntime`" in out
    onnx.checker.check_model(onnx.load("x.onnx"), full_check=True)


def test_without_onnx(netdsl: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = refused(netdsl, weights)
    assert "pip install 'netdsl[onnx]'" in message


def test_what_float16_cannot_hold(netdsl: Any, weights: Path) -> None:
    saved = checkpoint.load(weights)
    states = {**saved.states, "conv1.weight": saved.states["conv1.weight"] * 1e6}
    checkpoint.save(weights, replace(saved, states=states))
    assert "largest float16 number: `conv1.weight`" in refused(netdsl, weights, "--half")
    states["conv1.weight"] = saved.states["conv1.weight"] * 3e4
    checkpoint.save(weights, replace(saved, states=states))
    assert "`conv1` gives values beyond 65,504" in refused(netdsl, weights, "--half")


def test_files_beyond_2_gb(netdsl: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "_MAX_BYTES", 1000)
    assert "an ONNX file can hold at most 2 GB" in refused(netdsl, weights)


def test_suffixes(netdsl: Any, weights: Path) -> None:
    code, _, err = netdsl("export", str(weights), "-o", "x.pt")
    assert code == 2
    assert "does not end in `.onnx`" in err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("netdsl", "net small {", "is missing"),
        ("netdsl", TEXT.replace("conv(4", "conv(5"), "does not fit the net in its metadata"),
        ("netdsl", TEXT.replace("fc(classes)", "fc(99999)"), "values, and the file"),
        ("netdsl.classes", "{", "is damaged"),
        ("netdsl.classes", '["a", "a"]', "is damaged"),
        ("netdsl.format", "99", "later"),
        ("netdsl.batchnorm", "kept", "does not fit the net in its metadata"),
    ],
)
def test_damaged_metadata(key: str, value: str, message: str) -> None:
    program = build_program(parse(TEXT))
    network = elaborate(program, None, Settings(batch=1))
    model = make_model(export_graph(network, draw_states(network), FOLDED), {})
    metadata = {"netdsl": TEXT, "netdsl.format": "2", "netdsl.classes": "[]", key: value}
    with pytest.raises(NetError) as e:
        restore_checkpoint(metadata, constants_of(model), "x.onnx")
    assert message in e.value.render()


# ---- the whole zoo


ZOO = [
    (path.stem, net)
    for path in sorted((ROOT / "models").glob("*.net"))
    for program in [load_program(str(path))]
    for net in program.nets
    if program.has_all_defaults(net)
]


def most_difference(saved: checkpoint.Checkpoint) -> float:
    """1e-4, or a few times what rounding to float32 makes of the scores: 56 layers of a few
    channels without a shortcut amplify it."""
    program = saved.program()
    recipe = resolve_recipe(program)
    network = elaborate(program, recipe.net, recipe.settings(training=False, batch=2))
    inputs, _ = model_inputs(network, 2)
    wide = {k: v.astype(np.float64) for k, v in saved.states.items()}
    exact = evaluate_scores(network, wide, inputs)
    found = evaluate_scores(network, saved.states, inputs)
    return max(1e-4, 4 * relative_difference(found, exact))


@pytest.mark.slow
@pytest.mark.parametrize(("file", "net"), ZOO)
def test_every_net_of_the_zoo(netdsl: Any, tmp_path: Path, file: str, net: str) -> None:
    """A narrow version at full size, from a checkpoint to a file and back."""
    path, program = tmp_path / "x.safetensors", load_program(str(ROOT / "models" / f"{file}.net"))
    saved = write_checkpoint(path, zoo_text(program, net, 8))
    code, out, err = netdsl("export", str(path), "-o", "x.onnx", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["difference"] < most_difference(saved)
    model = onnx.load("x.onnx")
    found = restore_checkpoint(metadata_of(model), constants_of(model), "x.onnx")
    assert found.net_text == saved.net_text
    checkpoint.save(tmp_path / "back.safetensors", found)
    assert netdsl("export", str(tmp_path / "back.safetensors"), "-o", "y.onnx")[0] == 0
    again = onnx.load("y.onnx")
    pixels = list(model.graph.input)
    rng = np.random.default_rng(1)
    given = {
        x.name: rng.integers(
            0, 256, [2, *(d.dim_value for d in x.type.tensor_type.shape.dim[1:])]
        ).astype(np.uint8)
        for x in pixels
    }
    difference = relative_difference(run_model(again, given), run_model(model, given))
    assert difference < most_difference(saved)
