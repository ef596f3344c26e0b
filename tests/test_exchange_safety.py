"""What import and export do with files of the wrong kind, files that are there, options without an
effect, and weights that are not finite."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import netdsl as netdsl_package
from netdsl.cli.app import BAD_INPUT, OK
from netdsl.data.pictures import write_picture
from netdsl.interchange.imported_net import ImportOptions
from netdsl.interchange.onnx_import.importer import import_onnx
from netdsl.interchange.weights.tensor_files import read_tensors
from netdsl.interchange.weights.torch_export import load_network
from netdsl.pickles import pickle_error
from netdsl.runtime.state import draw_initial_value
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from tests.onnx_checkpoints import run_model

RNG = np.random.default_rng(0)
CONSTANTS = {
    "w": RNG.normal(size=(4, 3, 3, 3)),
    "one": np.array(0.1),
    "fc": RNG.normal(size=(4, 5)),
    "mean": np.array([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1),
    "std": np.array([0.2, 0.3, 0.25]).reshape(1, 3, 1, 1),
}


def write_model(path: Path, first: Sequence[tuple[str, str]] = ()) -> Any:
    """A convolution and a head, after operators on the image, each with a constant."""
    nodes, image = [], "x"
    for i, (op, constant) in enumerate(first):
        nodes.append(helper.make_node(op, [image, constant], [f"n{i}"]))
        image = f"n{i}"
    nodes += [
        helper.make_node("Conv", [image, "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 5])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, str(path))
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its net and weights, and files of other kinds."""
    folder = tmp_path_factory.mktemp("made")
    write_model(folder / "m.onnx")
    import_onnx(folder / "m.onnx", folder / "m.net", folder / "m.safetensors", ImportOptions())
    np.savez(folder / "m.npz", x=np.zeros(3))
    np.save(folder / "m.npy", np.zeros(3))
    (folder / "m.pth").write_bytes(b"\x80\x02}q\x00.")
    (folder / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (folder / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with zipfile.ZipFile(folder / "m.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    shutil.copy(folder / "m.onnx", folder / "model")
    found = checkpoint.load(folder / "m.safetensors")
    (folder / "run").mkdir()
    (folder / "run" / "recipe.net").write_text(found.net_text)
    checkpoint.save(folder / "run" / "best.safetensors", replace(found, metrics={"epoch": 3}))
    shutil.copy(folder / "run" / "best.safetensors", folder / "trained.safetensors")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


INTO = ("--into", "m.net:m", "-o")
TORCH = ("--layout", "torch", "-o")


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (("export", "run", *TORCH, "run/best.safetensors"), "run/best.safetensors"),
        (("export", "m.safetensors", *TORCH, "run/last.safetensors"), "run/recipe.net"),
        (("export", "m.safetensors", *TORCH, "trained.safetensors"), "trained.safetensors"),
        (("export", "m.safetensors", *TORCH, "m.safetensors"), "m.safetensors"),
        (("export", "m.safetensors", *TORCH, "run/../m.safetensors"), "m.safetensors"),
        (("export", "m.safetensors", "-o", "m.onnx"), "m.onnx"),
        (("import", "m.safetensors", *INTO, "m.safetensors"), "m.safetensors"),
        (("import", "m.onnx", *INTO, "trained.safetensors"), "trained.safetensors"),
        (("import", "m.onnx", "-o", "mine.net"), "mine.net"),
        (("import", "m.onnx", "-o", "run/recipe.net"), "run/recipe.net"),
        (("import", "x.net", "-o", "x.net"), "x.net"),
        (("import", "m.onnx", "-o", "m.net", "--classes", "m.net", "--weights", "n.safetensors"),
         "m.net"),
        (("activations", "m.safetensors", "m.png", "conv1", "-o", "m.png"), "m.png"),
    ],
)  # fmt: skip
def test_what_is_there_is_kept(
    command: Sequence[str], kept: str, netdsl: Any, folder: Path
) -> None:
    (folder / "mine.net").write_text("net mine { input(8x8x3) -> globalavgpool }\n")
    shutil.copy(folder / "m.onnx", folder / "x.net")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, _, err = netdsl(*command)
    assert (code, "nothing was written" in err) == (BAD_INPUT, True)
    assert folder / kept in before
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_what_import_and_export_wrote_is_written_again(netdsl: Any, folder: Path) -> None:
    for _ in range(2):
        for command in (
            ("import", "m.onnx", "-o", "m.net", "--weights", "m.safetensors"),
            ("import", "m.onnx", "-o", "m.net", "--normalize", "none"),
            ("export", "m.safetensors", "-o", "x.onnx"),
            ("export", "m.safetensors", *TORCH, "x.safetensors"),
            ("import", "x.safetensors", *INTO, "y.safetensors"),
        ):
            code, _, err = netdsl(*command)
            assert (code, err) == (OK, "")


@pytest.mark.parametrize(
    "command",
    [
        ("import", "m.onnx", "-o", "PLACE.net"),
        ("import", "m.onnx", "-o", "x.net", "--weights", "PLACE.safetensors"),
        ("import", "m.onnx", *INTO, "PLACE.safetensors"),
        ("export", "m.safetensors", "-o", "PLACE.onnx"),
        ("filters", "m.safetensors", "-o", "PLACE.png"),
        ("visualize", "m.safetensors", "conv1", "-o", "PLACE.png"),
        ("activations", "m.safetensors", "m.png", "conv1", "-o", "PLACE.png"),
    ],
)
def test_no_folder_is_made_for_what_is_written(
    command: Sequence[str], netdsl: Any, folder: Path
) -> None:
    suffix = Path(command[-1]).suffix
    (folder / f"link{suffix}").symlink_to(folder / "no" / "x.net")
    before = set(folder.rglob("*"))
    for place, complaint in (
        (f"no/x{suffix}", "there is no folder"),
        (f"link{suffix}", "there is no folder"),
        (f"m.npy/x{suffix}", "there is no folder"),
        (suffix, "is a suffix without a name"),
        ("", "has no name"),
    ):
        code, _, err = netdsl(*command[:-1], place)
        assert (code, complaint in err, "\nhelp: " in err) == (BAD_INPUT, True, True), err
    assert set(folder.rglob("*")) == before


def test_a_suffix_in_upper_case(netdsl: Any, folder: Path) -> None:
    _, _, err = netdsl("import", "m.onnx", "-o", "X.NET")
    assert "X.NET does not end in `.net` in lower case" in err


def test_a_net_is_saved_over_its_own_file_only(folder: Path) -> None:
    found = checkpoint.load(folder / "trained.safetensors")
    checkpoint.save(folder / "copy.safetensors", replace(found, progress={"epoch": 3}))
    (folder / "precious.safetensors").write_bytes(b"x")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    net = netdsl_package.load(folder / "trained.safetensors", device="reference")
    for name in ("run/best", "run/last", "copy", "precious", "no/x"):
        with pytest.raises(
            netdsl_package.NetError, match=r"run in|not written by an import or|no folder"
        ) as e:
            net.save(folder / f"{name}.safetensors")
        assert "nothing was written" in str(e.value)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    for name in ("new", "new", "m"):
        net.save(folder / f"{name}.safetensors")
        assert checkpoint.load(folder / f"{name}.safetensors").metrics == {"epoch": 3}


@pytest.mark.parametrize("edit", [b"# mine\n", b"", None])
def test_an_imported_net_that_was_edited_is_kept(
    edit: bytes | None, netdsl: Any, folder: Path
) -> None:
    """So is one without a checksum, as versions before it wrote them."""
    net = folder / "m.net"
    first, rest = net.read_bytes().split(b"\n", 1)
    if edit is None:
        net.write_bytes(first.partition(b" Checksum")[0] + b"\n" + rest)
    else:
        net.write_bytes(first + b"\n" + (rest + edit if edit else rest.replace(b"5", b"7")))
    before = net.read_bytes()
    shutil.copy(folder / "m.onnx", folder / "other.onnx")
    code, _, err = netdsl("import", "other.onnx", "-o", "m.net", "--weights", "m.safetensors")
    assert (code, "nothing was written" in err) == (BAD_INPUT, True), err
    assert ("edited since" in err) == (edit is not None)
    assert net.read_bytes() == before


KINDS = {
    "m.onnx": "an ONNX model", "model": "an ONNX model", "m.npz": "weights without a net",
    "m.pth": "a pickle", "m.h5": "Keras", "m.keras": "Keras", "m.png": "a picture",
    "m.npy": "a single array", "run": "the folder of a run", "m.net": "a .net file",
    "m.safetensors": "a checkpoint",
}  # fmt: skip
TAKERS = {
    ("summary", "FILE"): ("m.net", "m.safetensors", "run"),
    ("draw", "FILE", "-o", "x.svg"): ("m.net", "m.safetensors", "run"),
    ("train", "FILE"): ("m.net",),
    ("fmt", "FILE"): ("m.net", "run"),
    ("diff", "FILE", "m.net"): ("m.net", "m.safetensors", "run"),
    ("predict", "FILE", "no.png"): ("m.safetensors", "run"),
    ("export", "FILE", "-o", "x.onnx"): ("m.safetensors", "run"),
    ("import", "FILE", *INTO, "x.safetensors"): (
        "m.npz",
        "m.safetensors",
        "m.onnx",
        "model",
        "run",
    ),
    ("import", "FILE", "-o", "x.net"): ("m.onnx", "model", "m.npz", "m.safetensors"),
}


@pytest.mark.parametrize("command", TAKERS, ids=" ".join)
def test_files_of_the_wrong_kind(command: Sequence[str], netdsl: Any, folder: Path) -> None:
    for name in KINDS.keys() - set(TAKERS[tuple(command)]):
        code, _, err = netdsl(*(name if part == "FILE" else part for part in command))
        assert code == BAD_INPUT
        assert f"{name} is {KINDS[name]}" in err or KINDS[name] in err.splitlines()[0], err
        assert "\nhelp: " in err


def test_weights_of_a_run_go_into_a_net(netdsl: Any, folder: Path) -> None:
    code, out, err = netdsl("import", "run", *INTO, "x.safetensors")
    assert (code, "all 2 layers" in out) == (OK, True), err


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", 'a"b.pth'])
def test_lines_that_convert_a_pickle(name: str, tmp_path: Path) -> None:
    """They take the weights out of a training checkpoint, and keep the pickle."""
    first, second = pickle_error(tmp_path / name).diagnostics[0].notes
    compile(first, "first line", "exec")
    assert json.dumps(str(tmp_path / name)) in first
    written: list[tuple[Any, str]] = []
    tensor = MagicMock()
    scope = {
        "x": {"epoch": 3, "model": {"w": tensor, "step": 3}},
        "torch": SimpleNamespace(is_tensor=lambda v: v is tensor),
        "save_file": lambda states, path: written.append((states, path)),
    }
    exec(second, scope)
    ((states, target),) = written
    assert states.keys() == {"w"}
    assert target.endswith(".safetensors")
    assert Path(target) != tmp_path / name


def test_weights_by_the_names_of_where_they_come_from(netdsl: Any, folder: Path) -> None:
    weights = {"stem.weight": CONSTANTS["w"], "classifier.0.weight": CONSTANTS["fc"].T}
    np.savez(folder / "w.npz", **{k: v.astype(np.float32) for k, v in weights.items()})
    assert netdsl("import", "w.npz", *INTO, "w.safetensors")[0] == OK
    code, out, err = netdsl("export", "w.safetensors", *TORCH, "x.safetensors", "--names", "w.npz")
    assert (code, "the names of w.npz" in out) == (OK, True), err
    found = read_tensors(folder / "x.safetensors").tensors
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32))
    for rest in (("-o", "x.onnx"), (*TORCH, "w.npz.safetensors", "--device", "cpu")):
        assert netdsl("export", "w.safetensors", "--names", "w.npz", *rest)[0] == BAD_INPUT


