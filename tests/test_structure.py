"""Graphs of layer calls written as nets: the text gives the same graph again, and reads well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.interchange.layer_graph import LayerGraph, layer_graph
from netdsl.interchange.structure.calls import canonical_arguments
from netdsl.interchange.structure.fold import Draft
from netdsl.interchange.structure.graph import difference, without_identities
from netdsl.interchange.structure.structured_net import (
    StructuredNet,
    fold_graph,
    name_states,
    state_keys,
    structure,
)
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_text
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ops.example_values import RandomDraw
from netdsl.types import Array
from netdsl.values import Argument, Size, Symbol
from tests.golden import assert_matches_golden
from tests.random_nets import draw_net
from tests.structure_lines import (
    MODELS,
    ZooNet,
    anonymous,
    count_net_lines,
    count_text_lines,
    find_net,
    nets_of,
)

FEW = (
    "resnet:resnet18",
    "mobilenet:mobilenet_v2",
    "mobilenet_v3:mobilenet_v3_digits",
    "densenet:densenet_small",
    "googlenet:googlenet_small",
    "inception_v3:inception_v3_small",
    "shufflenet:shufflenet_small",
    "squeezenet:squeezenet",
    "unet:unet_small",
    "siamese:siamese",
    "norms:weight",
    "receptive_field:linear",
    "scales:q224",
)
"""Nets of every run; the others are slow."""
GOLDEN = (
    "resnet:resnet50",
    "mobilenet:mobilenet_v2",
    "googlenet:googlenet",
    "unet:unet",
    *FEW[-6:],
)
EVALUATED = ("resnet:resnet8", "densenet:densenet_small", "unet:unet_small", "siamese:halves")
"""Small nets whose values are compared."""
MORE_LINES = 4
"""By which a structured text may be longer than what was written by hand..."""
LONGER = {
    "convnext": "each residual has a rate of its own, which no expression gives",
    "efficientnet": "each residual has a rate of its own, which no expression gives",
    "side_by_side": "its nets are instances",
}
"""... and the files in which it is still longer."""


@cache
def graph_of(name: str) -> LayerGraph:
    return find_net(name).graph


def graph_of_text(text: str) -> LayerGraph:
    return layer_graph(elaborate(build_program(parse(text))))


def assert_same_graph(graph: LayerGraph, structured: StructuredNet) -> None:
    """The text is in canonical layout, and gives the graph and its states."""
    assert format_text(structured.text) == structured.text
    network = structured.network
    written = without_identities(layer_graph(network))
    wanted = without_identities(graph)
    assert difference(wanted, written, structured.order, structured.outputs) is None
    keys = state_keys(network, structured, graph)
    assert {*keys} == {n.name for n in network.graph.states}
    assert {*keys.values()} == {*graph.state_shapes}
    for name, key in keys.items():
        assert network.graph[name].type.shape == graph.state_shapes[key]
    names = name_states(network, structured, graph)
    assert all(keys[name] == key for key, name in names.items())


def values_of(network: Network, states: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs for inputs that depend on their shapes alone."""
    feeds = {
        n.name: np.random.default_rng(i).normal(size=n.type.shape).astype(np.float32)
        for i, n in enumerate(network.graph.inputs)
    }
    return evaluate_results(network.graph, {**feeds, **states})


def random_states(graph: LayerGraph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        key: np.abs(rng.normal(size=shape) * 0.3 + 0.5).astype(np.float32)
        for key, shape in graph.state_shapes.items()
    }


# ---- nets of models/ --------------------------------------------------------------------------


def assert_comes_back(net: ZooNet) -> None:
    """The net comes back, with and without its names, and is about as long as it was written."""
    graph = net.graph
    limit = count_net_lines(net.program, net.name) + MORE_LINES
    for known in (graph, anonymous(graph)):
        structured = fold_graph(known)
        assert_same_graph(known, structured)
        if net.path.stem not in LONGER:
            assert count_text_lines(structured.text) <= limit


@pytest.mark.parametrize("name", FEW)
def test_a_net_comes_back(name: str) -> None:
    assert_comes_back(find_net(name))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_all_nets_of_the_zoo_come_back(path: Path) -> None:
    for net in nets_of(path):
        assert_comes_back(net)


@pytest.mark.parametrize("name", FEW[:3])
def test_one_graph_has_one_text(name: str) -> None:
    assert structure(graph_of(name)).text == structure(graph_of(name)).text


@pytest.mark.parametrize("name", EVALUATED)
def test_a_structured_net_computes_the_same(name: str) -> None:
    net = find_net(name)
    network = elaborate(net.program, net.name)
    graph = layer_graph(network)
    structured = structure(graph)
    again = structured.network
    states = random_states(graph)
    names = state_keys(again, structured, graph)
    ours = values_of(again, {name: states[key] for name, key in names.items()})
    for output, values in values_of(network, states).items():
        np.testing.assert_array_equal(ours[structured.outputs[output]], values)


