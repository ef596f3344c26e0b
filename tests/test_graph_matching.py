"""Nets are matched by structure and shape: renamed, reordered, with folded batch normalisations."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.interchange.imported_net import ImportedNet, ImportOptions
from netdsl.interchange.layer_graph import LayerGraph, layer_graph
from netdsl.interchange.weights.graph_weights import match_graph
from netdsl.interchange.weights.importer import import_weights
from netdsl.interchange.weights.tensor_files import ForeignTensors
from netdsl.interchange.weights.tensor_matching import match_tensors
from netdsl.interchange.weights.torch_export import torch_tensors
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.ops.example_values import RandomDraw
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import Array
from tests.conftest import ROOT
from tests.random_nets import draw_net

REFERENCE = open_backend("reference")


def network_of(text: str) -> Network:
    return elaborate(build_program(parse(text)), None, Settings(batch=2))


def noise_states(network: Network, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        n.name: rng.uniform(0.5, 1.5, n.type.shape).astype(np.float32) for n in network.graph.states
    }


def renamed(graph: LayerGraph, states: Mapping[str, Array], seed: int) -> ImportedNet:
    """The same net with other names, in another order in which it can run."""
    rng = random.Random(seed)
    names = {n: f"n{k}" for k, n in enumerate(rng.sample(list(graph.nodes), len(graph.nodes)))}
    keys = {n: f"k{k}" for k, n in enumerate(rng.sample(list(states), len(states)))}
    left, placed = set(graph.nodes), []
    while left:
        ready = sorted(n for n in left if not left.intersection(graph.nodes[n].inputs))
        placed.append(rng.choice(ready))
        left.remove(placed[-1])
    nodes = {
        names[n]: replace(
            graph.nodes[n],
            name=names[n],
            inputs=tuple(names[i] for i in graph.nodes[n].inputs),
            states={s: keys[k] for s, k in graph.nodes[n].states.items()},
        )
        for n in placed
    }
    shapes = {keys[k]: shape for k, shape in graph.state_shapes.items()}
    outputs = {k: names[n] for k, n in graph.outputs.items()}
    values = {keys[k]: v for k, v in states.items()}
    return ImportedNet(LayerGraph(graph.name, nodes, outputs, shapes), values)


def recover(seed: int) -> bool:
    """Matches a drawn net with itself under other names; whether its states were all found. The
    only other end is a list of what nothing decides."""
    network = network_of(draw_net(RandomDraw(np.random.default_rng(seed))))
    states = {
        n.name: np.full(n.type.shape, i, np.float32) for i, n in enumerate(network.graph.states)
    }
    given = renamed(layer_graph(network), states, seed)
    try:
        found = match_graph(network, given, "x.onnx").states
    except NetError as e:
        if "neither the structure nor the shapes" in str(e):
            return False
        raise
    for name, value in states.items():
        np.testing.assert_array_equal(found[name], value, err_msg=f"{seed}: {name}")
    return True


def test_drawn_nets_under_other_names() -> None:
    assert all(map(recover, range(4)))


@pytest.mark.slow
def test_many_drawn_nets_under_other_names() -> None:
    assert sum(map(recover, range(4, 200))) >= 180


def fold(network: Network, states: Mapping[str, Array]) -> ImportedNet:
    """The net as exporters write it: batch normalisations are folded into convolutions."""
    graph, values = layer_graph(network), dict(states)
    nodes, replaced = dict(graph.nodes), dict[str, str]()
    eps = {x.path: x.arguments["eps"] for x in network.layers if x.layer_type == "batchnorm"}
    for norm in [n for n in graph.nodes.values() if n.layer == "batchnorm"]:
        product = nodes[norm.inputs[0]]
        readers = [n for n in graph.nodes.values() if product.name in n.inputs]
        if product.layer not in ("conv", "depthwise") or readers != [norm]:
            continue
        key = product.states["weight"]
        mean, var, gamma, beta = (
            values.pop(norm.states[s]) for s in ("running_mean", "running_var", "gamma", "beta")
        )
        factor = gamma / np.sqrt(var + eps[norm.name])
        values[key] = (values[key] * factor[:, None, None, None]).astype(np.float32)
        values[f"{key}.bias"] = (beta - mean * factor).astype(np.float32)
        nodes[product.name] = replace(product, states={**product.states, "bias": f"{key}.bias"})
        replaced[norm.name] = product.name
        del nodes[norm.name]
    nodes = {
        name: replace(n, inputs=tuple(replaced.get(i, i) for i in n.inputs))
        for name, n in nodes.items()
    }
    outputs = {k: replaced.get(n, n) for k, n in graph.outputs.items()}
    shapes = {k: v.shape for k, v in values.items()}
    return renamed(LayerGraph(graph.name, nodes, outputs, shapes), values, 1)


def run(network: Network, states: Mapping[str, Array]) -> Array:
    state = State(REFERENCE)
    state.load(states, network.graph.states, "it")
    x = np.random.default_rng(3).normal(size=(2, *network.image_shape)).astype(np.float32)
    return np.asarray(Executor(network.graph, REFERENCE, state).run({"input": x})["main"])


@pytest.mark.parametrize(
    "target", ["resnet:resnet8", "mobilenet_v3:mobilenet_v3_digits", "densenet:densenet_small"]
)
def test_folded_normalisations_get_the_identity_s_values(target: str) -> None:
    file, _, name = target.partition(":")
    program = load_program(str(ROOT / "models" / f"{file}.net"))
    network = elaborate(program, name, Settings(batch=2))
    states = noise_states(network)
    found = match_graph(network, fold(network, states), "x.onnx")
    assert "batch norms are folded" in found.notes[-1]
    expected = run(network, states)
    difference = np.abs(run(network, found.states) - expected).max()
    assert difference <= 2e-5 * np.abs(expected).max()


def test_a_normalisation_beside_which_something_reads_is_not_folded() -> None:
    text = "net a { input(4x4x3)\n conv(3, 1x1) -> add { identity | %s } -> fc(2) }"
    here, there = network_of(text % "batchnorm"), network_of(text % "relu")
    given = ImportedNet(layer_graph(there), noise_states(there))
    with pytest.raises(NetError, match="no layer like `batchnorm1`"):
        match_graph(here, given, "x.onnx")


BRANCHES = "net a {{ input(8x8x4)\n {join} {{ conv(4, 1x1) -> {a} | conv(4, 1x1) -> {b} }} }}"


@pytest.mark.parametrize(
    ("join", "a", "b", "is_ambiguous"),
    [("add", "relu", "relu", False), ("add", "relu", "tanh", True),
     ("concat", "relu", "tanh", False), ("sub", "relu", "tanh", False)],
)  # fmt: skip
def test_a_choice_matters_if_the_outputs_differ(
    join: str, a: str, b: str, is_ambiguous: bool
) -> None:
    """What lies between weights is no part of the structure, so it cannot decide, but it can make
    the choice matter. An order of operands decides."""
    network = network_of(BRANCHES.format(join=join, a=a, b=b))
    states = noise_states(network)
    given = renamed(layer_graph(network), states, 5)
    if is_ambiguous:
        with pytest.raises(NetError, match="neither the structure nor the shapes") as e:
            match_graph(network, given, "x.onnx")
        assert "could be" in e.value.diagnostics[0].notes[0]
        return
    found = match_graph(network, given, "x.onnx").states
    np.testing.assert_allclose(run(network, found), run(network, states), rtol=1e-6)


NET = """net a {{ input({size}x{size}x3)
  c: conv(4, 3x3, stride=2{pad}) -> {act} -> globalavgpool -> fc({classes}) }}"""


def test_what_no_weight_shows_is_told() -> None:
    here = network_of(NET.format(size=9, pad=", pad=1", act="relu", classes=3))
    there = network_of(NET.format(size=11, pad="", act="tanh", classes=3))
    given = ImportedNet(layer_graph(there), noise_states(there))
    notes = "\n".join(match_graph(here, given, "x.onnx").notes)
    assert "images are 11x11x3 in the file, 9x9x3 here" in notes
    assert "`c.conv1` has pad=[[1, 1], [1, 1]], `c.conv1` in the file [[0, 0], [0, 0]]" in notes
    assert "`relu` occurs 0 times in the file, once here" in notes
    assert "`tanh` occurs once in the file, 0 times here" in notes


def test_the_first_layer_without_its_like_is_named() -> None:
    here = network_of(NET.format(size=9, pad="", act="relu", classes=3))
    there = network_of(NET.format(size=9, pad="", act="relu", classes=5))
    given = ImportedNet(layer_graph(there), noise_states(there))
    with pytest.raises(NetError, match=r"no layer like `c\.fc1` of `a`: fc with a result"):
        match_graph(here, given, "x.onnx")
    deeper = network_of(
        "net a { input(9x9x3)\n c: conv(4, 3x3, stride=2) -> relu -> globalavgpool\n"
        "-> fc(3) -> fc(3) }"
    )
    given = ImportedNet(layer_graph(deeper), noise_states(deeper))
    with pytest.raises(NetError, match="more layers with weights than `a`"):
        match_graph(here, given, "x.onnx")


def test_an_auxiliary_classifier_that_a_file_lacks() -> None:
    """By structure, and by names: the help says how to leave it out."""
    text = (
        "net a(auxiliaries=yes) { input(9x9x3)\n conv(4, 3x3) -> relu\n"
        "if auxiliaries { output aux: fc(3) }\n globalavgpool -> fc(3) }"
    )
    here = network_of(text)
    there = network_of(text.replace("=yes", "=no"))
    given = ImportedNet(layer_graph(there), noise_states(there))
    with pytest.raises(NetError, match="no layer like `aux") as e:
        match_graph(here, given, "x.onnx")
    tensors = ForeignTensors("x", torch_tensors(there, noise_states(there)), (), {})
    with pytest.raises(NetError, match="right shape for 1 layer") as by_name:
        match_tensors(here, tensors)
    for error in (e, by_name):
        assert "net mine = NET(auxiliaries=no)" in (error.value.diagnostics[0].help or "")


def test_a_net_that_adds_values_to_themselves_takes_little_time() -> None:
    doubled = "add { identity | relu } -> mul { identity | tanh }\n" * 40
    network = network_of(f"net a {{ input(4x4x3)\n conv(3, 1x1) -> {doubled} fc(2) }}")
    states = noise_states(network)
    found = match_graph(network, ImportedNet(layer_graph(network), states), "x.onnx").states
    for name, value in states.items():
        np.testing.assert_array_equal(found[name], value)
    deep = "add { identity | relu } -> mul { identity | tanh }\n" * 60
    network = network_of(f"net a {{ input(4x4x3)\n conv(3, 1x1) -> {deep} fc(2) }}")
    with pytest.raises(NetError, match="nested more than 100 deep"):
        match_graph(network, ImportedNet(layer_graph(network), noise_states(network)), "x.onnx")


def test_squeezenet_s_weights_into_the_zoo_s(
    netdsl: object, data_dir: Path, tmp_path: Path
) -> None:

    model = data_dir / "squeezenet1_0.onnx"
    target = f"{ROOT / 'models' / 'squeezenet.net'}:squeezenet"
    report = import_weights(model, target, tmp_path / "x.safetensors", ImportOptions())
    assert len(report.values["matched"]) == 26
    assert report.values["unused"] == {}
    assert any("images are 227x227x3 in the file" in line for line in report.lines)