def test_a_net_with_other_outputs_than_class_scores(netdsl: Any, folder: Path) -> None:
    """Side outputs may give anything; a net of images predicts no classes, but gives its values."""
    head = "net n { input(8x8x3)\n x: conv(4, 3x3, pad=same, bias=no) -> relu"
    picture = np.zeros((8, 8, 3), np.uint8)
    write_picture(folder / "p.png", picture)
    tail = " -> globalavgpool\n fc(5, bias=no)\n output z: x -> fc(9) }"
    for rest, has_scores in ((tail, True), (" }", False)):
        found = checkpoint.load(folder / "m.safetensors")
        text = head + rest + "\ndata { normalize = none }\n"
        network = load_network(replace(found, net_text=text))
        states = {n.name: draw_initial_value(n, 1) for n in network.graph.states}
        given = Checkpoint(states, text, tuple("abcde"), {}, {})
        checkpoint.save(folder / "n.safetensors", given)
        code, _, err = netdsl("predict", "n.safetensors", "p.png")
        assert (code == OK) == has_scores
        if not has_scores:
            assert "one score per class is needed" in err
            assert "netdsl export" in err
        assert netdsl("filters", "n.safetensors", "-o", "f.png")[0] == OK
        assert netdsl("activations", "n.safetensors", "p.png", "x", "-o", "f.png")[0] == OK
        code, out, err = netdsl("export", "n.safetensors", "-o", "n.onnx")
        assert (code, "side outputs are left out: `z`" in out) == (OK, has_scores), err


