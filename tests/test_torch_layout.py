"""States in PyTorch's layout and back, and what PyTorch would compute from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.interchange.weights.torch_layout import COUNTER, module_forms
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.layers import LAYERS
from netdsl.ops.example_values import RandomDraw
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.store import checkpoint
from netdsl.types import Array
from tests.random_nets import draw_single_layer_net

REFERENCE = open_backend("reference")
NOISE = np.random.default_rng(0)


def network_of(text: str) -> Network:
    return elaborate(build_program(parse(text)), None, Settings(batch=2))


def noise_states(network: Network) -> dict[str, Array]:
    return {
        n.name: NOISE.uniform(0.5, 1.5, n.type.shape).astype(np.float32)
        for n in network.graph.states
    }


def torch_states(network: Network, states: dict[str, Array]) -> dict[str, Array]:
    """By module and name there, each with the shape that PyTorch has."""
    return {
        f"{form.path}.{name}": state.to_torch(states[state.name])
        for form in module_forms(network)
        for name, state in form.states.items()
    }


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_each_layer_s_states_go_there_and_back(layer: Any) -> None:
    for seed in (7, 8):
        text = draw_single_layer_net(RandomDraw(np.random.default_rng(seed)), layer)
        assert text is not None
        network = network_of(text)
        states = noise_states(network)
        there, count = torch_states(network, states), 0
        for form in module_forms(network):
            shapes = {n: there[f"{form.path}.{n}"].shape for n in form.states}
            assert form.fits(shapes)
            for name, state in form.states.items():
                value = there[f"{form.path}.{name}"]
                assert value.shape == state.torch_shape
                np.testing.assert_array_equal(state.from_torch(value), states[state.name])
                for shape in state.other_shapes:
                    again = state.from_torch(value.reshape(shape))
                    np.testing.assert_array_equal(again, states[state.name])
                count += 1
        assert count == len(states)


def run(network: Network, states: dict[str, Array], x: Array) -> Array:
    state = State(REFERENCE)
    state.load(states, network.graph.states, "noise")
    return np.asarray(Executor(network.graph, REFERENCE, state).run({"input": x})["main"])


def test_weights_behind_an_image_are_in_pytorch_s_order() -> None:
    """What PyTorch would compute, written with NumPy: channels come first in its rows."""
    network = network_of(
        "net a { input(2x3x4)\n concat { flatten | flatten -> batchnorm } -> batchnorm\n"
        "-> dropout -> fc(5) }"
    )
    states, x = noise_states(network), NOISE.normal(size=(2, 2, 3, 4)).astype(np.float32)
    there = torch_states(network, states)

    def norm(path: str, rows: Array) -> Array:
        mean, var = (there[f"{path}.running_{k}"] for k in ("mean", "var"))
        return (rows - mean) / np.sqrt(var + 1e-5) * there[f"{path}.weight"] + there[f"{path}.bias"]

    first, second, last = (f.path for f in module_forms(network))
    rows = x.transpose(0, 3, 1, 2).reshape(2, -1)
    rows = norm(second, np.concatenate([rows, norm(first, rows)], axis=1))
    expected = rows @ there[f"{last}.weight"].T + there[f"{last}.bias"]
    np.testing.assert_allclose(run(network, states, x), expected, rtol=1e-4)


def test_a_convolution_s_weights_are_in_pytorch_s_order() -> None:
    network = network_of("net a { input(4x5x6)\n c: conv(8, 3x2, groups=2, bias=no) }")
    states, x = noise_states(network), NOISE.normal(size=(2, 4, 5, 6)).astype(np.float32)
    weight = torch_states(network, states)["c.weight"]
    assert weight.shape == (8, 3, 3, 2)
    patch = x.transpose(0, 3, 1, 2)[:, :, 1:4, 2:4]
    groups = [
        np.einsum("ncrs,kcrs->nk", patch[:, 3 * g : 3 * g + 3], weight[4 * g : 4 * g + 4])
        for g in (0, 1)
    ]
    found = run(network, states, x)[:, 1, 2]
    np.testing.assert_allclose(found, np.concatenate(groups, axis=1), rtol=1e-5, atol=1e-6)


def test_linear_and_convolution_hold_the_same_weights() -> None:
    point, whole = (
        module_forms(network_of(f"net a {{ input(3x4x5)\n {layer} }}"))[0]
        for layer in ("conv(7, 1x1)", "fc(7)")
    )
    assert point.fits({"weight": (7, 5), "bias": (7,)})
    assert whole.fits({"weight": (7, 5, 3, 4), "bias": (7,)})
    assert not whole.fits({"weight": (7, 3, 4, 5), "bias": (7,)})
    values = NOISE.normal(size=(7, 5, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        whole.states["weight"].from_torch(values),
        values.transpose(0, 2, 3, 1).reshape(7, -1),
    )


FILE = """net a(classes=10) { input(8x8x3)
  stem: conv(6, 3x3, pad=same, bias=no) -> batchnorm -> relu
  head: fc(classes) }
