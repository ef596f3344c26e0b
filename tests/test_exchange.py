"""The IR for other programs: as a networkx graph, as JSON that is read back, as GraphML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import netdsl as package
from netdsl.errors import NetError
from netdsl.insight.compile_target import CompileTarget
from netdsl.insight.explain import compile_target
from netdsl.ir.builder import Builder
from netdsl.ir.export import to_graphml, to_json, to_networkx
from netdsl.ir.json_reader import ATTRIBUTE_SCHEMAS, DISTRIBUTIONS, read_graph
from netdsl.ir.printer import to_text
from netdsl.ir.verifier import verify_graph
from netdsl.language.program import load_program
from netdsl.ops import OPS
from netdsl.parameter_types import AnyValue
from netdsl.plan.fusion import FULL_FUSION
from netdsl.plan.plan import make_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.runtime.state import draw_initial_value as first_values
from netdsl.types import Graph, TensorType
from tests.conftest import ROOT, HypothesisDraw
from tests.graphs import all_operators_graph, draw_inference, draw_training_step
from tests.random_graphs import draw_graph
from tests.test_plan import FUSIONS

RESNET = str(ROOT / "models" / "resnet.net")
DIGITS = str(ROOT / "models" / "digits.net")


def told(graph: Graph) -> tuple[object, ...]:
    """All that makes a graph, spans left out."""
    return list(graph.nodes.items()), dict(graph.outputs), dict(graph.updates), graph.name


def walks(found: nx.DiGraph, graph: Graph) -> None:
    """A networkx graph on its own: acyclic, in order, with nodes and the places of operands."""
    assert type(found) is nx.DiGraph
    assert not nx.is_frozen(found)
    assert nx.is_directed_acyclic_graph(found)
    place = {name: i for i, name in enumerate(found)}
    assert all(place[a] < place[n] for a, n in found.edges)
    for name, node in found.nodes(data="node"):
        args = {i: a for a, _, places in found.in_edges(name, data="operands") for i in places}
        assert node.name == name
        assert tuple(args[i] for i in range(len(args))) == node.args
        assert node == graph[name]
    assert found.graph["outputs"] == graph.outputs
    assert found.graph["updates"] == graph.updates


def test_a_step_of_resnet50_is_a_networkx_graph_and_its_json_gives_the_same_plan(
    netdsl: Any,
) -> None:
    found = package.load(f"{RESNET}:resnet50").graph(train=True, batch=2)
    before = compile_target(load_program(RESNET), CompileTarget("resnet50", True, 2), FULL_FUSION)
    walks(found, before.plan.graph)
    assert sum(1 for _, d in found.nodes(data="node") if d.op == "conv2d_wgrad") == 17
    assert nx.has_path(found, "input", found.graph["outputs"]["loss"])
    code, out, _ = netdsl(
        "compile", f"{RESNET}:resnet50", "--train", "--batch", "2", "--emit", "json"
    )
    assert code == 0
    graph = read_graph(out)
    assert told(graph) == told(before.plan.graph)
    plan = verify_plan(make_plan(graph, FULL_FUSION))
    for field in ("kernels", "placements", "buffers", "arena_bytes", "peak_bytes"):
        assert getattr(plan, field) == getattr(before.plan, field), field


@settings(max_examples=80)
@given(st.data())
def test_drawn_graphs_are_read_back_and_planned_as_before(data: st.DataObject) -> None:
    draw = HypothesisDraw(data)
    graph = draw.choice((draw_training_step, draw_graph, draw_inference))(draw)
    walks(to_networkx(graph), graph)
    again = read_graph(to_json(graph))
    assert told(again) == told(graph)
    assert to_text(again) == to_text(graph)
    fusion = draw.choice(FUSIONS)
    one, two = make_plan(graph, fusion), make_plan(again, fusion)
    assert (one.kernels, one.placements, one.arena_bytes) == (
        two.kernels,
        two.placements,
        two.arena_bytes,
    )


@settings(max_examples=40)
@given(st.data())
def test_networkx_reads_json_and_graphml(data: st.DataObject) -> None:
    draw = HypothesisDraw(data)
    graph = draw.choice((draw_training_step, draw_graph))(draw)
    linked = nx.node_link_graph(json.loads(to_json(graph)), edges="edges")
    marked = nx.parse_graphml(to_graphml(graph))
    for found in (linked, marked):
        assert type(found) is nx.DiGraph
        assert list(found) == list(graph.nodes)
        assert set(found.edges) == set(graph.dag.edges)
        assert found.graph["name"] == graph.name
        assert all(found.nodes[n]["op"] == graph[n].op for n in found)
    assert json.loads(marked.graph["outputs"]) == linked.graph["outputs"] == graph.outputs
    for a, n, places in marked.edges(data="operands"):
        assert [int(i) for i in places.split(",")] == linked.edges[a, n]["operands"]
        assert all(graph[n].args[int(i)] == a for i in places.split(","))
    for name, text in marked.nodes(data="attrs"):
        assert json.loads(text) == linked.nodes[name]["attrs"]


def test_every_operator_is_read_back() -> None:
    graph, _ = all_operators_graph(np.random.default_rng(0), 3)
    assert told(read_graph(to_json(graph))) == told(graph)
    bare = [p.name for op in OPS.values() for p in op.attrs if isinstance(p.type, AnyValue)]
    assert set(bare) == set(ATTRIBUTE_SCHEMAS)


def test_every_law_of_first_values_can_be_drawn() -> None:
    b = Builder()
    for law in DISTRIBUTIONS:
        assert first_values(b.state(law, TensorType((3,), "float32"), (law, 0.5)), 0).shape == (3,)


def test_one_operand_twice_is_one_edge() -> None:
    b = Builder(dtype="float64")
    x = b.input("x", TensorType((3,), "float64"))
    z = b.exp(x)
    graph = b.build({"y": b.select(b.greater(x, z), z, z), "s": b.mul(x, x)})
    found = to_networkx(graph)
    assert found.edges["x", "mul"] == {"operands": (0, 1)}
    assert found.edges["exp", "select"] == {"operands": (1, 2)}
    assert graph.dag.edges["x", "mul"] == {}
    assert told(read_graph(to_json(graph))) == told(graph)


# ---- netdsl.load


def test_a_net_is_loaded_before_and_after_the_passes() -> None:
    net = package.load(DIGITS)
    plain, ready = net.graph(passes=False), net.graph()
    assert any(node.op == "dropout" for _, node in net.graph(True, passes=False).nodes("node"))
    assert plain.graph["name"] == ready.graph["name"] == "digits"
    assert plain.nodes["input"]["node"].type.shape == (1, 8, 8, 1)
    assert net.graph(batch=7).nodes["input"]["node"].type.shape == (7, 8, 8, 1)
    step = net.graph(train=True)
    assert step.nodes["input"]["node"].type.shape[0] == 32  # the recipe's own batch
    assert set(step.graph["outputs"]) == {"loss", "main_loss", "accuracy"}
    assert {"d.conv1.conv1.add"} <= {n.rsplit(".", 1)[0] for n in step if n.startswith("d.")}
    step.remove_node("input")
    assert "input" in net.graph(train=True)


def test_a_net_that_is_not_there_is_an_error_with_help(tmp_path: Path) -> None:
    with pytest.raises(NetError, match="lenet6"):
        package.load(f"{ROOT}/models/lenet.net:lenet6").graph()
    with pytest.raises(NetError, match="nowhere"):
        package.load(str(tmp_path / "nowhere.net"))
    (tmp_path / "wrong.net").write_text("net a { input(8) -> fcc(3) }")
    with pytest.raises(NetError, match="fcc"):
        package.load(str(tmp_path / "wrong.net")).graph()


# ---- what is read back is checked

SMALL = json.loads(to_json(all_operators_graph(np.random.default_rng(1), 1)[0]))
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**31, 10**400, 0.5, 1e308, "", "x", "const", "float16"),
    *([], [0], [1, 2], [[1, 2], [3, 4]], {}, {"a": 1}),
)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a tree."""
    yield way
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*way, key))


