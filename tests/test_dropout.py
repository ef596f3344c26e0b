"""Dropout on several ranks: together they draw what one device draws for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.backends.base import Backend
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ops import OPS
from netdsl.ops.dropout import PHILOX_DOMAIN, dropout_key, philox
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import Array, Graph, Node, TensorType
from tests.cuda_on_cpu import GPP, open_host_backend

needs_compiler = pytest.mark.skipif(GPP is None, reason="there is no g++ to compile for the CPU")
CPU = open_backend("cpu")
SCALARS = ("seed", "step", "rank")
RATES = (0.0, 1e-9, 0.3, 0.999, 1 - 1e-12)
LAST_RANK = 2**31 - 1
"""Its elements have numbers of more than 32 bits, in blocks of four too if it has 111."""

Evaluate = Callable[[Graph, dict[str, Any]], dict[str, Array]]


def execute(backend: Backend, graph: Graph, values: dict[str, Any]) -> dict[str, Array]:
    found = Executor(graph, backend, State(backend)).run(values)
    return {label: np.array(found[label]) for label in graph.outputs}


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Evaluate]:
    """Runs a graph in generated CUDA source alone, compiled for the CPU."""
    backend = open_host_backend(monkeypatch, tmp_path)
    yield partial(execute, backend)
    assert backend.fallbacks == []


def add_dropout(b: Builder, shape: tuple[int, ...], rate: float) -> Node:
    scalars = (b.input(n, TensorType((), "int32")) for n in SCALARS)
    x = b.input("x", TensorType(shape))
    return b.dropout(x, *scalars, key="a.b", rate=rate)


@cache
def layer_graph(batch: int, shape: str, rate: float) -> Graph:
    """Both layers that draw, and the gradient of what enters them."""
    text = f"net n {{ input({shape}); drop_path({rate!r}) -> dropout({rate!r}) }}"
    network = elaborate(build_program(parse(text)), None, Settings(batch, training=True))
    b = Builder(network.graph)
    y = b.nodes[network.graph.outputs["main"]]
    u = b.input("u", y.type)
    x = b.nodes["input"]
    return b.build({"y": y, "dx": grad(b, y, [x], cotangent=u)["input"]})


def draw_values(graph: Graph) -> dict[str, Any]:
    """No value is 0: a zero tells that it was dropped."""
    rng = np.random.default_rng(5)
    values = {n.name: rng.uniform(1, 2, n.type.shape).astype("float32") for n in graph.inputs}
    return values | {"seed": np.int32(7), "step": np.int32(9), "rank": np.int32(0)}


def assert_ranks_draw_the_whole(
    evaluate: Evaluate, ranks: int, batch: int, shape: str, rate: float
) -> None:
    """Outputs and gradients of the ranks, of `batch` images each, are those of the whole batch."""
    whole, part = (layer_graph(n, shape, rate) for n in (ranks * batch, batch))
    values = draw_values(whole)
    expected = evaluate(whole, values)
    for rank in range(ranks):
        own = slice(rank * batch, (rank + 1) * batch)
        images = {name: values[name][own] for name in ("input", "u")}
        found = evaluate(part, values | images | {"rank": np.int32(rank)})
        for label in ("y", "dx"):
            np.testing.assert_array_equal(found[label], expected[label][own], f"{label} of {rank}")


SHAPES = st.lists(st.integers(1, 7), min_size=3, max_size=3).map(lambda s: "x".join(map(str, s)))


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), SHAPES, st.floats(0.01, 0.99))
def test_ranks_draw_the_mask_of_the_whole_batch(
    ranks: int, batch: int, shape: str, rate: float
) -> None:
    """The reference; a block of four numbers may belong to two ranks."""
    assert_ranks_draw_the_whole(evaluate_results, ranks, batch, shape, rate)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 5), SHAPES, st.sampled_from((0.3, 0.75)))
def test_ranks_draw_the_mask_of_the_whole_batch_on_the_cpu_engine(
    ranks: int, batch: int, shape: str, rate: float
) -> None:
    assert_ranks_draw_the_whole(partial(execute, CPU), ranks, batch, shape, rate)


@needs_compiler
@pytest.mark.parametrize(
    ("ranks", "batch", "shape"), [(3, 1, "1x1x1"), (3, 2, "3x3x1"), (2, 3, "2x2x8")]
)
def test_ranks_draw_the_mask_of_the_whole_batch_in_generated_source(
    generated: Evaluate, ranks: int, batch: int, shape: str
) -> None:
    assert_ranks_draw_the_whole(generated, ranks, batch, shape, 0.3)


@given(
    st.integers(0, LAST_RANK), st.integers(1, 50), st.sampled_from(RATES), st.integers(0, 2**31 - 1)
)
def test_an_element_has_the_word_of_its_number(
    rank: int, size: int, rate: float, seed: int
) -> None:
    """Each from a block of its own, in integers without a limit."""
    scalars = (np.int32(seed), np.int32(9), np.int32(rank))
    found = OPS["dropout"].reference(np, np.ones(size), *scalars, key="a.b", rate=rate) != 0
    for i in range(size):
        block, word = divmod(rank * size + i, 4)
        counter = (block % 2**32, block // 2**32, 9, dropout_key("a.b"))
        own = philox(
            np, *(tuple(map(np.uint64, words)) for words in (counter, (seed, PHILOX_DOMAIN)))
        )
        assert found[i] == (int(own[word]) >= round(rate * 2**32))


@needs_compiler
@pytest.mark.parametrize("rank", [1, LAST_RANK])
def test_elements_of_a_view_are_numbered_in_it(rank: int, generated: Evaluate) -> None:
    """Rows that do not lie one behind the other in memory; a row is not all that a rank has."""
    b = Builder(dtype="float32")
    scalars = (b.input(n, TensorType((), "int32")) for n in SCALARS)
    x = b.transpose(b.input("x", TensorType((3, 5, 37))), perm=(1, 0, 2))
    graph = b.build({"y": b.dropout(x, *scalars, key="a.b", rate=0.3)})
    values = draw_values(graph) | {"rank": np.int32(rank)}
    expected = evaluate_results(graph, values)["y"]
    for evaluate in (generated, partial(execute, CPU)):
        np.testing.assert_array_equal(evaluate(graph, values)["y"], expected)


@pytest.mark.parametrize("rank", [0, 3, 1023, LAST_RANK])
@pytest.mark.parametrize("rate", RATES)
def test_the_cpu_engine_has_the_bits_of_the_reference(rate: float, rank: int) -> None:
    b = Builder(dtype="float32")
    graph = b.build({"y": add_dropout(b, (3, 37), rate)})
    values = draw_values(graph) | {"rank": np.int32(rank)}
    found = execute(CPU, graph, values)["y"]
    np.testing.assert_array_equal(found, evaluate_results(graph, values)["y"])


@needs_compiler
def test_generated_source_has_the_bits_of_the_reference(generated: Evaluate) -> None:
    for shape in ((3, 37), (1,), (5, 8)):
        b = Builder(dtype="float32")
        graph = b.build({"y": add_dropout(b, shape, 0.3)})
        for rank in (0, 3, 1023, LAST_RANK):
            values = draw_values(graph) | {"rank": np.int32(rank)}
            found = generated(graph, values)["y"]
            np.testing.assert_array_equal(found, evaluate_results(graph, values)["y"])


@needs_compiler
def test_sums_of_what_is_kept_in_generated_source(generated: Evaluate) -> None:
    """A sum over one image: the number of an element then differs by the lane alone."""
    b = Builder(dtype="float32")
    graph = b.build({"sum": b.reduce_sum(add_dropout(b, (1, 8), 0.3), axes=(0,))})
    for rank in (1, LAST_RANK):
        values = draw_values(graph) | {"rank": np.int32(rank)}
        found = generated(graph, values)["sum"]
        np.testing.assert_allclose(found, evaluate_results(graph, values)["sum"], rtol=1e-6)