data { source = digits, normalize = imagenet }
train { epochs = 1 }
"""


def write_weights(path: Path) -> dict[str, Array]:
    network = network_of(FILE)
    states = noise_states(network)
    names = tuple(map(str, range(10)))
    checkpoint.save(path, checkpoint.Checkpoint(states, FILE, names, {}, {}))
    return states


def test_an_export_for_pytorch_is_imported_to_the_same_bits(netdsl: Any, tmp_path: Path) -> None:
    states = write_weights(tmp_path / "x.safetensors")
    (tmp_path / "a.net").write_text(FILE)
    code, out, _ = netdsl("export", "x.safetensors", "-o", "t.safetensors", "--layout", "torch")
    assert (code, "8 tensors" in out) == (0, True)
    tensors = load_file(tmp_path / "t.safetensors")
    assert tensors["stem.conv1.weight"].shape == (6, 3, 3, 3)
    assert tensors[f"stem.batchnorm1.{COUNTER}"].dtype == np.int64
    code, out, _ = netdsl("import", "t.safetensors", "--into", "a.net:a", "-o", "y.safetensors")
    assert code == 0
    assert "all 3 layers of `a` have their weights" in out
    found = checkpoint.load(tmp_path / "y.safetensors").states
    assert found.keys() == states.keys()
    for name, value in states.items():
        np.testing.assert_array_equal(found[name], value)


def test_exports_of_weights_name_their_layout(netdsl: Any, tmp_path: Path) -> None:
    write_weights(tmp_path / "x.safetensors")
    for more in ([], ["--layout", "keras"], ["--layout", "torch", "--raw"]):
        code, _, err = netdsl("export", "x.safetensors", "-o", "t.safetensors", *more)
        assert (code, err.startswith("error: ")) == (2, True)
        assert not (tmp_path / "t.safetensors").exists()
    code, _, err = netdsl("export", "x.safetensors", "-o", "t.onnx", "--layout", "torch")
    assert (code, "are for weights" in err) == (2, True)


def test_a_checkpoint_whose_names_another_program_saved(netdsl: Any, tmp_path: Path) -> None:
    """Without metadata its own names and shapes are enough."""
    states = write_weights(tmp_path / "x.safetensors")
    save_file(states, tmp_path / "bare.safetensors")
    (tmp_path / "a.net").write_text(FILE)
    code, out, _ = netdsl("import", "bare.safetensors", "--into", "a.net", "-o", "y.safetensors")
    assert (code, "used unchanged" in out) == (0, True)
    found = checkpoint.load(tmp_path / "y.safetensors").states
    for name, value in states.items():
        np.testing.assert_array_equal(found[name], value)


def test_imported_weights_start_a_run_with_another_head(netdsl: Any, tmp_path: Path) -> None:
    write_weights(tmp_path / "x.safetensors")
    netdsl("export", "x.safetensors", "-o", "t.safetensors", "--layout", "torch")
    plain = FILE.replace("8x8x3", "8x8x1").replace("normalize = imagenet", "batch = 200")
    (tmp_path / "a.net").write_text(FILE)
    netdsl("import", "t.safetensors", "--into", "a.net", "-o", "y.safetensors")
    init = 'epochs = 1, init = weights("y.safetensors", except=["head.*", "stem.conv1.*"])'
    (tmp_path / "b.net").write_text(plain.replace("epochs = 1", init))
    code, _, err = netdsl("train", "b.net", "--device", "reference", "--dry-run")
    assert code == 0, err
    (tmp_path / "c.net").write_text(plain.replace("epochs = 1", init.replace("y.", "t.")))
    code, _, err = netdsl("train", "c.net", "--device", "reference", "--dry-run")
    assert (code, "netdsl import t.safetensors --into FILE.net:NET" in err) == (2, True)


def test_a_net_that_lacks_states_is_refused(tmp_path: Path) -> None:
    from netdsl.interchange.weights.torch_export import export_torch

    states = write_weights(tmp_path / "x.safetensors")
    del states["head.bias"]
    content = checkpoint.Checkpoint(states, FILE, tuple(map(str, range(10))), {}, {})
    with pytest.raises(NetError, match=r"does not fit the net: `head\.bias` is missing"):
        export_torch(content, tmp_path / "t.safetensors")