def changed(tree: Any, way: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value in one place; without it where that is no value."""
    tree = deepcopy(tree)
    inner = tree
    for key in way[:-1]:
        inner = inner[key]
    if not way:
        return value
    if value is places:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return tree


WAYS = list(places(SMALL))


@settings(max_examples=300)
@given(st.sampled_from(WAYS), st.sampled_from((*ODD, places)))
def test_whatever_is_changed_is_refused_or_a_sound_graph(way: tuple[Any, ...], value: Any) -> None:
    refusal = refused(json.dumps(changed(SMALL, way, value)))
    assert refusal is None or ("is not a graph: " in refusal and "help: " in refusal)


def refused(text: str) -> str | None:
    """What is said of a text that holds no graph; None where it holds one that can be planned."""
    try:
        graph = read_graph(text)
    except NetError as e:
        return e.render()
    verify_plan(make_plan(verify_graph(graph), FULL_FUSION))
    return None


def small() -> dict[str, Any]:
    b = Builder(dtype="float64")
    x = b.input("x", TensorType((3,), "float64"))
    w = b.state("w", TensorType((3,), "float64"), ("normal", 0.1))
    y = b.reduce_sum(b.mul(x, w), axes=(0,))
    return json.loads(to_json(b.build({"y": y}, {"w": b.sub(w, x)}, "small")))


@pytest.mark.parametrize(
    ("way", "value", "complaint"),
    [
        (("directed",), False, "are undirected"),
        (("nodes", 2, "op"), "eval", "there is no operator `eval`"),
        (("nodes", 2, "id"), "x", "two nodes are named `x`"),
        (
            ("nodes", 2, "shape"),
            [4],
            "`mul` is declared 4 float64, but its operator gives 3 float64",
        ),
        (
            ("nodes", 2, "dtype"),
            "float32",
            "`mul` is declared 3 float32, but its operator gives 3 float64",
        ),
        (("nodes", 1, "attrs", "init", 0), "cauchy", "not one of constant, normal, uniform"),
        (("nodes", 0, "attrs", "shape"), [2**31 - 1] * 3, "beyond any machine"),
        (("nodes", 0, "attrs", "shape"), [0], "from 1 to"),
        (("nodes", 0, "attrs", "colour"), 1, "`input` has no attribute `colour`"),
        (("nodes", 3, "attrs", "axes"), places, "there is no `reduce_sum.axes`"),
        (("nodes", 3, "attrs", "axes"), [1], "axes (1,) are not distinct axes"),
        (("nodes", 3, "attrs", "keepdims"), 1, "is not `yes` or `no`"),
        (("edges", 0, "source"), "z", "reads `z`, which does not come before it"),
        (("edges", 0, "source"), "sub", "reads `sub`, which does not come before it"),
        (("edges", 0, "target"), "z", "`mul` lacks one of its first 2 operands"),
        (("edges", 0, "operands"), [1], "`mul` has two operands 1"),
        (("edges", 0, "operands"), [0, 2], "`mul` takes 2 operands"),
        (("edges", 0), places, "lacks one of its first 2 operands"),
        (("graph", "outputs", "y"), "z", "the output `y` is `z`, which is not a node"),
        (("graph", "updates"), {"x": "sub"}, "`x` is updated but is not a state"),
        (("graph", "updates", "w"), "reduce_sum", "the update of `w` does not have its type"),
        (("nodes",), [], "which is not a node"),
        ((), [1], "not an object"),
    ],
)
def test_what_is_wrong_is_said(way: tuple[Any, ...], value: Any, complaint: str) -> None:
    with pytest.raises(NetError) as e:
        read_graph(json.dumps(changed(small(), way, value)), "x.json")
    assert complaint in e.value.render()
    assert "x.json is not a graph" in e.value.render()


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5, "NaN", b"\xff", "{" + '"a":1,' * 10**4])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(NetError, match="is not a graph"):
        read_graph(text)


def test_an_edge_to_nowhere_and_nodes_in_another_order_are_refused() -> None:
    tree = small()
    tree["edges"].append({"source": "x", "target": "nowhere", "operands": [0]})
    with pytest.raises(NetError, match="leads to `nowhere`"):
        read_graph(json.dumps(tree))
    tree = small()
    tree["nodes"].reverse()
    with pytest.raises(NetError, match="does not come before it"):
        read_graph(json.dumps(tree))


def test_names_are_data_and_never_obeyed(netdsl: Any, tmp_path: Path) -> None:
    """A name of another file becomes an attribute of GraphML, whatever XML makes of its signs."""
    (tmp_path / "a<&\x1b>.net").write_text("net a { input(8) -> fc(3) }")
    code, out, _ = netdsl("compile", "a<&\x1b>.net", "--emit", "graphml")
    assert code == 0
    assert "\x1b" not in out
    found = nx.parse_graphml(out)
    assert any("a<&" in place for _, place in found.nodes(data="place") if place)