@pytest.mark.parametrize("name", GOLDEN)
def test_texts_of_structured_nets(name: str) -> None:
    file = name.replace(":", "_")
    assert_matches_golden(f"structure/{file}.net", structure(graph_of(name)).text)
    nameless = structure(anonymous(graph_of(name)))
    assert_matches_golden(f"structure/{file}_nameless.net", nameless.text)


# ---- any graph --------------------------------------------------------------------------------


@st.composite
def flat_texts(draw: st.DrawFn) -> str:
    """A net whose statements read any earlier values: several inputs, shared weights, values that
    nothing reads, side outputs, skips of any kind."""
    lines = ["shared w = conv(4, 3x3, pad=same) -> relu", "shared v = conv(4, 1x1)"]
    count = draw(st.integers(1, 3))
    lines += [f"x{i}: input(4x4x4)" for i in range(count)]
    for i in range(count, count + draw(st.integers(1, 14))):
        earlier = st.integers(max(0, i - draw(st.sampled_from((1, 2, 3, i)))), i - 1)
        layers = st.sampled_from(
            ("", " -> relu", " -> conv(4, 1x1)", " -> w", " -> v -> batchnorm")
        )
        branches = draw(st.lists(st.tuples(earlier, layers), min_size=1, max_size=3))
        texts = [f"x{j}{layer}" for j, layer in branches]
        join = draw(st.sampled_from(("add", "mul", "concat")))
        end = " -> conv(4, 1x1, bias=no)" if join == "concat" else ""
        is_join = len(texts) > 1
        lines.append(
            f"x{i}: {join} {{ {' | '.join(texts)} }}{end}" if is_join else f"x{i}: {texts[0]}"
        )
        if draw(st.integers(0, 9)) == 0:
            lines.append(f"output o{i}: x{i} -> globalavgpool")
    if draw(st.booleans()):
        lines.append("x0")
    return "net drawn {\n" + "\n".join(lines) + "\n}"


@settings(max_examples=30)
@given(flat_texts())
def test_any_graph_comes_back(text: str) -> None:
    graph = graph_of_text(text)
    assert_same_graph(graph, fold_graph(graph))


@settings(max_examples=8)
@given(flat_texts())
def test_a_flat_text_gives_any_graph(text: str) -> None:
    graph = graph_of_text(text)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Draft, "fold", _spoil)
        assert_same_graph(graph, structure(graph))


def _spoil(draft: Draft) -> None:
    """A fold that loses the last call of every chain."""
    draft.chains = [c[:-1] for c in draft.chains]


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=() if s < 6 else pytest.mark.slow) for s in range(100)]
)
def test_nets_of_any_layers_come_back(seed: int) -> None:
    graph = graph_of_text(draw_net(RandomDraw(np.random.default_rng(seed))))
    assert_same_graph(graph, fold_graph(graph))


@pytest.mark.parametrize(
    "text",
    [
        "net n { input(4x4x4) }",
        "net n { x: input(4x4x4); output a: relu; x }",
        "net n { x: input(4x4x4); y: relu; output a: y; output b: y; output c: x; y }",
        "net n { one: input(4); two: input(3); one }",
        "net n { x: input(4x4x4); relu; x }",
        "net n { x: input(4x4x4); add { identity | x | x | relu } }",
        "net n { input(4); identity -> identity }",
    ],
)
def test_the_smallest_graphs_come_back(text: str) -> None:
    graph = graph_of_text(text)
    assert_same_graph(graph, fold_graph(graph))


def test_deep_nesting_is_written_with_labels() -> None:
    depth = 200
    lines = ["x0: input(2x2x2)"]
    lines += [f"x{i + 1}: x{i} -> relu" for i in range(depth)]
    lines.append(f"y{depth}: x{depth} -> tanh")
    lines += [f"y{i}: add {{ x{i} | y{i + 1} }}" for i in reversed(range(depth))]
    graph = graph_of_text("net deep {\n" + "\n".join(lines) + "\n}")
    assert_same_graph(graph, fold_graph(graph))


# ---- weights ----------------------------------------------------------------------------------


TWINS = """net twins {
  shared w = conv(4, 3x3, pad=same)
  input(4x4x4)
  w -> batchnorm -> relu -> w -> batchnorm -> relu
}"""


