"""Names of other programs are matched with the layers of a net, or what is ambiguous is listed.

`tests/golden/torch_names` holds the modules of torchvision's and timm's nets: name, shapes, and the
layer here with which the net gives PyTorch's outputs (compared once, with random weights).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.errors import NetError
from netdsl.interchange.weights.module_tree import module_tree, split_number
from netdsl.interchange.weights.name_matching import match_modules
from netdsl.interchange.weights.tensor_files import ForeignTensors
from netdsl.interchange.weights.tensor_matching import match_tensors
from netdsl.interchange.weights.torch_export import torch_tensors
from netdsl.interchange.weights.torch_layout import COUNTER, module_forms
from netdsl.interchange.weights.torch_names import name_states
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.ops.example_values import RandomDraw
from netdsl.types import Array
from tests.conftest import ROOT
from tests.random_nets import draw_net

FAMILIES = sorted((ROOT / "tests" / "golden" / "torch_names").glob("*.txt"))
FAST = ("alexnet", "googlenet", "inception_v3", "regnet_y_400mf", "resnet18", "shufflenet_v2_x1_0")
NORM = ("weight", "bias", "running_mean", "running_var")


def network_of(text: str) -> Network:
    return elaborate(build_program(parse(text)), None, Settings())


def read_family(path: Path) -> tuple[str, dict[str, str], dict[str, tuple[int, ...]]]:
    """The net, the layer of each module (`-` for none) and the shapes of all states."""
    head, *lines = path.read_text().splitlines()
    layers, shapes = {}, {}
    for module, layer, *states in (line.split() for line in lines):
        layers[module] = layer
        for state in states:
            name, _, size = state.partition("=")
            shape = tuple(map(int, size.split("x"))) if size else ()
            for key in NORM if name == "norm" else (name,):
                shapes[f"{module}.{key}" if key else module] = shape
    return head.split(" -> ")[1], layers, shapes


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem.startswith(FAST) else pytest.mark.slow) for p in FAMILIES],
    ids=lambda p: p.stem,
)
def test_families_of_pytorch(path: Path) -> None:
    target, layers, shapes = read_family(path)
    file, _, net = target.partition(":")
    network = elaborate(load_program(str(ROOT / file)), net, Settings())
    names = list(shapes)
    random.Random(1).shuffle(names)
    forms = module_forms(network)
    found = match_modules(network, forms, module_tree({n: shapes[n] for n in names}))
    assert not isinstance(found, int)
    assert not found.ambiguities
    assert {m.path: forms[i].path for i, m in found.pairs} == {
        module: layer for module, layer in layers.items() if layer != "-"
    }
    assert len(found.pairs) == len(forms)


def foreign(tensors: Mapping[str, Array], **metadata: str) -> ForeignTensors:
    return ForeignTensors("x.safetensors", tensors, (), metadata)


def numbered_states(network: Network) -> dict[str, Array]:
    """States whose values say which state they are, and which value of it."""
    return {
        n.name: (1000 * i + np.arange(n.type.size) % 997).astype(np.float32).reshape(n.type.shape)
        for i, n in enumerate(network.graph.states)
    }


def renamed(tensors: Mapping[str, Array], rng: random.Random) -> dict[str, Array]:
    """The same with another word for each part of a path, in another order; numbers stay."""
    words: dict[str, str] = {}
    found = {}
    for name in rng.sample(list(tensors), len(tensors)):
        *path, state = name.split(".")
        parts = []
        for k, part in enumerate(path):
            stem = ".".join((*path[:k], re.sub(r"\d+$", "", part)))
            word = words.setdefault(stem, f"{''.join(rng.sample('bcdfgklmnp', 5))}_")
            parts.append(f"{word}{part[len(part.rstrip('0123456789')) :]}")
        found[".".join(("model", *parts, state))] = tensors[name]
    return found


def recover(seed: int) -> bool:
    """Renames and shuffles the states of a drawn net; whether they were all found. The only other
    end is a list of what nothing decides: never is a wrong state taken."""
    network = network_of(draw_net(RandomDraw(np.random.default_rng(seed))))
    states = numbered_states(network)
    tensors = {k: v for k, v in torch_tensors(network, states).items() if not k.endswith(COUNTER)}
    given = foreign(renamed(tensors, random.Random(seed)))
    try:
        found = match_tensors(network, given).states
    except NetError as e:
        if "neither the names nor the shapes" not in str(e):
            raise
        return False
    for name, value in states.items():
        np.testing.assert_array_equal(found[name], value, err_msg=f"{seed}: {name}")
    return True


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(p, marks=() if p.stem in ("resnet18", "googlenet") else pytest.mark.slow)
        for p in FAMILIES
    ],
    ids=lambda p: p.stem,
)
def test_states_by_the_names_of_another_program(family: Path) -> None:
    """They have these names and shapes, and are read back; also where the heads of the file have 7
    classes more."""
    target, _, shapes = read_family(family)
    file, _, net = target.partition(":")
    network = elaborate(load_program(str(ROOT / file)), net, Settings())
    states = numbered_states(network)
    there = {n: np.broadcast_to(np.float32(0.5), shape) for n, shape in shapes.items()}
    named = name_states(network, states, foreign(there)).tensors
    assert {n: v.shape for n, v in named.items()} == shapes
    scores = (network.main_output.type.shape[-1],)
    heads = {n.rpartition(".")[0] for n, shape in shapes.items() if shape == scores}
    large = {
        n: np.repeat(v, 2, 0)[: len(v) + 7]
        for n, v in there.items()
        if n.rpartition(".")[0] in heads
    }
    again = name_states(network, states, foreign(there | large))
    assert f"{scores[0]:,} classes instead of {scores[0] + 7:,}: " in again.notes[0]
    found = match_tensors(network, foreign(again.tensors)).states
    for name, value in states.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_renamed_and_shuffled_states_of_drawn_nets_are_recovered() -> None:
    assert all(map(recover, range(4)))


@pytest.mark.slow
def test_states_of_many_drawn_nets_are_recovered() -> None:
    assert sum(map(recover, range(4, 400))) >= 370


TWO = "net a {{ input(8x8x4)\n {join} {{ conv(4, 3x3, pad=same) | conv(4, 3x3, pad=same) }} }}"


def two_branches(join: str) -> Any:
    network = network_of(TWO.format(join=join))
    tensors = {
        f"{name}.{state}": np.full(shape, k, np.float32)
        for k, name in enumerate(("left", "right"))
        for state, shape in (("weight", (4, 4, 3, 3)), ("bias", (4,)))
    }
    return match_tensors(network, foreign(tensors)).states


def test_branches_that_a_sum_cannot_tell_apart_take_either() -> None:
    found = two_branches("add")
    assert {float(v.flat[0]) for k, v in found.items() if k.endswith("weight")} == {0, 1}


def test_alike_branches_do_not_hide_one_that_is_not() -> None:
    """Four branches of a sum may be exchanged, the fifth, which a tangent follows, may not: there
    are more equal assignments than are kept, so none is taken."""
    same = " | ".join(["conv(4, 1x1, bias=no)"] * 4)
    network = network_of(
        f"net a {{ input(8x8x4)\n add {{ {same} | conv(4, 1x1, bias=no) -> tanh }} }}"
    )
    tensors = {f"{n}.weight": np.zeros((4, 4, 1, 1), np.float32) for n in ("p", "qq", "r_", "xx")}
    tensors["z_z.weight"] = np.zeros((4, 4, 1, 1), np.float32)
    with pytest.raises(NetError, match=r"too many ways|neither the names nor the shapes"):
        match_tensors(network, foreign(tensors))


@pytest.mark.parametrize("join", ["concat", "sub"])
def test_branches_that_nothing_tells_apart_are_listed(join: str) -> None:
    with pytest.raises(NetError, match="neither the names nor the shapes") as e:
        two_branches(join)
    assert any("could be `left` or `right`" in note for note in e.value.diagnostics[0].notes)


def test_a_shortcut_is_not_the_third_convolution() -> None:
    """All three have one shape; `conv2` reads `conv1`, and the shortcut does not."""
    network = network_of(
        "net a { input(8x8x4)\n add { conv(4, 1x1) -> conv(4, 1x1) | conv(4, 1x1) } }"
    )
    for names in (("conv1", "conv2", "downsample.0"), ("zconv1", "zconv2", "a")):
        tensors = {
            f"{n}.{s}": np.full(shape, k, np.float32)
            for k, n in enumerate(names)
            for s, shape in (("weight", (4, 4, 1, 1)), ("bias", (4,)))
        }
        found = match_tensors(network, foreign(tensors)).modules
        assert [m.source for m in found] == list(names)


def test_a_word_decides_which_branch_reads_a_pooling() -> None:
    network = network_of(
        "net a { input(8x8x4)\n concat { conv(4, 1x1) | maxpool(3x3, stride=1, pad=1) "
        "-> conv(4, 1x1) } }"
    )
    names = ("branch1x1", "branch_pool")
    shapes = {f"{n}.{s}": x for n in names for s, x in (("weight", (4, 4, 1, 1)), ("bias", (4,)))}
    tensors = {k: np.zeros(shape, np.float32) for k, shape in shapes.items()}
    assert [m.source for m in match_tensors(network, foreign(tensors)).modules] == list(names)


def test_what_does_not_fit_is_listed_by_name_and_shape() -> None:
    network = network_of("net a { input(8x8x4)\n c: conv(4, 1x1) -> globalavgpool -> fc(10) }")
    tensors = {"c.weight": (4, 4, 1, 1), "c.bias": (4,), "fc.weight": (7, 4), "fc.bias": (7,)}
    given = foreign({k: np.zeros(shape, np.float32) for k, shape in tensors.items()})
    with pytest.raises(NetError, match="no weights of the right shape for 1 layer of `a`") as e:
        match_tensors(network, given)
    notes = "\n".join(e.value.diagnostics[0].notes)
    assert "fc1 (fc): weight 10x4, bias 10" in notes
    assert "fc: weight 7x4, bias 7" in notes
    norm = {f"bn.{k}": (4,) for k in ("weight", "bias", "running_mean", "running_var")}
    given = foreign({k: np.zeros(shape, np.float32) for k, shape in (tensors | norm).items()})
    with pytest.raises(NetError, match="an exporter folded them"):
        match_tensors(network_of("net a { input(8x8x4)\n conv(5, 3x3) -> fc(10) }"), given)
    shuffled = {"b.c.weight": (4, 4, 1, 1), "b.fc.weight": (10, 4), "z.bias": (4,)}
    with pytest.raises(NetError, match="no weights of the right shape"):
        match_tensors(network, foreign({k: np.zeros(s, np.float32) for k, s in shuffled.items()}))


def test_names_whose_order_is_not_the_net_s_are_told() -> None:
    network = network_of("net a { input(8x8x4)\n conv(4, 3x3, bias=no) -> conv(4, 1x1, bias=no) }")
    tensors = {"c2.weight": (4, 4, 3, 3), "c1.weight": (4, 4, 1, 1)}
    with pytest.raises(NetError, match="the order and nesting of their names are not those"):
        match_tensors(network, foreign({k: np.zeros(s, np.float32) for k, s in tensors.items()}))


def test_own_names_and_shapes_are_taken_as_they_are() -> None:
    network = network_of("net a { input(3x3x3)\n c: conv(3, 3x3) -> batchnorm -> fc(3) }")
    states = numbered_states(network)
    found = match_tensors(network, foreign(states))
    for name, value in states.items():
        np.testing.assert_array_equal(found.states[name], value)
    torch = torch_tensors(network, states)
    found = match_tensors(network, foreign(torch, format="pt"))
    for name, value in states.items():
        np.testing.assert_array_equal(found.states[name], value)


def test_metadata_decide_between_layouts_of_one_shape() -> None:
    """3 channels and 3x3: names and shapes are the same in both layouts."""
    network = network_of("net a { input(4x4x3)\n c: conv(3, 3x3, bias=no) }")
    values = numbered_states(network)["c.weight"]
    as_is = match_tensors(network, foreign({"c.weight": values})).states["c.weight"]
    turned = match_tensors(network, foreign({"c.weight": values}, format="pt")).states["c.weight"]
    np.testing.assert_array_equal(as_is, values)
    np.testing.assert_array_equal(turned, values.transpose(0, 2, 3, 1))


def test_too_many_ways_end_the_search() -> None:
    from netdsl.interchange.weights import name_matching

    network = network_of("net a { input(4x4x4)\n conv(4, 1x1, bias=no) * 16 -> conv(3, 1x1) }")
    names = [f"{chr(97 + i)}{chr(97 + j)}" for i in range(4) for j in range(4)]
    tensors = {f"{n}.weight": np.zeros((4, 4, 1, 1), np.float32) for n in names}
    last = {"z.weight": np.zeros((3, 4, 1, 1), np.float32), "z.bias": np.zeros(3, np.float32)}
    before = name_matching.MAX_SEARCH_STEPS
    name_matching.MAX_SEARCH_STEPS = 2000
    try:
        with pytest.raises(NetError, match="too many ways"):
            match_tensors(network, foreign(tensors | last))
    finally:
        name_matching.MAX_SEARCH_STEPS = before


@pytest.mark.parametrize(
    ("name", "stem", "rank"),
    [
        ("layer10", "layer#", ((10, ""),)),
        ("inception4a", "inception#", ((4, "a"),)),
        ("branch3x3dbl_2", "branch3x3dbl_#", ((2, ""),)),
        ("branch1x1", "branch1x1", ()),
        ("block1-0", "block#-#", ((1, ""), (0, ""))),
        ("b", "#", ((0, "b"),)),
        ("conv_pw", "conv_pw", ()),
    ],
)
def test_numbers_in_names(name: str, stem: str, rank: Any) -> None:
    assert split_number(name) == (stem, rank)
