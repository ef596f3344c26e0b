"""Every pass keeps every value, on drawn graphs and on every block; golden text after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.ir.printer import to_text
from netdsl.ir.verifier import verify_graph
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load_program
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw
from netdsl.ops.op import Draw
from netdsl.passes import pass_manager
from netdsl.passes.algebraic_batch_norm import rewrite_batch_norms
from netdsl.passes.batch_norm_folding import FoldedGraph, fold_batch_norms, split_preparation
from netdsl.passes.conv_lowering import lower_convolutions, lower_im2col
from netdsl.passes.mixed_precision import convert_to_mixed_precision
from netdsl.passes.recompute import recompute
from netdsl.passes.rewrite import eliminate_common_subexpressions, eliminate_dead_nodes
from netdsl.passes.simplify import simplify
from netdsl.runtime.executor import FoldedExecutor
from netdsl.runtime.state import State
from netdsl.training.step.graphs import training_graph
from netdsl.types import Array, Graph, Node, TensorType
from tests.conftest import ROOT, HypothesisDraw
from tests.golden import assert_matches_golden
from tests.graphs import (
    BLOCK_NETS,
    BLOCKS,
    append_training_step,
    block_step,
    draw_forward,
    draw_inference,
    draw_training_step,
    lowered_step,
    make_values,
    plain_recipe,
    rewrite_all_norms,
    training_step,
)
from tests.random_graphs import draw_graph

PASSES: dict[str, Callable[[Graph], Graph]] = {
    "simplify": simplify,
    "lower": lower_convolutions,
    "im2col": lower_im2col,
    "common": eliminate_common_subexpressions,
    "dead": eliminate_dead_nodes,
}


def same_values(before: Graph, after: Graph, values: dict[str, Array], tolerance: float) -> None:
    verify_graph(after)
    one, two = evaluate_results(before, values), evaluate_results(after, values)
    assert one.keys() == two.keys()
    for key, expected in one.items():
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(
            two[key], expected, rtol=tolerance, atol=tolerance * scale, err_msg=key
        )
        assert two[key].dtype == expected.dtype


@settings(max_examples=120)
@given(st.data())
def test_passes_keep_the_values_of_drawn_graphs(data: st.DataObject) -> None:
    draw = HypothesisDraw(data)
    graph = draw.choice((draw_training_step, draw_graph))(draw)
    same_values(graph, PASSES[draw.choice(list(PASSES))](graph), make_values(graph), 1e-10)


DRAWN: dict[str, Callable[[Draw], Graph]] = {
    "step": draw_training_step,
    "odd": draw_graph,
    "inference": draw_inference,
}
REACHED = {
    ("simplify", "step"): 60,
    ("simplify", "odd"): 40,
    ("lower", "step"): 20,
    ("im2col", "step"): 30,
    ("im2col", "inference"): 40,
    ("mixed", "step"): 60,
    ("mixed", "odd"): 40,
    ("mixed", "inference"): 60,
    ("fold", "inference"): 60,
}
"""Of so many of 100 drawn graphs, at least, a pass makes others: so it is known to be tried."""
EVERY: dict[str, tuple[Callable[[Graph], Graph], float]] = {
    **{name: (run, 1e-10) for name, run in PASSES.items()},
    "mixed": (lambda graph: convert_to_mixed_precision(graph, "float32"), 1e-4),
    "fold": (fold_batch_norms, 1e-9),
}


@pytest.mark.parametrize(("name", "kind"), REACHED, ids=str)
def test_passes_reach_drawn_graphs_and_keep_their_values(name: str, kind: str) -> None:
    run, tolerance = EVERY[name]
    changed = 0
    for seed in range(100):
        graph = DRAWN[kind](RandomDraw(np.random.default_rng(seed)))
        after = run(graph)
        changed += _shape(after) != _shape(eliminate_dead_nodes(graph))
        with about(seed, graph):
            same_values(graph, after, make_values(graph, seed), tolerance)
    least = REACHED[name, kind]
    assert changed >= least, (
        f"`{name}` changed {changed} of 100 drawn graphs of kind `{kind}`, not {least}: "
        "choose another kind, or draw the pattern more often (tests/random_graphs.py)"
    )


def _shape(graph: Graph) -> list[tuple[object, ...]]:
    """What a graph computes, whatever its nodes are called."""
    place = {name: i for i, name in enumerate(graph.nodes)}
    return [(n.op, n.attrs, *(place[a] for a in n.args)) for n in graph.nodes.values()]


@contextmanager
def about(seed: int, graph: Graph) -> Iterator[None]:
    """An error within is one of a drawn graph, which is shown."""
    try:
        yield
    except AssertionError as e:
        raise AssertionError(f"seed {seed}: {e}\n{to_text(graph)}") from e


def test_folding_in_two_keeps_what_drawn_nets_give() -> None:
    """What is prepared from states, and what is left for every batch."""
    prepared = products = 0
    for seed in range(100):
        graph = draw_inference(RandomDraw(np.random.default_rng(seed)))
        values = make_values(graph, seed)
        folded = pass_manager.prepare_inference(graph)
        prepared += bool(folded.prepare.updates)
        before = {n.args[1] for n in graph.nodes.values() if OPS[n.op].kind == "anchor"}
        after = {n.args[1] for n in folded.main.nodes.values() if OPS[n.op].kind == "anchor"}
        products += not after <= before
        with about(seed, graph):
            same_folded(graph, folded, values)
    assert prepared >= 60
    assert products >= 50


def same_folded(graph: Graph, folded: FoldedGraph, values: dict[str, Array]) -> None:
    verify_graph(folded.main), verify_graph(folded.prepare)
    empty = {n.name: np.zeros(n.type.shape) for n in folded.prepare.states}
    kept = evaluate_results(folded.prepare, {**empty, **values})
    ready = {k.removeprefix("update "): v for k, v in kept.items()}
    expected, found = (
        evaluate_results(graph, values),
        evaluate_results(folded.main, {**values, **ready}),
    )
    for label in graph.outputs:
        scale = max(1.0, float(np.abs(expected[label]).max()))
        np.testing.assert_allclose(found[label], expected[label], rtol=1e-9, atol=1e-9 * scale)


def test_batch_norm_by_algebra_gives_the_same_step_of_drawn_nets() -> None:
    rewritten = 0
    for seed in range(100):
        forward = lower_convolutions(draw_forward(RandomDraw(np.random.default_rng(seed))))
        after = rewrite_all_norms(forward)
        rewritten += bool(after.find_by_op("gram"))
        one, two = append_training_step(forward), append_training_step(after)
        with about(seed, forward):
            same_values(one, two, make_values(one, seed), 1e-7)
    assert rewritten >= 15


def test_drawn_regions_are_computed_again() -> None:
    """Runs of nodes of a drawn net, some of them in no region."""
    again = 0
    for seed in range(100):
        draw = RandomDraw(np.random.default_rng(seed))
        forward = draw_forward(draw)
        step = append_training_step(forward)
        inner = [n for n in forward.nodes if OPS[forward[n].op].kind != "leaf"]
        length = draw.integer(1, max(1, len(inner)))
        names = [draw.choice(("", "a", "b", "c")) for _ in inner[::length]]
        regions = {n: names[i // length] for i, n in enumerate(inner) if names[i // length]}
        after = recompute(step, set(forward.nodes), regions)
        again += any(n.region for n in after.nodes.values())
        with about(seed, step):
            same_values(step, after, make_values(step, seed), 1e-12)
    assert again >= 40


@pytest.mark.parametrize("net", BLOCK_NETS)
@pytest.mark.parametrize("name", PASSES)
def test_passes_keep_the_values_of_blocks(name: str, net: str) -> None:
    graph = block_step(net)
    same_values(graph, PASSES[name](graph), make_values(graph), 1e-10)


@pytest.mark.parametrize("net", BLOCK_NETS)
def test_lowering_before_the_gradient_gives_the_same_step(net: str) -> None:
    network = elaborate(
        load_program(BLOCKS), net, Settings(batch=2, training=True, dtype="float64")
    )
    after = training_graph(
        replace(network, graph=lower_convolutions(network.graph)), plain_recipe()
    )
    before = block_step(net)
    same_values(before, after, make_values(before), 1e-10)
    assert not any(n.type.shape[1:3] == (1, 1) for n in _weights(after, "conv2d"))


def _weights(graph: Graph, op: str) -> list[object]:
    return [graph[n.args[1]] for n in graph.find_by_op(op) if n.attrs["groups"] == 1]


@pytest.mark.parametrize("net", BLOCK_NETS)
def test_folding_keeps_what_evaluation_gives(net: str) -> None:
    graph = elaborate(load_program(BLOCKS), net, Settings(batch=2, dtype="float64")).graph
    values = make_values(graph)
    folded = split_preparation(fold_batch_norms(lower_convolutions(graph)))
    same_folded(graph, folded, values)
    assert not [n for n in folded.main.nodes.values() if n.op in ("normalize", "moments")] or (
        net == "normalised"
    )


def test_a_product_with_two_readers_keeps_its_weights() -> None:
    b = Builder(dtype="float64")
    x = b.input("x", TensorType((2, 3), "float64"))
    w = b.state("w", TensorType((4, 3), "float64"), ("normal", 1.0))
    s = b.state("s", TensorType((4,), "float64"), ("normal", 1.0))
    y = b.matmul(x, w)
    graph = b.build({"raw": y, "scaled": b.mul(y, s)})
    folded = split_preparation(fold_batch_norms(graph))
    assert [n.args for n in folded.main.find_by_op("matmul")] == [("x", "w")]
    assert not folded.prepare.updates


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("net", ["residual", "googlenet"])
def test_weights_are_rounded_once_and_not_with_every_batch(net: str, low: str) -> None:
    graph = elaborate(load_program(BLOCKS), net, Settings(batch=2)).graph
    folded = pass_manager.prepare_inference(graph, low=low)
    states = {n.name: n.type.dtype for n in folded.main.states}
    assert not [n for n in folded.main.find_by_op("cast") if n.args[0] in states]
    weights = {states[n.args[1]] for op in ("conv2d", "matmul") for n in folded.main.find_by_op(op)}
    assert weights == {low}
    backend = open_backend("reference")
    state = State(backend)
    values = make_values(graph)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor = FoldedExecutor(folded, backend, state)
    executor.refresh()
    expected, found = evaluate_results(graph, values), executor.run(values)
    for label in graph.outputs:
        scale = float(np.abs(expected[label]).max())
        np.testing.assert_allclose(found[label], expected[label], atol=0.05 * scale)


@pytest.mark.parametrize("net", ["residual", "googlenet", "unet", "plain"])
def test_recomputed_regions_give_the_same_step(net: str) -> None:
    graph = block_step(net)
    network = elaborate(
        load_program(BLOCKS), net, Settings(batch=2, training=True, dtype="float64")
    )
    forward = set(network.graph.nodes)
    half = len(network.layers) // 2
    regions = {
        n: ("first" if i < half else "second")
        for i, layer in enumerate(network.layers)
        for n in layer.nodes
        if OPS[network.graph[n].op].kind != "leaf"
    }
    after = recompute(graph, forward, regions)
    same_values(graph, after, make_values(graph), 1e-12)
    again = [n for n in after.nodes.values() if n.region]
    assert again
    kept = {n.name for n in after.nodes.values() if n.name in regions}
    for node in after.nodes.values():
        if node.name not in forward and not node.region:
            inner = {a for a in node.args if a in kept and not _leaves(graph, a, regions, forward)}
            assert not inner, f"{node.name} keeps {inner} alive"


def _leaves(graph: Graph, name: str, regions: dict[str, str], forward: set[str]) -> bool:
    """Whether a value flows out of its region in the forward pass."""
    readers = [n for n in graph.nodes.values() if name in n.args and n.name in forward]
    crossing = any(regions.get(n.name) != regions.get(name) for n in readers)
    return crossing or name in graph.outputs.values() or OPS[graph[name].op].kind == "reduce"


@pytest.mark.parametrize("net", BLOCK_NETS)
def test_lower_precision_rounds_and_no_more(net: str) -> None:
    graph = elaborate(
        load_program(BLOCKS), net, Settings(batch=2, training=True, dtype="float64")
    ).graph
    after = convert_to_mixed_precision(graph, "float32")
    same_values(graph, after, make_values(graph), 2e-5)
    for node in after.nodes.values():
        if node.op in ("conv2d", "matmul"):
            assert node.type.dtype == "float32"
        if node.op in ("moments", "normalize", "ema"):
            assert node.type.dtype == "float64"


def test_half_precision_trains_with_masters_in_full() -> None:
    network = elaborate(load_program(BLOCKS), "residual", Settings(batch=2, training=True))
    step = training_graph(
        replace(network, graph=convert_to_mixed_precision(network.graph, "float16")), plain_recipe()
    )
    assert {n.type.dtype for n in step.states} == {"float32"}
    assert {n.type.dtype for n in step.find_by_op("conv2d_wgrad")} == {"float16"}
    values = make_values(step)
    assert np.isfinite(evaluate_results(step, values)["loss"])


@pytest.mark.parametrize("net", BLOCK_NETS)
def test_batch_norm_by_algebra_gives_the_same_step(net: str) -> None:
    """Outputs, running moments, and by their updates the gradients of all weights."""
    before, after = lowered_step(net), lowered_step(net, rewrite_all_norms)
    same_values(before, after, make_values(before), 1e-9)
    rewritten = len(before.find_by_op("moments")) - len(after.find_by_op("moments"))
    known = {"residual": (8, 7), "residual_small": (6, 5)}  # two products may read one value
    assert (rewritten, len(after.find_by_op("gram"))) == known.get(net, (0, 0))


def test_batch_norm_stays_where_it_is_cheaper() -> None:
    before, after = lowered_step("residual"), lowered_step("residual", rewrite_batch_norms)
    assert not after.find_by_op("gram")
    assert to_text(after) == to_text(before)


def norm_of_product(more: Callable[[Builder, Node, Node], Node]) -> Graph:
    """A product of 50 rows, of 3 channels and 8, its batch norm with an offset, and something."""
    b = Builder(dtype="float64")
    x = b.input("x", TensorType((50, 3), "float64"))
    y = b.matmul(x, b.state("w", TensorType((8, 3), "float64"), ("normal", 1.0)))
    z = b.normalize(y, b.moments(y, axes=(0,)), axes=(0,), eps=1e-5)
    offset = b.state("offset", TensorType((8,), "float64"), ("normal", 1.0))
    return b.build({"z": more(b, y, b.add(z, offset))})


def test_a_product_that_is_read_itself_keeps_its_norm() -> None:
    alone = rewrite_all_norms(norm_of_product(lambda b, y, z: b.relu(z)))
    shared = rewrite_all_norms(norm_of_product(lambda b, y, z: b.add(z, y)))
    assert len(alone.find_by_op("gram")) == len(alone.find_by_op("matmul")) - 1 == 1
    assert [n.type.shape for n in alone.find_by_op("add")].count(
        (50, 8)
    ) == 1  # all offsets are one
    assert not shared.find_by_op("gram")


@pytest.mark.parametrize(("mean", "most"), [(0.0, 2e-5), (100.0, 0.05)])
def test_variances_by_algebra_lose_what_is_told(mean: float, most: float) -> None:
    """In 32 bits, of values whose mean is so many times their deviation."""
    graph = convert_to_mixed_precision(norm_of_product(lambda b, y, z: z), "float32")
    rng = np.random.default_rng(0)
    given = {"x": mean + rng.standard_normal((50, 3)), "offset": np.zeros(8)}
    given["w"] = rng.standard_normal((8, 3))
    narrow = rewrite_all_norms(convert_to_mixed_precision(graph, "float32"))
    one, two = (evaluate_results(g, given)["z"] for g in (graph, narrow))
    assert 0 < np.abs(one - two).max() < most


GOLDEN_PASSES = {
    **PASSES,
    "mixed": lambda graph: convert_to_mixed_precision(graph, "bfloat16"),
    "algebraic": lambda graph: rewrite_all_norms(lower_convolutions(graph)),
}


@pytest.mark.parametrize("name", GOLDEN_PASSES)
def test_golden_text_after_each_pass(name: str) -> None:
    graph = elaborate(
        load_program(BLOCKS), "residual_small", Settings(batch=2, training=True)
    ).graph
    assert_matches_golden(f"passes/{name}.txt", to_text(GOLDEN_PASSES[name](graph)))


def test_golden_text_of_folding() -> None:
    graph = elaborate(load_program(BLOCKS), "residual_small", Settings(batch=2)).graph
    folded = split_preparation(fold_batch_norms(lower_convolutions(graph)))
    assert_matches_golden("passes/fold.txt", to_text(folded.main) + "\n" + to_text(folded.prepare))


def test_golden_text_of_recompute() -> None:
    network = elaborate(load_program(BLOCKS), "residual_small", Settings(batch=2, training=True))
    step = training_step(BLOCKS, "residual_small", batch=2)
    regions = {
        n: "block"
        for layer in network.layers
        for n in layer.nodes
        if layer.path.startswith("bottleneck1.") and OPS[network.graph[n].op].kind != "leaf"
    }
    after = simplify(recompute(step, set(network.graph.nodes), regions))
    assert_matches_golden("passes/recompute.txt", to_text(after))


def test_golden_text_of_the_simplified_step() -> None:
    step = simplify(training_step(BLOCKS, "residual_small", batch=2))
    assert_matches_golden("passes/step.txt", to_text(step))


def test_scalars_fold_and_averages_of_halves_do_not_overflow() -> None:
    b = Builder()
    x = b.input("x", TensorType((2, 8, 8, 1), "float32"))
    w = b.state("w", TensorType((), "float32"), ("constant", 0.5))
    graph = b.build({"loss": b.mul(b.reduce_sum(x, axes=(0, 1, 2, 3)), w)})
    assert split_preparation(fold_batch_norms(graph)).main.outputs == graph.outputs
    b = Builder()
    x = b.input("x", TensorType((2, 8, 8, 1), "float32"))
    mean = b.avg_pool(x, kernel=(8, 8), stride=(8, 8))
    low = convert_to_mixed_precision(b.build({"mean": mean}), "float16")
    found = evaluate_results(low, {"x": np.full((2, 8, 8, 1), 2000.0, np.float32)})["mean"]
    assert np.all(found == 2000)


def test_a_long_region_is_computed_again() -> None:
    b = Builder(dtype="float64")
    x = y = b.input("x", TensorType((3,), "float64"))
    for _ in range(1500):
        y = b.tanh(y)
    z = b.mul(b.exp(y), y)
    forward = {n: "r" for n in b.nodes if n not in ("x", z.name)}
    graph = b.build({"z": z, "again": b.mul(z, b.nodes["tanh~1000"])})
    after = recompute(graph, {*forward, "x", z.name}, forward)
    assert "again.tanh~1000" in after.nodes
    assert x.name in after.nodes


def test_the_recipe_names_what_is_computed_again() -> None:
    from netdsl.errors import NetError
    from netdsl.language.parse import parse
    from netdsl.language.program import build_program
    from netdsl.training.recipe.recipe import resolve_recipe
    from netdsl.training.step.compile import compile_step

    text = (
        (ROOT / "models" / "resnet.net").read_text()
        + 'data { source = cifar10, batch = 2 }\ntrain { net = resnet20, recompute = ["s?.*"] }\n'
        + 'train wrong { net = resnet20, recompute = ["s9.*"] }\n'
    )
    found = build_program(parse(text, str(ROOT / "models" / "resnet.net")))
    recipe = resolve_recipe(found)
    network = elaborate(found, recipe.net, recipe.settings(training=True))
    regions = {n.region for n in compile_step(network, recipe).nodes.values()}
    assert {"s1.small1", "s3.small3"} <= regions
    with pytest.raises(NetError, match="no place matches"):
        compile_step(network, resolve_recipe(found, "wrong"))
