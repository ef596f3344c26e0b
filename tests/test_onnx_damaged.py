"""Damaged and hostile ONNX files: a clear error or a correct net, in bounded memory."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, external_data_helper, helper, numpy_helper

from netdsl.errors import NetError
from netdsl.interchange.imported_net import ImportOptions
from netdsl.interchange.onnx_import import net as onnx_net
from netdsl.interchange.onnx_import import wire_format as onnx_wire
from netdsl.interchange.onnx_import.importer import import_onnx
from tests.onnx_models import MODELS, ModelText, f32, i64

BASES = tuple(
    m
    for m in MODELS
    if m.name in ("conv and bias", "reshape and matmul", "batch norm", "channel shuffle", "gelu 0")
)
MAX_NODES = 1000
"""The limit of nodes while hostile files are read."""
MAX_PEAK = 64 * 2**20
"""Bytes that reading a file of a few kilobytes may take."""


def read(path: Path) -> None:
    """Imports a file; all that may happen is a NetError."""
    out = path.with_suffix(".net")
    out.unlink(missing_ok=True)
    with suppress(NetError):
        import_onnx(path, out, path.with_suffix(".safetensors"), ImportOptions())
        assert out.exists()


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bytes flipped, cut, repeated, inserted or exchanged."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(found) or 1)
        size = rng.choice((1, 1, 2, 4, 16, 64))
        kind = rng.randrange(6)
        if kind == 0:
            found[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            found[at : at + 1] = bytes([found[at] ^ 1 << rng.randrange(8)]) if found else b""
        elif kind == 2:
            del found[at : at + size]
        elif kind == 3:
            found[at:at] = found[at : at + size]
        elif kind == 4:
            found[at:at] = rng.choice((b"\xff" * 9 + b"\x01", b"\x80" * 5, rng.randbytes(size)))
        else:
            del found[at:]
    return bytes(found)


def read_damaged(folder: Path, cases: range) -> None:
    contents = [m.model().SerializeToString() for m in BASES]
    for seed in cases:
        rng = random.Random(seed)
        path = folder / "damaged.onnx"
        path.write_bytes(damage(contents[seed % len(contents)], rng))
        try:
            read(path)
        except Exception as e:
            raise AssertionError(f"case {seed}") from e


def test_damaged_files_give_an_error_or_a_net(tmp_path: Path) -> None:
    read_damaged(tmp_path, range(60))


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    read_damaged(tmp_path, range(1000, 2000))


def conv_model() -> Any:
    return ModelText("conv", "y = Conv(x, w)", (1, 3, 8, 8), {"w": (4, 3, 3, 3)}).model()


def with_constant(lines: str, **constants: Any) -> Any:
    return ModelText("constants", lines, (1, 3, 8, 8), constants).model()


def lying_shape() -> Any:
    model = conv_model()
    model.graph.initializer[0].dims[:] = [2**30, 2**30, 3, 3]
    return model


def short_data() -> Any:
    model = conv_model()
    model.graph.initializer[0].raw_data = b"\0" * 10
    return model


def negative_shape() -> Any:
    model = conv_model()
    model.graph.initializer[0].dims[:] = [-4, -3, 3, 3]
    return model


def unknown_type() -> Any:
    model = conv_model()
    model.graph.initializer[0].data_type = 999
    return model


def cycle() -> Any:
    return ModelText("cycle", "a = Add(x, b)\nb = Relu(a)\ny = Relu(b)", (1, 3, 8, 8)).model()


def duplicate() -> Any:
    return ModelText("twice", "a = Relu(x)\na = Tanh(x)\ny = Relu(a)", (1, 3, 8, 8)).model()


def unknown_input() -> Any:
    return ModelText("unknown", "y = Add(x, nothing)", (1, 3, 8, 8)).model()


def recursive_function() -> Any:
    model = conv_model()
    body = [helper.make_node("F", ["a"], ["b"], domain="own")]
    opsets = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("F", ["y"], ["z"], domain="own"))
    return model


def exploding_functions() -> Any:
    """Each function calls the next one twice: 2^40 nodes."""
    model = conv_model()
    opsets = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    for i in range(40):
        name, domain = (f"F{i + 1}", "own") if i < 39 else ("Relu", "")
        body = [
            helper.make_node(name, ["a"], ["m"], domain=domain),
            helper.make_node(name, ["m"], ["b"], domain=domain),
        ]
        model.functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("F0", ["y"], ["z"], domain="own"))
    return model


def nested_graphs() -> Any:
    model = conv_model()
    graph = helper.make_graph([helper.make_node("Relu", ["y"], ["z"])], "inner", [], [])
    for _ in range(20):
        node = helper.make_node("If", ["y"], ["z"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "outer", [], [])
        if len(graph.SerializeToString()) > 2**20:
            break
    model.graph.node.extend(graph.node)
    return model


def many_nodes() -> Any:
    """A file whose graph is in many pieces, each of one node."""
    piece = type(conv_model())()
    piece.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    return conv_model().SerializeToString() + (MAX_NODES + 1) * piece.SerializeToString()


def old_opset() -> Any:
    model = conv_model()
    model.opset_import[0].version = 5
    return model


def large_constant() -> Any:
    lines = "c = ConstantOfShape(s)\ny = Add(x, c)"
    return with_constant(lines, s=i64(1, 3, 10**6, 10**6))


def many_large_constants() -> Any:
    lines = ["c0 = Expand(v, s)"]
    lines += [f"c{i + 1} = Add(c{i}, c{i})" for i in range(40)]
    return with_constant("\n".join((*lines, "y = Mul(x, c40)")), v=f32(1), s=i64(10**6))


def weights_used_often() -> Any:
    """A vector that 60 normalisations use: each has weights of its own."""
    lines = ["a0 = Relu(x)"]
    lines += [f"a{i + 1} = BatchNormalization(a{i}, v, v, v, v)" for i in range(60)]
    constants = {"v": np.ones(1000, np.float32)}
    return ModelText("often", "\n".join(lines), (1, 1000, 1, 1), constants).model()


def large_padding() -> Any:
    lines = "p = Pad(x, s)\ny = Conv(p, w)"
    return with_constant(lines, s=i64(0, 0, 10**9, 10**9, 0, 0, 10**9, 10**9), w=(4, 3, 3, 3))


def external(location: str, offset: int = 0, length: int | None = None) -> Callable[[], Any]:
    def make() -> Any:
        model = conv_model()
        tensor = model.graph.initializer[0]
        external_data_helper.set_external_data(tensor, location, offset, length)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        return model

    return make


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "lying shape": (lying_shape, "too large for any machine"),
    "short data": (short_data, "which is not 4x3x3x3"),
    "negative shape": (negative_shape, "no valid shape"),
    "unknown type": (unknown_type, "element type 999"),
    "cycle": (cycle, "needs its own result"),
    "duplicate": (duplicate, "two values are called `a`"),
    "unknown input": (unknown_input, "nothing computes `nothing`"),
    "recursive function": (recursive_function, "call themselves"),
    "exploding functions": (exploding_functions, "expand to more than"),
    "nested graphs": (nested_graphs, "nests graphs more than"),
    "many nodes": (many_nodes, "more than 1,000 nodes"),
    "old opset": (old_opset, "opset 5"),
    "large constant": (large_constant, "ConstantOfShape: there is no layer"),
    "many large constants": (many_large_constants, "more constants than"),
    "weights used often": (weights_used_often, "uses the same weights too often"),
    "large padding": (large_padding, "Pad: "),
    "no file": (external("weights.bin"), "not next to"),
    "parent": (external("../weights.bin"), "outside the model's folder"),
    "root": (external("/etc/hostname"), "outside the model's folder"),
    "link": (external("link.bin"), "outside the model's folder"),
    "folder": (external("folder"), "not next to"),
    "offset": (external("short.bin", offset=10), "is at 10"),
    "length": (external("short.bin", length=7), "has 7 bytes"),
    "huge offset": (external("short.bin", offset=10**17), "is at"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_an_error_in_little_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_wire, "MAX_ONNX_NODES", MAX_NODES)
    monkeypatch.setattr(onnx_net, "MAX_FOLDED_VALUES", 10**5)
    make, message = HOSTILE[name]
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(b"\0" * 432)
    (folder / "short.bin").write_bytes(b"\0" * 432)
    os.symlink(tmp_path / "outside.bin", folder / "link.bin")
    path = folder / "hostile.onnx"
    made = make()
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    tracemalloc.start()
    try:
        with pytest.raises(NetError) as error:
            import_onnx(path, folder / "x.net", None, ImportOptions())
        assert tracemalloc.get_traced_memory()[1] < MAX_PEAK
    finally:
        tracemalloc.stop()
    assert message in error.value.render()
    assert not (folder / "x.net").exists()


def test_values_beside_the_file_are_read(tmp_path: Path) -> None:
    model = conv_model()
    weights = numpy_helper.to_array(model.graph.initializer[0])
    (tmp_path / "values.bin").write_bytes(b"\0" * 8 + np.ascontiguousarray(weights).tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(external("values.bin", 8, weights.nbytes)().SerializeToString())
    report = import_onnx(path, tmp_path / "x.net", None, ImportOptions())
    assert report.values["params"] == weights.size
