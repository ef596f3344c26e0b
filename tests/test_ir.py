"""Builder, verifier, text and interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from netdsl.errors import NetError, Source, Span
from netdsl.ir.builder import Builder
from netdsl.ir.evaluate import results
from netdsl.ir.grad import grad
from netdsl.ir.text import to_text
from netdsl.ir.verify import verify
from netdsl.types import Graph, Node, TensorType
from tests.golden import matches_golden


def vector(b: Builder, name: str, n: int = 3) -> Node:
    return b.input(name, TensorType((n,), b.dtype))


def small_graph() -> Graph:
    b = Builder(dtype="float64")
    x = vector(b, "x")
    w = b.state("w", TensorType((3,), "float64"), ("normal", 0.1))
    y = b.relu(b.mul(x, w))
    loss = b.reduce_sum(y, axes=(0,))
    g = grad(b, loss, [w])["w"]
    return b.graph({"loss": loss}, {"w": b.descend(w, g, b.const(0.1))}, "small")


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
    matches_golden("small_graph.txt", to_text(small_graph()))


def test_updates_and_outputs_are_evaluated() -> None:
    given = {"x": np.array([1.0, 2.0, -1.0]), "w": np.array([1.0, -1.0, 0.5])}
    out = results(small_graph(), given)
    assert out["loss"] == 1.0
    assert out["update w"].tolist() == [0.9, -1.0, 0.5]


def planted(name: str, /, **changes: object) -> Graph:
    """The small graph with one node changed."""
    graph = small_graph()
    nodes = dict(graph.nodes)
    nodes[name] = replace(nodes[name], **changes)  # type: ignore[arg-type]
    return replace(graph, nodes=nodes)


def test_the_verifier_accepts_what_the_builder_makes() -> None:
    assert verify(small_graph()).name == "small"


@pytest.mark.parametrize(
    ("graph", "complaint"),
    [
        (planted("mul", args=("x", "missing")), "reads missing"),
        (planted("mul", type=TensorType((4,), "float64")), "is called 4 float64"),
        (planted("mul", op="mull"), "no operator is called mull"),
        (planted("mul", name="other"), "is filed as"),
        (replace(small_graph(), updates={"x": "mul"}), "is no state"),
        (replace(small_graph(), updates={"w": "reduce_sum"}), "does not have its type"),
        (replace(small_graph(), outputs={"loss": "nowhere"}), "no node computes"),
    ],
)
def test_the_verifier_refuses(graph: Graph, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        verify(graph)


def test_the_verifier_refuses_a_reader_before_its_operand() -> None:
    graph = small_graph()
    backwards = dict(reversed(list(graph.nodes.items())))
    with pytest.raises(AssertionError, match="before it is computed"):
        verify(replace(graph, nodes=backwards))


def test_digraph_holds_nodes_and_edges() -> None:
    g = small_graph().digraph
    assert g.nodes["mul"]["node"].op == "mul"
    assert set(g.predecessors("mul")) == {"x", "w"}


def test_a_path_without_gradient_says_why() -> None:
    b = Builder(dtype="float64")
    x = vector(b, "x")
    hit = b.cast(b.greater(x, b.const(0.0)), dtype="float64")
    with pytest.raises(NetError, match="constant almost everywhere"):
        grad(b, b.reduce_sum(hit, axes=(0,)), [x])