# ---- options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("-o", "x.net", "--classes", "names"), "no weights are written"),
        (("-o", "x.net", "--bgr"), "no weights are written"),
        (("-o", "x.net", "--scale", "255"), "no weights are written"),
        ((*INTO, "x.safetensors", "--rebuild"), "`--rebuild` cannot be used with `--into`"),
        ((*INTO, "x.safetensors", "--normalize", "mean=0.5,std=0.5"), "by(mean=[0.5], std=[0.25])"),
    ],
)
def test_options_without_an_effect(
    options: Sequence[str], complaint: str, netdsl: Any, folder: Path
) -> None:
    code, _, err = netdsl("import", "m.onnx", *options)
    assert (code, complaint in err) == (BAD_INPUT, True), err


def test_an_export_says_itself_what_its_pixels_are(netdsl: Any, folder: Path) -> None:
    assert netdsl("export", "m.safetensors", "-o", "x.onnx")[0] == OK
    rest = ("import", "x.onnx", "-o", "x.net", "--weights", "x.safetensors")
    for option in (("--bgr",), ("--scale", "255"), ("--normalize", "imagenet")):
        for given in (rest, rest[:-2]):
            code, _, err = netdsl(*given, *option)
            needs_weights = given != rest and option[0] != "--normalize"
            assert (code, "contains the .net" in err, "--rebuild" in err) == (BAD_INPUT, True, True)
            assert ("--weights" in err) == needs_weights
    code, _, err = netdsl(*rest, "--rebuild", "--normalize", "imagenet")
    assert (code, "already normalises its pixels" in err) == (BAD_INPUT, True)
    assert netdsl(*rest, "--rebuild", "--bgr")[0] == OK
    assert "no .net" in netdsl("import", "m.onnx", "-o", "m.net", "--rebuild")[1]