def test_weights_that_a_text_cannot_share_are_copied() -> None:
    """Two batch normalisations with one scale, as exporters write equal tensors once."""
    graph = graph_of_text(TWINS)
    first = next(n for n in graph.nodes.values() if n.layer == "batchnorm")
    nodes = {
        n.name: replace(n, states=first.states) if n.layer == "batchnorm" else n
        for n in graph.nodes.values()
    }
    used = {k for n in nodes.values() for k in n.states.values()}
    shapes = {k: v for k, v in graph.state_shapes.items() if k in used}
    tied = LayerGraph(graph.name, nodes, graph.outputs, shapes)
    structured = structure(tied)
    assert_same_graph(tied, structured)
    keys = [*state_keys(structured.network, structured, tied).values()]
    assert keys.count(first.states["gamma"]) == 2
    assert sum(k.endswith("weight") for k in keys) == 1


# ---- arguments --------------------------------------------------------------------------------


def canonical(call: str, shape: str = "8x8x4") -> dict[str, object]:
    graph = graph_of_text(f"net n {{ input({shape}); {call} }}")
    return dict(canonical_arguments([*graph.nodes.values()][-1]))


@pytest.mark.parametrize(
    ("call", "other"),
    [
        ("conv(4, 3, 2, 1)", "conv(4, 3x3, stride=2, pad=same)"),
        ("conv(4, 5, pad=[2, 2, 2, 2], dilation=1, groups=1, bias=yes)", "conv(4, 5x5, pad=same)"),
        ("conv(4, 3x3, dilation=2, pad=2)", "conv(4, 3x3, pad=same, dilation=2x2)"),
        ("conv(4, 1x7, pad=0x3)", "conv(4, 1x7, pad=same)"),
        ("conv(4, 2x2, pad=[0, 1, 0, 1])", "conv(4, 2x2, pad=same)"),
        ("conv(4, 1)", "conv(4, 1x1, pad=same)"),
        ("maxpool(2, 2)", "maxpool(2x2)"),
        ("batchnorm(gamma=1, beta=0)", "batchnorm"),
        ("conv(4, 1x1, weight=he())", "conv(4, 1x1)"),
    ],
)
def test_equal_calls_have_equal_arguments(call: str, other: str) -> None:
    assert canonical(call) == canonical(other)


@pytest.mark.parametrize(
    ("call", "other"),
    [
        ("conv(4, 3x3, pad=1)", "conv(4, 3x3)"),
        ("conv(4, 2x2, pad=1)", "conv(4, 2x2, pad=same)"),
        ("convtranspose(4, 3x3, stride=2, pad=1)", "convtranspose(4, 3x3, stride=2, pad=same)"),
        ("conv(4, 1x1, bias=1)", "conv(4, 1x1)"),
        ("batchnorm(gamma=0)", "batchnorm"),
    ],
)
def test_different_calls_have_different_arguments(call: str, other: str) -> None:
    assert canonical(call) != canonical(other)


def test_padding_of_one_pixel_windows_is_kept() -> None:
    graph = graph_of_text("net n { input(4x4x4); maxpool(1x1, pad=same) -> conv(4, 1x1, pad=0) }")
    assert_same_graph(graph, fold_graph(graph))


def test_every_digit_of_a_number_is_written() -> None:
    text = "net n { input(4x4x4); batchnorm(eps=0.00012345678901234567) -> dropout(1e-7) }"
    assert_same_graph(graph_of_text(text), fold_graph(graph_of_text(text)))


# ---- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "conv", "net", "2 nets\n}", "é è", "x" * 500, "relu1"])
def test_any_names_become_identifiers(name: str) -> None:
    graph = graph_of("unet:unet_small")
    odd = LayerGraph(name, graph.nodes, graph.outputs, graph.state_shapes)
    names = {n: f"{name}/{name}/{i}" for i, n in enumerate(graph.nodes)}
    nodes = (
        replace(n, name=names[n.name], inputs=tuple(names[i] for i in n.inputs))
        for n in graph.nodes.values()
    )
    outputs = {"main": names[graph.outputs["main"]], f"{name} 2": [*names.values()][3]}
    odd = LayerGraph(name, {n.name: n for n in nodes}, outputs, graph.state_shapes)
    assert_same_graph(odd, fold_graph(odd))


def test_modules_of_other_programs_name_statements_and_blocks() -> None:
    text = (
        "net n { input(8x8x4); " + "conv(4, 3x3, pad=same) -> batchnorm -> relu; " * 8 + "fc(2) }"
    )
    graph = graph_of_text(text)
    module = ("conv", "bn", "act")
    names = {}
    for i, name in enumerate([n for n in graph.nodes if n != "input"]):
        path = f"/layer{i // 6 + 1}/layer{i // 6 + 1}.{i // 3 % 2}/{module[i % 3]}/Op"
        names[name] = path if i < 24 else "/fc/Gemm"
    names["input"] = "data"
    nodes = (
        replace(n, name=names[n.name], inputs=tuple(names[i] for i in n.inputs))
        for n in graph.nodes.values()
    )
    main = names[graph.outputs["main"]]
    odd = LayerGraph("n", {n.name: n for n in nodes}, {"main": main}, graph.state_shapes)
    text = fold_graph(odd).text
    assert all(f"layer{i}:" in text for i in range(1, 5))
    assert "head:" in text


