"""Builder, verifier, text and interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.errors import NetError, Source, Span
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.ir.numerical_gradient import compute_slope_error
from netdsl.ir.printer import to_text
from netdsl.ir.subgraph import extract_subgraph
from netdsl.ir.verifier import verify_graph
from netdsl.ir.views import strip_views
from netdsl.types import Graph, Node, NodeView, TensorType
from tests.conftest import HypothesisDraw
from tests.golden import assert_matches_golden
from tests.graphs import block_step, draw_training_step
from tests.random_graphs import draw_graph


def vector(b: Builder, name: str, n: int = 3) -> Node:
    return b.input(name, TensorType((n,), b.dtype))


def small_graph() -> Graph:
    b = Builder(dtype="float64")
    x = vector(b, "x")
    w = b.state("w", TensorType((3,), "float64"), ("normal", 0.1))
    y = b.relu(b.mul(x, w))
    loss = b.reduce_sum(y, axes=(0,))
    g = grad(b, loss, [w])["w"]
    return b.build({"loss": loss}, {"w": b.descend(w, g, b.const(0.1))}, "small")


def test_equal_nodes_are_one_node() -> None:
    b = Builder()
    x, z = vector(b, "x"), vector(b, "z")
    assert b.add(x, z) is b.add(x, z)
    assert b.add(x, z) is not b.add(z, x)
    assert b.const(2) is b.const(2.0)
    assert b.leaky_relu(x) is b.leaky_relu(x, slope=0.01)


def test_two_states_with_equal_settings_stay_two() -> None:
    b = Builder()
    kind = TensorType((3,), "float32")
    assert b.state("a", kind, ("constant", 0.0)) is not b.state("b", kind, ("constant", 0.0))
    assert b.state("a", kind, ("constant", 0.0)) is b.nodes["a"]


def test_a_refused_shape_has_its_place() -> None:
    b = Builder()
    span = Span(Source("x.net", "a -> b"), 0, 1)
    with b.at(span, "here"), pytest.raises(NetError) as e:
        b.add(vector(b, "x", 3), vector(b, "z", 4))
    assert e.value.diagnostics[0].span == span
    assert "3 and 4" in e.value.render()


def test_names_are_unique_and_follow_the_hint() -> None:
    b = Builder()
    x = vector(b, "x")
    with b.at(None, "conv1"):
        names = [b.relu(x).name, b.relu(b.relu(x)).name]
    assert names == ["conv1.relu", "conv1.relu~2"]


def test_text_of_a_graph() -> None:
    assert_matches_golden("small_graph.txt", to_text(small_graph()))


def test_updates_and_outputs_are_evaluated() -> None:
    given = {"x": np.array([1.0, 2.0, -1.0]), "w": np.array([1.0, -1.0, 0.5])}
    out = evaluate_results(small_graph(), given)
    assert out["loss"] == 1.0
    assert out["update w"].tolist() == [0.9, -1.0, 0.5]


def changed(graph: Graph, which: str, /, **changes: object) -> Graph:
    """A graph with one node changed."""
    node = replace(graph[which], **changes)  # type: ignore[arg-type]
    return replace(graph, nodes={**graph.nodes, which: node})


def planted(which: str, /, **changes: object) -> Graph:
    return changed(small_graph(), which, **changes)


def test_the_verifier_accepts_what_the_builder_makes() -> None:
    assert verify_graph(small_graph()).name == "small"


@pytest.mark.parametrize(
    ("graph", "complaint"),
    [
        (planted("mul", args=("x", "missing")), "reads missing"),
        (planted("mul", type=TensorType((4,), "float64")), "is declared 4 float64"),
        (planted("mul", op="mull"), "there is no operator mull"),
        (planted("mul", name="other"), "is filed as"),
        (replace(small_graph(), updates={"x": "mul"}), "is not a state"),
        (replace(small_graph(), updates={"w": "reduce_sum"}), "does not have its type"),
        (replace(small_graph(), outputs={"loss": "nowhere"}), "no node computes"),
    ],
)
def test_the_verifier_refuses(graph: Graph, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        verify_graph(graph)


def test_the_verifier_refuses_a_reader_before_its_operand() -> None:
    graph = small_graph()
    backwards = dict(reversed(list(graph.nodes.items())))
    with pytest.raises(AssertionError, match="before it is computed"):
        verify_graph(replace(graph, nodes=backwards))


# ---- the dag that holds a graph


def test_a_graph_is_one_frozen_dag() -> None:
    graph = small_graph()
    assert type(graph.dag) is nx.DiGraph
    assert list(graph.dag) == list(graph.nodes) == [n.name for n in graph.nodes.values()]
    assert graph.dag.nodes["mul"]["node"] is graph["mul"] is dict(graph.nodes.items())["mul"]
    assert set(graph.dag.predecessors("mul")) == {"x", "w"}
    with pytest.raises(nx.NetworkXError, match="Frozen"):
        graph.dag.add_edge("x", "relu")
    renamed = replace(graph, name="other")
    assert renamed.dag is graph.dag


def test_a_builder_gives_its_dag_away() -> None:
    b = Builder(dtype="float64")
    x = vector(b, "x")
    graph = b.build({"x": x})
    assert graph.dag is b.dag
    with pytest.raises(nx.NetworkXError, match="Frozen"):
        b.relu(x)
    assert list(graph.nodes) == ["x"]


def test_pruning_leaves_what_outputs_and_updates_need() -> None:
    b = Builder(dtype="float64")
    x, w = vector(b, "x"), b.state("w", TensorType((3,), "float64"), ("normal", 0.1))
    b.exp(b.add(x, w))
    graph = verify_graph(b.build({"y": b.relu(x)}, {"w": x}, prune=True))
    assert list(graph.nodes) == ["x", "w", "relu"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda dag: dag.add_edge("w", "relu"), "edges that lead to relu"),
        (lambda dag: dag.remove_edge("x", "mul"), "edges that lead to mul"),
        (lambda dag: dag.add_edge("mul", "mul"), "edges that lead to mul"),
        (lambda dag: dag.add_edge("nowhere", "mul"), "mul reads nowhere, which is not a node"),
        (lambda dag: dag.add_node("nowhere"), "nowhere"),
        (lambda dag: dag.remove_node("x"), "reads x before"),
    ],
)
def test_the_verifier_refuses_edges_that_are_not_those_of_operands(
    spoil: Callable[[nx.DiGraph], None], complaint: str
) -> None:
    graph = small_graph()
    dag = nx.DiGraph(graph.dag)
    spoil(dag)
    with pytest.raises(AssertionError, match=complaint):
        verify_graph(replace(graph, nodes=NodeView(dag)))


@given(data=st.data())
def test_cones_are_those_that_operands_say(data: st.DataObject) -> None:
    draw = HypothesisDraw(data)
    graph = draw.choice((draw_training_step, draw_graph))(draw)
    names = [draw.choice(list(graph.nodes)) for _ in range(draw.integer(0, 3))]
    wanted = set(names)
    for node in reversed(list(graph.nodes.values())):
        if node.name in wanted:
            wanted.update(node.args)
    assert graph.backward_slice(*names) == wanted
    part = verify_graph(extract_subgraph(graph, wanted, {n: n for n in names}))
    assert list(part.nodes) == [n for n in graph.nodes if n in wanted]
    assert set(part.dag.edges) == {(a, n) for a, n in graph.dag.edges if n in wanted}


def test_a_path_without_gradient_says_why() -> None:
    b = Builder(dtype="float64")
    x = vector(b, "x")
    hit = b.cast(b.greater(x, b.const(0.0)), dtype="float64")
    with pytest.raises(NetError, match="constant almost everywhere"):
        grad(b, b.reduce_sum(hit, axes=(0,)), [x])


# ---- damaged graphs


def other_types(kind: TensorType) -> Iterator[TensorType]:
    """Types that are not this one, of which one has its shape, and one its size."""
    yield TensorType(kind.shape, "float32" if kind.dtype != "float32" else "float64")
    yield TensorType((*kind.shape, 1), kind.dtype)
    yield TensorType((*kind.shape, 2), kind.dtype)


def damaged(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """A graph with one thing in it that is not so, for every node, output and update."""
    names = list(graph.nodes)
    for i, name in enumerate(names):
        node = graph[name]
        if node.op not in ("input", "state"):
            for kind in other_types(node.type):
                yield f"{name} as {kind}", changed(graph, name, type=kind)
        yield f"{name} under another name", changed(graph, name, name=f"{name}?")
        yield f"{name} of no operator", changed(graph, name, op=f"{node.op}?")
        for place in range(len(node.args)):
            for other in (name, names[-1] if i < len(names) - 1 else "?", "?"):
                args = (*node.args[:place], other, *node.args[place + 1 :])
                yield f"{name} reads {other}", changed(graph, name, args=args)
    for label in graph.outputs:
        yield f"{label} is nowhere", replace(graph, outputs={**graph.outputs, label: "?"})
    for state in graph.updates:
        kind = graph[state].type
        strange = [n for n in names if graph[n].type != kind]
        for value in ("?", *strange[:3], *strange[-3:]):
            updates = {**graph.updates, state: value}
            yield f"{state} becomes {value}", replace(graph, updates=updates)
    for name in names:
        if graph[name].op != "state":
            updates = {**graph.updates, name: name}
            yield f"{name} is updated", replace(graph, updates=updates)


@pytest.mark.parametrize("net", [None, "covering", "network_in_network"])
def test_the_verifier_refuses_whatever_is_not_so(net: str | None) -> None:
    graph = block_step(net) if net else small_graph()
    for what, wrong in damaged(graph):
        try:
            verify_graph(wrong)
        except AssertionError as e:
            assert "internal error" in str(e), what  # noqa: PT017
        else:
            pytest.fail(f"let through: {what}")


def test_an_update_has_the_element_type_of_its_state() -> None:
    b = Builder(dtype="float64")
    w = b.state("w", TensorType((2, 3), "float64"), ("normal", 1.0))
    constant = b.const((1.0, 2.0))
    for value in (b.cast(w, dtype="float32"), b.reshape(w, shape=(3, 2))):
        with pytest.raises(AssertionError, match="does not have its type"):
            verify_graph(b.build({}, {"w": value}))
    with pytest.raises(AssertionError, match="is updated but is not a state"):
        verify_graph(b.build({}, {constant.name: constant}))


# ---- what the builder refuses


def test_the_builder_refuses_what_an_operator_does_not_take() -> None:
    b = Builder(dtype="float64")
    x = vector(b, "x")
    with pytest.raises(AssertionError, match="relu has no attribute slope"):
        b.relu(x, slope=0.1)
    with pytest.raises(AssertionError, match="cast needs the attribute dtype"):
        b.cast(x)
    with pytest.raises(AssertionError, match="takes 2 operands, not 1"):
        b.add(x)


def test_a_name_stands_for_one_state() -> None:
    b = Builder(dtype="float64")
    w = b.state("w", TensorType((3,), "float64"), ("normal", 1.0))
    assert b.state("w", w.type, ("normal", 1.0)) is w
    for kind, law, trainable in (
        (TensorType((4,), "float64"), ("normal", 1.0), True),
        (w.type, ("normal", 2.0), True),
        (w.type, ("normal", 1.0), False),
    ):
        with pytest.raises(AssertionError, match="w is already another state"):
            b.state("w", kind, law, trainable)
    with pytest.raises(AssertionError, match="w is already another state"):
        b.input("w", w.type)


def test_regions_begin_and_end() -> None:
    b = Builder(dtype="float64")
    x = vector(b, "x")
    with b.at(None, "outer", region="one"):
        with b.at(None, "inner", region="two"):
            two = b.exp(x)
        one = b.exp(x)
    none = b.exp(x)
    assert [n.region for n in (two, one, none)] == ["two", "one", ""]
    assert b.exp(x) is none
    with pytest.raises(ValueError, match="stop"), b.at(None, region="three"):
        raise ValueError("stop")
    assert b.tanh(x).region == ""


@given(data=st.data())
def test_a_sum_undoes_stretching(data: st.DataObject) -> None:
    """`sum_to` is the gradient of NumPy's stretching: axes of size 1 and axes that are new."""
    draw = HypothesisDraw(data)
    full = tuple(draw.integer(1, 3) for _ in range(draw.integer(0, 4)))
    kept = full[draw.integer(0, len(full)) :]
    small = tuple(draw.choice((1, s)) for s in kept)
    b = Builder(dtype="float64")
    x = b.input("x", TensorType(full, "float64"))
    y = b.sum_to(x, small)
    assert y.type.shape == small
    values = np.random.default_rng(0).standard_normal(full)
    weights = np.random.default_rng(1).standard_normal(small)
    found = evaluate_results(b.build({"y": y}), {"x": values})["y"]
    total, expected = (found * weights).sum(), (values * weights).sum()
    assert found.shape == small
    assert total == pytest.approx(expected)