@pytest.mark.parametrize(
    "first",
    [
        [("Sub", "mean"), ("Div", "std")],
        [("Mul", "std"), ("Add", "mean")],
        [("Mul", "one"), ("Sub", "mean"), ("Div", "std")],
    ],
)
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_a_model_that_normalises_its_pixels(
    first: Sequence[tuple[str, str]], scale: float, tmp_path: Path
) -> None:
    """Turned and scaled weights compute for red, green and blue what the model computes for blue,
    green and red."""
    model = write_model(tmp_path / "m.onnx", first)
    out = tmp_path / "m.safetensors"
    options = ImportOptions(is_bgr=True, scale=scale)
    report = import_onnx(tmp_path / "m.onnx", tmp_path / "m.net", out, options)
    assert "imagenet" not in " ".join(report.lines)
    assert "reversed for red, green, blue" in " ".join(report.lines)
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8)
    mine = netdsl_package.load(out, device="reference")(image)
    turned = np.ascontiguousarray(image[..., ::-1].transpose(0, 3, 1, 2))
    given = turned * np.float32(scale / 255)
    np.testing.assert_allclose(mine, run_model(model, {"x": given}), rtol=1e-4, atol=1e-5)


def test_a_data_section_without_a_source_is_kept(netdsl: Any, folder: Path) -> None:
    text = (folder / "m.net").read_text() + "data { normalize = cifar10 }\n"
    (folder / "mine.net").write_text(text)
    assert netdsl("import", "m.onnx", "--into", "mine.net", "-o", "x.safetensors")[0] == OK
    assert "normalize = cifar10" in checkpoint.load(folder / "x.safetensors").net_text


def test_values_are_counted_once(netdsl: Any, folder: Path) -> None:
    """Also where a folded batch normalisation takes its values from its convolution."""
    text = "net n { input(8x8x3)\n conv(4, 3x3, pad=same, bias=no) -> batchnorm -> relu"
    (folder / "n.net").write_text(text + " -> globalavgpool -> fc(5, bias=no) }\n")
    code, out, err = netdsl("import", "m.onnx", "--into", "n.net", "-o", "x.safetensors")
    assert code == OK, err
    assert "128 values from" in out


