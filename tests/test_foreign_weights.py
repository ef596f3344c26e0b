"""Files of other programs: every element type, pickles, damage, and the conventions of pixels."""

from __future__ import annotations

import io
import json
import random
import resource
import time
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from netdsl.errors import NetError
from netdsl.interchange.class_names import read_class_names
from netdsl.interchange.imported_net import ImportOptions
from netdsl.interchange.weights.importer import import_weights
from netdsl.interchange.weights.tensor_files import read_tensors
from netdsl.interchange.weights.torch_export import load_network
from netdsl.training.store import checkpoint
from netdsl.types import Array
from tests.forged_checkpoints import frame_safetensors
from tests.test_corruption import damaged

RNG = np.random.default_rng(0)
NET = """net a(classes=3) { input(5x5x3)
  c: conv(4, 3x3, pad=same) -> relu -> globalavgpool
  head: fc(classes) }
net b = a(classes=7)
data d { source = folder("pictures"), normalize = imagenet, eval_transform = [resize(8)] }
train t { net = a, data = d }
test b { params == 1 }
"""
TENSORS = {
    "features.0.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "features.0.bias": RNG.normal(size=4).astype(np.float32),
    "fc.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "fc.bias": RNG.normal(size=3).astype(np.float32),
}


def safetensors(tensors: dict[str, Array], code: str = "F32") -> bytes:
    header, data = {}, b""
    for name, array in tensors.items():
        content = array.tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets}
        data += content
    return frame_safetensors(header, data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x.net").write_text(NET)
    (tmp_path / "w.safetensors").write_bytes(safetensors(TENSORS))
    return tmp_path


@pytest.mark.parametrize(
    ("code", "dtype"),
    [("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)],
)
def test_element_types(code: str, dtype: Any, tmp_path: Path) -> None:
    stored = {name: v.astype(dtype) for name, v in TENSORS.items()}
    (tmp_path / "w.safetensors").write_bytes(safetensors(stored, code))
    found = read_tensors(tmp_path / "w.safetensors").tensors
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value.astype(np.float32))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    counter = safetensors({"bn.num_batches_tracked": np.zeros((), np.int64)}, "I64")
    (tmp_path / "w.safetensors").write_bytes(counter)
    found = read_tensors(tmp_path / "w.safetensors")
    assert (dict(found.tensors), found.others) == ({}, ("bn.num_batches_tracked",))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Any, folder: Path) -> None:
    save(folder / "w.npz", epoch=np.array(3), **TENSORS)
    found = read_tensors(folder / "w.npz")
    assert found.others == ("epoch",)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(found.tensors[name], value)
    states = convert(folder, ImportOptions(), "w.npz").states
    np.testing.assert_array_equal(states["head.weight"], TENSORS["fc.weight"])


def convert(folder: Path, options: ImportOptions, name: str = "w.safetensors") -> Any:
    out = folder / "y.safetensors"
    import_weights(folder / name, f"{folder / 'x.net'}:a", out, options)
    return checkpoint.load(out)


def pickle_files() -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("model/data.pkl", b"\x80\x02}q\x00.")
    return {"m.pth": b"\x80\x02}q\x00.", "m.model": b"\x80\x04\x95\0\0\0\0\0\0\0\0.", "m.pt": b"",
            "m.zip": archive.getvalue()}  # fmt: skip


@pytest.mark.parametrize("name", pickle_files())
def test_pickles_are_refused_with_what_to_run(name: str, netdsl: Any, folder: Path) -> None:
    (folder / name).write_bytes(pickle_files()[name])
    code, _, err = netdsl("import", name, "--into", "x.net:a", "-o", "y.safetensors")
    assert code == 2
    assert "never read" in err
    assert f'torch.load("{name}", weights_only=True)' in err
    assert "from safetensors.torch import save_file" in err
    if name != "m.zip":
        code, _, err = netdsl("predict", name, "x.png")
        assert (code, "torch.load" in err) == (2, True)


def test_a_header_may_begin_like_a_pickle(tmp_path: Path) -> None:
    content = safetensors({"w": np.zeros(3, np.float32)})
    text = content[8:].partition(b"}}")[0] + b"}}"
    text += b" " * (0x280 - len(text))  # its length begins with the bytes 80 02
    (tmp_path / "w.safetensors").write_bytes(frame_safetensors(text, bytes(12)))
    assert read_tensors(tmp_path / "w.safetensors").tensors["w"].shape == (3,)


def test_imported_weights_carry_their_net(netdsl: Any, folder: Path) -> None:
    (folder / "names").write_text("ant\nbee\nant\n")
    code, out, _ = netdsl(
        "import", "w.safetensors", "--into", "x.net:a", "-o", "y.safetensors", "--classes", "names",
        "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert [m["source"] for m in report["matched"]] == ["features.0", "fc"]
    assert report["unused"] == {}
    found = checkpoint.load(folder / "y.safetensors")
    assert found.classes == ("ant", "bee", "ant (2)")
    assert 'source = folder(path="pictures")' in found.net_text
    assert "normalize = imagenet" in found.net_text
    assert "test" not in found.net_text
    weight = found.states["c.conv1.weight"]
    np.testing.assert_array_equal(weight.transpose(0, 3, 1, 2), TENSORS["features.0.weight"])
    code, out, _ = netdsl("summary", "x.net:a", "--json")
    assert code == 0


def test_bgr_and_scale_change_the_first_convolution_alone(folder: Path) -> None:
    plain = convert(folder, ImportOptions()).states
    turned = convert(folder, ImportOptions(is_bgr=True, scale=255.0)).states
    expected = plain["c.conv1.weight"][..., ::-1] * np.float32(255)
    np.testing.assert_array_equal(turned["c.conv1.weight"], expected)
    for name in plain.keys() - {"c.conv1.weight"}:
        np.testing.assert_array_equal(turned[name], plain[name])


def test_normalize_replaces_that_of_the_net_s_data(folder: Path) -> None:
    text = convert(folder, ImportOptions(normalize="by(mean=[0.4, 0.5, 0.6], std=[1])")).net_text
    assert "mean=[0.4, 0.5, 0.6]" in text
    assert "normalize = imagenet" not in text
    assert "resize(size=8)" in text
    with pytest.raises(NetError, match="statistics"):
        convert(folder, ImportOptions(normalize="nonsense"))


@pytest.mark.parametrize("text", ["input(5x5x3)\n fc(4)", "input(5x5x3)\n depthwise(3x3) -> fc(3)"])
def test_pixels_of_another_order_need_a_convolution(text: str, folder: Path) -> None:
    from netdsl.interchange.pixel_convention import adapt_first_layers
    from netdsl.language.elaborate import Settings, elaborate
    from netdsl.language.parse import parse
    from netdsl.language.program import build_program

    network = elaborate(build_program(parse(f"net a {{ {text} }}")), None, Settings())
    states = {n.name: np.zeros(n.type.shape, np.float32) for n in network.graph.states}
    with pytest.raises(NetError, match="not a convolution of all its channels"):
        adapt_first_layers(network, states, True, 1.0)
    assert adapt_first_layers(network, states, False, 1.0) == states


def test_names_of_classes(tmp_path: Path) -> None:
    assert read_class_names(None, 3).names == ("0", "1", "2")
    (tmp_path / "c").write_text("a\na (2)\na\na\n")
    found = read_class_names(tmp_path / "c", 4)
    names = found.names
    assert "`a (3)`, `a (4)`" in found.note
    assert names[:2] == ("a", "a (2)")
    assert len(set(names)) == 4
    for content, count, why in (("a\nb\n", 3, "2 lines"), ("a\n\nb\n", 3, "0 characters")):
        (tmp_path / "c").write_text(content)
        with pytest.raises(NetError, match=why):
            read_class_names(tmp_path / "c", count)


def test_weights_of_another_count_of_classes(netdsl: Any, folder: Path) -> None:
    code, _, err = netdsl("import", "w.safetensors", "--into", "x.net:b", "-o", "y.safetensors")
    assert code == 2
    assert "head (fc): weight 7x4, bias 7" in err
    assert "fc: bias 3, weight 3x4" in err or "fc: weight 3x4, bias 3" in err
    assert "net mine = NET(classes=10)" in err
    assert not (folder / "y.safetensors").exists()


def trials(folder: Path, count: int, seed: int) -> int:
    """How many damaged files are refused; the others give the weights as far as they are whole."""
    np.savez_compressed(folder / "w.npz", **TENSORS)
    whole = {n: (folder / n).read_bytes() for n in ("w.safetensors", "w.npz")}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng, refused, told = random.Random(seed), 0, []
    for i in range(count):
        name = list(whole)[i % 2]
        (folder / f"{i}-{name}").write_bytes(damaged(whole[name], rng))
        began = time.process_time()
        try:
            states = convert(folder, ImportOptions(), f"{i}-{name}").states
        except NetError as e:
            refused += 1
            told.append(e.render())
        else:
            assert {v.shape for v in states.values()} == {(4, 3, 3, 3), (4,), (3, 4), (3,)}
        assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert all(c.isprintable() or c == "\n" for text in told for c in text)
    return refused


def test_damaged_files(folder: Path) -> None:
    assert trials(folder, 60, seed=1) > 30


@pytest.mark.slow
def test_a_thousand_damaged_files(folder: Path) -> None:
    assert trials(folder, 1000, seed=2) > 500


HEADERS: dict[str, Any] = {
    "huge": {"w": {"dtype": "F32", "shape": [2**31 - 1] * 4, "data_offsets": [0, 12]}},
    "many parts": {".".join("x" * 500): {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
    "no weights": {"w": {"dtype": "I32", "shape": [3], "data_offsets": [0, 12]}},
    "odd names": {
        "\x1b[2J\n\u202e.weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    },
    "empty name": {"": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
    "dots": {"...": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
    "digits": {f"{'9' * 5000}.weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_hostile_headers(header: Any, netdsl: Any, folder: Path) -> None:
    (folder / "h.safetensors").write_bytes(frame_safetensors(header, bytes(12)))
    code, _, err = netdsl("import", "h.safetensors", "--into", "x.net:a", "-o", "y.safetensors")
    assert code == 2
    assert "\x1b" not in err
    assert len(err) < 5000


def test_many_modules_take_little_time(netdsl: Any, folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {f"m{i}x.weight": entry for i in range(9_000)}
    header |= {f"m{i:b}.weight".replace("0", "o"): entry for i in range(500)}
    (folder / "h.safetensors").write_bytes(frame_safetensors(header, b""))
    began = time.process_time()
    code, _, err = netdsl("import", "h.safetensors", "--into", "x.net:a", "-o", "y.safetensors")
    assert (code, "right shape" in err) == (2, True)
    assert time.process_time() - began < 5


def test_a_checkpoint_of_a_net_with_other_labels(netdsl: Any, folder: Path) -> None:
    (folder / "names").write_text("ant\nbee\nwasp\n")
    args = ("--into", "x.net:a", "-o", "y.safetensors", "--classes", "names")
    assert netdsl("import", "w.safetensors", *args)[0] == 0
    other = NET.replace("  c: conv", "  begin: conv").replace("  head: fc", "  end: fc")
    (folder / "z.net").write_text(other)
    code, out, err = netdsl("import", "y.safetensors", "--into", "z.net:a", "-o", "z.safetensors")
    assert code == 0, err
    assert "c.conv1 -> begin.conv1" in out
    mine, theirs = (checkpoint.load(folder / f"{n}.safetensors") for n in "zy")
    assert mine.classes == ("ant", "bee", "wasp")
    for name, value in theirs.states.items():
        new = name.replace("c.conv1", "begin.conv1").replace("head", "end")
        np.testing.assert_array_equal(mine.states[new], value)


@pytest.mark.parametrize("net", ["mine", "a"])
def test_nets_of_used_files(net: str, folder: Path) -> None:
    """The checkpoint contains what it needs of them, and no sections of the other file."""
    (folder / "m.net").write_text('use "x.net"\nnet mine = a(classes=3)\n')
    out = folder / "y.safetensors"
    options = ImportOptions(normalize="imagenet")
    import_weights(folder / "w.safetensors", f"{folder / 'm.net'}:{net}", out, options)
    network = load_network(checkpoint.load(out))
    assert network.name == net
    assert network.params == sum(v.size for v in TENSORS.values())