def test_a_view_of_views_shows_what_lies_under_all_of_them() -> None:
    b = Builder(dtype="float64")
    x = b.exp(b.input("x", TensorType((2, 3), "float64")))
    view = b.transpose(
        b.reshape(b.slice(x, start=(0, 0), stop=(2, 2), step=(1, 1)), shape=(4, 1)), perm=(1, 0)
    )
    graph = b.build({"y": view})
    assert strip_views(graph, view.name) is x
    assert strip_views(graph, x.name) is x


# ---- slopes


@pytest.mark.parametrize("slope", [1e-1, 1.0, -3.0, 1e4])
@pytest.mark.parametrize("off", [0.0, 1e-5, -1e-3, 1.0])
def test_the_error_of_a_slope_is_its_share(slope: float, off: float) -> None:
    """Of a smooth function: the share of the slope that a prediction is off by."""
    error = compute_slope_error(lambda t: np.sin(t) * slope + t**3, slope * (1 + off))
    assert error == pytest.approx(abs(off) / max(1, 1 + off), rel=1e-3, abs=1e-9)


def test_a_slope_near_zero_is_held_against_a_hundredth() -> None:
    assert compute_slope_error(lambda t: 0.0, 1e-4) == pytest.approx(1e-2)
    assert compute_slope_error(lambda t: 1e-3 * t, 0.0) == pytest.approx(0.1)


def test_there_is_no_slope_at_a_kink() -> None:
    assert compute_slope_error(lambda t: abs(t - 2e-4), 0.3) is None
    assert compute_slope_error(lambda t: abs(t - 0.1), -1.0) == pytest.approx(0, abs=1e-9)