def test_the_count_of_classes_is_blamed_only_where_it_differs(netdsl: Any, folder: Path) -> None:
    assert netdsl("export", "m.safetensors", *TORCH, "w.safetensors")[0] == OK
    for body, is_blamed in (
        ("conv(4, 3x3, pad=same, bias=no) -> globalavgpool -> fc(7, bias=no)", True),
        ("conv(6, 3x3, pad=same, bias=no) -> globalavgpool -> fc(5, bias=no)", False),
    ):
        (folder / "n.net").write_text(f"net n {{ input(8x8x3)\n {body} }}\n")
        code, _, err = netdsl("import", "w.safetensors", "--into", "n.net", "-o", "x.safetensors")
        assert (code, "NET(classes=10)" in err) == (BAD_INPUT, is_blamed), err


@pytest.mark.parametrize(("size", "shape"), [("8x6", "8x6"), ("8", "8x8")])
def test_models_of_images_of_any_size(size: str, shape: str, netdsl: Any, folder: Path) -> None:
    model = onnx.load(str(folder / "m.onnx"))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    onnx.save(model, str(folder / "open.onnx"))
    code, _, err = netdsl("import", "open.onnx", "-o", "x.net")
    assert (code, "`--size 224x224`" in err) == (BAD_INPUT, True)
    assert netdsl("import", "open.onnx", "-o", "x.net", "--size", size)[0] == OK
    assert f"input({shape}x3)" in (folder / "x.net").read_text()
    code, out, _ = netdsl("import", "open.onnx", *INTO, "x.safetensors")
    assert (code, "are in the file" in out) == (OK, False)
    for name, given, complaint in (
        ("open.onnx", "8x", "not a height and width"),
        ("open.onnx", "0", "not a height and width"),
        ("open.onnx", "100000x8", "at most 99,999 pixels"),
        ("m.onnx", "8", "is fixed: its input is ?x3x8x8"),
    ):
        code, _, err = netdsl("import", name, "-o", "x.net", "--size", given)
        assert (code, complaint in err) == (BAD_INPUT, True), err


@pytest.mark.parametrize("axis", [2, 3])
def test_models_of_images_with_one_open_side(axis: int, netdsl: Any, folder: Path) -> None:
    model = onnx.load(str(folder / "m.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
    onnx.save(model, str(folder / "open.onnx"))
    code, _, err = netdsl("import", "open.onnx", "-o", "x.net")
    assert (code, "`--size 224x224`" in err) == (BAD_INPUT, True)
    for size in ("6x8", "8x6"):
        is_right = size.split("x")[axis == 2] == "8"
        code, _, err = netdsl("import", "open.onnx", "-o", "x.net", "--size", size)
        assert (code == OK, "can be set" in err) == (is_right, not is_right), err
        assert not is_right or f"input({size}x3)" in (folder / "x.net").read_text()


def test_accents_are_left_out_of_names(netdsl: Any, folder: Path) -> None:
    shutil.copy(folder / "m.onnx", folder / "ünïcode 蜂.onnx")
    assert netdsl("import", "ünïcode 蜂.onnx", "-o", "x.net")[0] == OK
    assert "net unicode(" in (folder / "x.net").read_text()


# ---- values


@pytest.mark.parametrize("factor", [0.0, np.nan, np.inf])
def test_weights_without_a_meaning(factor: float, netdsl: Any, folder: Path) -> None:
    found = checkpoint.load(folder / "m.safetensors")
    with np.errstate(all="ignore"):
        states = {k: v * np.float32(factor) for k, v in found.states.items()}
    checkpoint.save(folder / "bad.safetensors", replace(found, states=states))
    code, out, err = netdsl("export", "bad.safetensors", "-o", "x.onnx")
    if factor == 0:
        assert (code, "every image the same scores" in out) == (OK, True)
        return
    assert (code, "NaN or infinite" in err, "`conv1.weight` (108)" in err) == (
        BAD_INPUT,
        True,
        True,
    )
    assert not (folder / "x.onnx").exists()
    code, out, _ = netdsl("export", "bad.safetensors", *TORCH, "x.safetensors")
    assert (code, "NaN or infinite: `conv1.weight`" in out) == (OK, True)
    code, out, _ = netdsl("import", "x.safetensors", *INTO, "y.safetensors")
    assert (code, "NaN or infinite: `conv1.weight`" in out) == (OK, True)