# ---- what cannot be written -------------------------------------------------------------------


_UNIT = "block unit(c) { conv(c, 3x3, pad=same) -> relu -> conv(c, 3x3, pad=same) -> relu }\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "unit1: unit(8); unit2: unit(8); maxpool(2x2); unit3: unit(9); unit4: unit(12)",
            ("unit2: cr(8) * 2", "maxpool(2x2)", "unit3: cr(9) * 2"),
        ),
        (
            "unit1: unit(8); maxpool(2x2); unit2: unit(9); maxpool(2x2); unit3: unit(12)\n"
            "unit4: concat { unit2 | upsample(2) } -> unit(9)\n"
            "unit5: concat { unit1 | upsample(2) } -> unit(8)",
            ("unit3: cr(12) * 2", "unit4: concat { unit2 | upsample(2) } -> cr(9) * 2"),
        ),
    ],
)
def test_a_module_is_named_without_the_poolings_and_joins_around_it(
    body: str, expected: tuple[str, ...]
) -> None:
    text = f"{_UNIT}net n {{ input(8x8x3); {body}; head: globalavgpool -> fc(3) }}"
    graph = graph_of_text(text)
    outside = ("maxpool", "upsample", "concat")
    names = {n: f"x{i}" for i, (n, x) in enumerate(graph.nodes.items()) if x.layer in outside}
    nodes = (
        replace(n, name=names.get(n.name, n.name), inputs=tuple(names.get(i, i) for i in n.inputs))
        for n in graph.nodes.values()
    )
    odd = LayerGraph("n", {n.name: n for n in nodes}, graph.outputs, graph.state_shapes)
    found = [re.sub(": +", ": ", line.strip()) for line in structure(odd).text.splitlines()]
    assert {*expected} <= {*found}


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("(fc(64) -> relu -> dropout(0.3)) * 2 -> fc(10)", "fc(10)"),
        ("(dropout(0.5) -> fc(64) -> relu) * 2; fc(10)", "fc(10)"),
        ("mix(8) * 2; dropout -> conv(10, 1x1) -> relu -> globalavgpool", "dropout -> cr(10, 1x1)"),
        ("conv(24, 1x1) -> relu; globalavgpool -> dropout(0.2) -> fc(10)", "globalavgpool"),
    ],
)
def test_the_head_holds_only_the_layer_of_the_classes(body: str, head: str) -> None:
    text = (
        "block mix(c) { conv(c, 1x1) -> relu -> concat { conv(c, 3x3, pad=same) -> relu | "
        "conv(c, 1x1) -> relu } }\n"
        "net n { input(32x32x3); (conv(8, 3x3, pad=same) -> relu) * 2 -> maxpool(2x2); "
        f"(conv(16, 3x3, pad=same) -> relu) * 3 -> maxpool(2x2); {body} }}"
    )
    found = structure(anonymous(graph_of_text(text)))
    states = [n.name for n in found.network.parameters]
    in_head = [n for n in states if n.startswith("head.")]
    assert in_head == states[-2:]  # weight and bias of the last layer
    assert re.search(rf"head: +{re.escape(head)}", found.text)


def test_a_call_that_does_not_fit_its_layer_is_refused() -> None:
    graph = graph_of_text("net n { input(4x4x4); conv(4, 3x3) }")
    conv = graph.nodes["conv1"]
    bad = replace(conv, arguments=(Argument("kernel", Size((3, 3))), Argument("size", 1)))
    with pytest.raises(NetError, match="no parameter `size`"):
        structure(replace(graph, nodes={**graph.nodes, "conv1": bad}))


def test_shapes_that_contradict_the_calls_are_refused() -> None:
    graph = graph_of_text("net n { input(4x4x4); conv(4, 3x3); relu }")
    bad = replace(graph.nodes["relu1"], shape=(2, 2, 5))
    with pytest.raises(NetError, match="differ in shape"):
        structure(replace(graph, nodes={**graph.nodes, "relu1": bad}))


def test_words_stay_words() -> None:
    node = graph_of_text("net n { input(4x4x4); layernorm(axis=channels) }").nodes["layernorm1"]
    assert canonical_arguments(node) == (("axis", Symbol("channels")),)
