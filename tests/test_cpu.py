"""The CPU engine: its kernels against the reference, with every width of vector."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.backends.cpu import (
    aligned_allocator,
    anchor_epilogue,
    anchor_kernels,
    intrinsics,
    llvm_jit,
    row_kernel,
    thread_pool,
    winograd,
    winograd_transforms,
    winograd_wgrad,
)
from netdsl.backends.cpu.backend import CpuBackend, make_kernel_tasks
from netdsl.backends.cpu.halo_tasks import HaloArgs, clear_halo
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.micro_kernel import compile_micro_kernel
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.row_kernel import RowKernel
from netdsl.backends.cpu.row_kernel_emitter import PrepareEmitter, RowsEmitter
from netdsl.backends.cpu.row_kernel_spec import RowKernelSpec
from netdsl.backends.cpu.task_program import make_program, partition_tasks, thread_count
from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language import program as language
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import load_program
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw, draw_operand
from netdsl.passes import pass_manager
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.simplify import simplify
from netdsl.plan.plan import Plan, make_plan
from netdsl.runtime.executor import Executor, FoldedExecutor, Workspace
from netdsl.runtime.state import State
from netdsl.training.recipe.recipe import default_recipe
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph, Node, TensorType
from tests.conftest import ROOT
from tests.graphs import (
    BLOCK_NETS,
    BLOCKS,
    add_non_finite,
    all_operators_graph,
    assert_non_finite_preserved,
    draw_training_step,
    graph_of,
    make_values,
    training_step,
    with_dtype,
)
from tests.processes import run_in_threads, run_process

CPU = CpuBackend()
COMPUTED = [n for n, op in OPS.items() if op.kind not in ("leaf", "view")]


def close(found: np.ndarray, expected: np.ndarray, what: str, scale: float = 1.0) -> None:
    expected = np.asarray(expected)
    size = max(scale, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4 * size, err_msg=what)


def same_as_the_interpreter(graph: Graph) -> None:
    """Two steps on the engine, each from the interpreter's states, in memory full of NaN: what is
    read has been written, the zeros around images too."""
    values = make_values(graph)
    state = State(CPU)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    workspace = Workspace(CPU, [graph])
    executor = Executor(graph, CPU, state, workspace=workspace)
    for _ in range(2):
        workspace.reserve_arena(0).view(np.uint8)[...] = 255
        expected = evaluate_results(graph, values)
        found = executor.run(values)
        for label in graph.outputs:
            close(found[label], expected[label], label)
        for name in graph.updates:
            values[name] = expected[f"update {name}"]
            close(state.arrays[name], values[name], name)
            state.arrays[name][...] = values[name]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("op", COMPUTED)
def test_every_operator_on_drawn_examples(op: str) -> None:
    for seed in range(24):
        rng = np.random.default_rng(seed)
        example = with_dtype(OPS[op].draw_example(RandomDraw(rng)), "float32")
        graph = graph_of(op, example)
        given = {f"x{i}": draw_operand(o, rng) for i, o in enumerate(example.operands)}
        found = Executor(graph, CPU, State(CPU)).run(given)["y"]
        close(found, evaluate_results(graph, given)["y"], f"{op} {example}", 1e-2)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=SLOW) for n in range(6, 12))])
def test_what_is_not_finite_stays_so(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph, given = all_operators_graph(rng, 2)
    odd = add_non_finite(given, rng)
    found, expected = Executor(graph, CPU, State(CPU)).run(odd), evaluate_results(graph, odd)
    for label, name in graph.outputs.items():
        what = f"{label} {graph[name].attrs}"
        assert_non_finite_preserved(graph[name].op, found[label], expected[label], what)


@pytest.mark.parametrize("seed", range(24))
def test_drawn_graphs(seed: int) -> None:
    graph = draw_training_step(RandomDraw(np.random.default_rng(seed)), "float32")
    same_as_the_interpreter(simplify(lower_convolutions(graph)) if seed % 2 else graph)


@pytest.mark.parametrize("net", BLOCK_NETS)
def test_blocks(net: str) -> None:
    same_as_the_interpreter(simplify(lower_convolutions(training_step(BLOCKS, net, batch=2))))


NORMS = """net small {
  input(5x7x2)
  conv(12, 3x3) -> %s -> relu -> fc(6) -> layernorm -> relu -> fc(5)
}
"""


@pytest.mark.parametrize(
    "norm",
    ["layernorm", "layernorm(axis=channels)", "instancenorm", "groupnorm(3)", "groupnorm(12)"],
)
def test_moments_of_samples_and_groups(norm: str) -> None:
    file = language.build_program(parse(NORMS % norm))
    network = elaborate(file, "small", Settings(batch=3, training=True))
    graph = simplify(lower_convolutions(compile_step(network, default_recipe("small"))))
    same_as_the_interpreter(graph)
    plan, memory = bound(graph)
    assert [k.name for k in plan.kernels if make_kernel_tasks(plan, k, memory) is None] == []


def test_what_has_no_kernel_is_computed_by_the_reference() -> None:
    graph = draw_training_step(RandomDraw(np.random.default_rng(3)))
    values = make_values(graph)
    state = State(CPU)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    found, expected = Executor(graph, CPU, state).run(values), evaluate_results(graph, values)
    for label in graph.outputs:
        np.testing.assert_allclose(found[label], expected[label], rtol=1e-10, atol=1e-10)


_SHAPES = (
    "test_convolutions_of_many_shapes",
    "test_products_of_many_shapes",
    "test_filtered_convolutions",
)


@pytest.mark.parametrize(
    ("lanes", "nets"),
    [
        ("8", "test_blocks[residual]"),
        *(pytest.param(lanes, "test_blocks", marks=SLOW) for lanes in ("4", "8")),
    ],
)
def test_narrower_vectors(lanes: str, nets: str) -> None:
    if int(lanes) >= vector_width():
        pytest.skip(f"the vectors here have {vector_width()} numbers")
    tests = [f"{__file__}::{t}" for t in (nets, *_SHAPES)]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "NETDSL_VECTOR": lanes, "PYTHONPATH": str(ROOT)}
    done = run_process(*command, limit=280, env=environment, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


SHAPES = (
    # image, weight, stride, pad, groups
    ((2, 9, 7, 5), (13, 3, 3, 5), 1, ((1, 1), (1, 1)), 1),
    ((1, 1, 1, 3), (70, 1, 1, 3), 1, ((0, 0), (0, 0)), 1),
    ((3, 8, 8, 16), (16, 1, 1, 16), 3, ((0, 0), (0, 0)), 1),
    ((1, 12, 11, 6), (6, 3, 3, 1), 2, ((1, 1), (1, 1)), 6),
    ((2, 10, 10, 12), (40, 5, 3, 6), 2, ((2, 0), (1, 2)), 2),
    ((2, 17, 17, 3), (64, 7, 7, 3), 2, ((3, 3), (3, 3)), 1),
    ((8, 14, 14, 96), (80, 3, 3, 96), 1, ((1, 1), (1, 1)), 1),
    ((2, 9, 8, 37), (37, 3, 3, 1), 1, ((1, 1), (1, 1)), 37),
    ((3, 11, 12, 16), (16, 5, 3, 1), 2, ((2, 2), (1, 1)), 16),
    ((1, 1, 1, 5), (5, 1, 1, 1), 1, ((0, 0), (0, 0)), 5),
    ((2, 7, 9, 20), (20, 2, 2, 1), 3, ((0, 0), (0, 1)), 20),
    ((3, 7, 9, 100), (150, 3, 3, 100), 2, ((1, 1), (1, 1)), 1),
    # with dilation; with groups that have more channels before than behind, or fewer
    ((2, 11, 9, 8), (16, 3, 3, 8), 1, ((2, 2), (2, 2)), 1, (2, 2)),
    ((2, 11, 13, 6), (10, 3, 2, 3), 1, ((2, 1), (0, 3)), 2, (2, 3)),
    ((3, 10, 9, 20), (5, 3, 3, 4), 2, ((1, 2), (2, 1)), 5, (1, 2)),
    ((2, 9, 12, 4), (12, 3, 3, 1), 1, ((3, 3), (2, 2)), 4, (3, 2)),
    ((2, 9, 8, 8), (12, 3, 3, 4), 1, ((1, 1), (1, 1)), 2),
    ((2, 8, 9, 6), (6, 3, 3, 1), 2, ((2, 2), (1, 1)), 6, (2, 1)),
    ((2, 13, 12, 35), (20, 5, 5, 35), 1, ((4, 4), (4, 4)), 1, (2, 2)),
)


@pytest.mark.parametrize("case", SHAPES)
def test_convolutions_of_many_shapes(case: tuple[object, ...]) -> None:
    image, weight, stride, pad, groups, *dilation = case
    b = Builder(dtype="float32")
    x = b.input("x", TensorType(image))  # type: ignore[arg-type]
    w = b.state("w", TensorType(weight), ("normal", 0.1))  # type: ignore[arg-type]
    how = {"stride": (stride, stride), "pad": pad, "groups": groups}
    how["dilation"] = dilation[0] if dilation else (1, 1)
    y = b.conv2d(x, w, **how)
    g = b.input("g", y.type)
    outputs = {
        "y": y,
        "relu": b.relu(b.add(y, b.input("bias", TensorType(y.type.shape[-1:])))),
        "dx": b.conv2d_dgrad(g, w, size=x.type.shape[1:3], **how),
        "dw": b.conv2d_wgrad(g, x, kernel=w.type.shape[1:3], **how),
    }
    z = followed(b, y)
    for what in (outputs, {"relu": outputs["relu"]}, {"z": z}):
        same_as_the_interpreter(b.build(what))


def followed(b: Builder, y: Node) -> Node:
    """A product with all that a tile may do to it, whatever its type."""
    one = b.state("one", TensorType(()), ("normal", 1.0))
    vector = b.state("vector", TensorType(y.type.shape[-1:]), ("normal", 1.0))
    rest = b.input("rest", y.type)
    z = b.sub(b.mul(b.add(y, vector), one), b.mul(rest, b.const(0.5)))
    return b.add(b.leaky_relu(z, slope=0.1), b.clamp(rest, low=-1.0, high=1.0))


PRODUCTS = (
    # rows of the image, depth, columns
    ((1,), 2048, 1000),
    ((1, 1, 1), 300, 70),
    ((3,), 513, 257),
    ((8,), 1200, 130),
    ((12,), 64, 2000),
    ((2, 1, 3), 5, 7),
    ((2, 7, 5), 48, 200),
    ((8,), 1300, 40),
    ((40,), 1300, 70),
)


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_many_shapes(case: tuple[tuple[int, ...], int, int]) -> None:
    """Few rows are shared out by columns, with what follows the product; and both gradients."""
    lead, depth, columns = case
    b = Builder(dtype="float32")
    x = b.input("x", TensorType((*lead, depth)))
    w = b.state("w", TensorType((columns, depth)), ("normal", 0.1))
    bias = b.state("bias", TensorType((columns,)), ("normal", 1.0))
    y = b.matmul(x, w)
    outputs = {"y": y, "relu": b.relu(b.add(y, bias))}
    g = b.input("g", y.type)
    outputs["dx"] = b.matmul(g, b.transpose(w, perm=(1, 0)))
    flat = [b.reshape(v, shape=(math.prod(lead), v.type.shape[-1])) for v in (g, x)]
    outputs["dw"] = b.matmul(*(b.transpose(v, perm=(1, 0)) for v in flat))
    z = followed(b, y)
    for what in (outputs, {"relu": outputs["relu"]}, {"z": z}):
        same_as_the_interpreter(b.build(what))


def test_what_follows_a_product_stays_in_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it reads what lies where parts of the sums would: those of deep products."""
    gone: list[str] = []
    build = row_kernel.compile_row_kernel

    def seen(*args: Any) -> RowKernel:
        gone.append("through memory")
        return build(*args)

    monkeypatch.setattr(anchor_epilogue, "compile_row_kernel", seen)
    b = Builder(dtype="float32")
    x = b.input("x", TensorType((2, 9, 9, 40)))
    w = b.state("w", TensorType((72, 3, 3, 40)), ("normal", 0.1))
    y = b.conv2d(x, w, stride=(1, 1), pad=((1, 1), (1, 1)), groups=1)
    graph = b.build({"z": followed(b, y)})
    for speedup in (0, math.inf):
        monkeypatch.setattr(winograd, "_MIN_SPEEDUP", speedup)
        same_as_the_interpreter(graph)
        assert gone == []
    monkeypatch.setattr(anchor_kernels, "_DEEP", 4096)
    same_as_the_interpreter(graph)
    assert len(gone) == 1


FILTERED = (
    # image, columns, kernel, pad
    ((2, 9, 7, 21), 37, 3, ((1, 1), (1, 1))),
    ((1, 1, 1, 3), 70, 3, ((1, 1), (1, 1))),
    ((3, 6, 13, 150), 17, 3, ((0, 0), (2, 1))),
    ((2, 17, 5, 16), 200, 5, ((2, 2), (2, 2))),
    ((1, 8, 8, 64), 64, 5, ((0, 3), (1, 0))),
)
MINIMAL_WAYS: tuple[tuple[Mapping[str, int], Mapping[str, int]], ...] = (
    ({}, {}),
    ({"_FEW": 0, "_TILES": 5, "_NEAR": 0, "_COLUMNS": 16}, {"_TILES": 7, "_PARTS": 3}),
    ({"_FEW": 1 << 40, "_DEPTH": 5, "_TILES": 1}, {"_TURN": 0, "_ADD": 0, "_TILES": 1}),
)


@pytest.mark.parametrize("way", MINIMAL_WAYS)
@pytest.mark.parametrize("case", FILTERED)
def test_filtered_convolutions(
    case: tuple[Any, ...],
    way: tuple[Mapping[str, int], Mapping[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Minimal filtering, forward and both gradients, however it is cut; with weights that settle,
    too."""
    image, columns, r, pad = case
    launched: list[str] = []
    for module, settings in zip((winograd, winograd_wgrad), way, strict=True):
        for name, value in settings.items():
            monkeypatch.setattr(module, name, value)
    for kind in (winograd.WinogradConv, winograd_wgrad.WinogradWgrad):
        launch = kind.launch
        monkeypatch.setattr(
            kind, "launch", lambda self, launch=launch: launched.append("") or launch(self)
        )
    monkeypatch.setattr(winograd, "_MIN_SPEEDUP", 0)
    shape = (columns, r, r, image[3])
    test_convolutions_of_many_shapes((image, shape, 1, pad, 1))
    assert len(launched) == 5
    graph, state = graph_of_images(image, shape, pad), State(CPU)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, CPU, state, has_frozen_states=True)
    executor.refresh()
    x = np.random.default_rng(1).standard_normal(image).astype(np.float32)
    values = {"x": x, **{n.name: state.arrays[n.name] for n in graph.states}}
    close(executor.run({"x": x})["y"], evaluate_results(graph, values)["y"], "settled")


@pytest.mark.parametrize("case", SHAPES)
def test_what_cannot_be_filtered_is_not(
    case: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much faster that would be: minimal filtering knows no stride, dilation or groups."""
    monkeypatch.setattr(winograd, "_MIN_SPEEDUP", 0)
    test_convolutions_of_many_shapes(case)


def graph_of_images(image: Any, weight: Any, pad: Any) -> Graph:
    b = Builder(dtype="float32")
    w = b.state("w", TensorType(weight), ("normal", 0.1))
    y = b.conv2d(b.input("x", TensorType(image)), w, stride=(1, 1), pad=pad, groups=1)
    return b.build({"y": y})


@given(st.sampled_from((2, 3, 4, 5)), st.data())
def test_minimal_filtering_is_exact(r: int, data: st.DataObject) -> None:
    """The matrices, in fractions: a line of pixels and a line of weights."""
    found, m = winograd_transforms.make_winograd_matrices(r), winograd_transforms.TILE_SIZE + 1 - r
    numbers = st.integers(-9, 9)
    pixels = data.draw(
        st.lists(
            numbers, min_size=winograd_transforms.TILE_SIZE, max_size=winograd_transforms.TILE_SIZE
        )
    )
    weights = data.draw(st.lists(numbers, min_size=r, max_size=r))

    def times(matrix: winograd_transforms.FractionMatrix, vector: Sequence[Any]) -> list[Any]:
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    values = zip(times(found.image, pixels), times(found.weight, weights), strict=True)
    sums = [sum(weights[k] * pixels[i + k] for k in range(r)) for i in range(m)]
    assert times(found.result, [a * b for a, b in values]) == sums


def test_minimal_filtering_is_nearly_as_exact_as_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of some 1.3 millionths, where deep plain sums have half of that."""
    monkeypatch.setattr(winograd, "_MIN_SPEEDUP", 0)
    rng = np.random.default_rng(0)
    graph = graph_of_images((2, 16, 16, 256), (32, 3, 3, 256), ((1, 1), (1, 1)))
    x = np.maximum(rng.standard_normal((2, 16, 16, 256)), 0).astype(np.float32)
    w = rng.standard_normal((32, 3, 3, 256)).astype(np.float32)
    exact = evaluate_results(graph, {"x": x.astype(np.float64), "w": w.astype(np.float64)})["y"]
    state = State(CPU)
    state.load({"w": w}, graph.states, "the test")
    found = Executor(graph, CPU, state).run({"x": x})["y"]
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert error < 2e-6


@pytest.mark.parametrize("dense", [True, False])
def test_weights_of_columns_that_are_not_there_are_left_alone(dense: bool) -> None:
    """The last block of columns may be narrower than others: behind its weights lies no memory."""
    lanes, depth, columns = vector_width(), 5, 3
    shape = (3, 3, depth, columns) if dense else (columns, 3, 3, depth)
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    line = 2 * lanes * 4
    target = np.full((winograd_transforms.TILE_POINTS, depth, 2 * lanes), 7, np.float32)
    column, step = (4, 4 * columns) if dense else (4 * w[0].size, 4)
    kept: list[Any] = []
    table = RecordTable(kept)
    block = winograd_transforms.WeightBlock(weights=w.ctypes.data, columns=columns)
    args = table.add(
        winograd_transforms.WeightTransformArgs(
            block=0,
            point=depth * line,
            column=column,
            step=step,
            depth=depth,
            line=line,
            parts=1,
            alone=0,
            taps=table.add_i64s([4 * t * depth * (columns if dense else 1) for t in range(9)]),
            blocks=table.add(block),
        )
    )
    task = (winograd_transforms.compile_weight_transform(3, dense), args, 0, 1, target.ctypes.data)
    make_program([[task]], kept)()
    assert (target[:, :, lanes:] == 7).all()
    g = np.array(winograd_transforms.make_winograd_matrices(3).weight, float)
    taps_of = w if dense else w.transpose(1, 2, 3, 0)
    expected = np.einsum("ai,bj,ijkc->abkc", g, g, taps_of).reshape(-1, depth, columns)
    np.testing.assert_allclose(target[:, :, :columns], expected, rtol=1e-4, atol=1e-5)


WAYS = (
    # weights that stay near, pixels that pass by, bytes of results, least vectors, weights at once
    {"_SECOND": 0, "_PIXELS": 20},
    {"_SECOND": 0, "_PIXELS": 1, "_NARROW": 1},
    {"_SECOND": 1 << 40, "_RESULTS": 1, "_LEAST": 1},
    {"_DEEP": 1, "_SHALLOW": 1},
    {"_DEEP": 6000},
)


@pytest.mark.parametrize("way", WAYS)
def test_products_cut_in_other_ways(
    way: Mapping[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decides how a product is cut decides about speed alone."""
    for name, value in way.items():
        monkeypatch.setattr(anchor_kernels, name, value)
    for case in SHAPES:
        test_convolutions_of_many_shapes(case)
    for product in PRODUCTS[5:]:
        test_products_of_many_shapes(product)
    same_as_the_interpreter(training_step(BLOCKS, "residual", batch=2))


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_tasks_cover_all_there_is(lines: int, block: int, columns: int, workers: int) -> None:
    """Each line of each column is in one task, and no task waits for a much longer one at the
    end."""
    found = partition_tasks(lines, block, columns, workers)
    seen = np.zeros((lines, columns), int)
    for a, b, c, d in found:
        assert a < b
        assert c < d
        seen[a:b, c:d] += 1
    assert (seen == 1).all()
    a, b, c, d = found[-1]
    assert (b - a) * (d - c) <= max(1, lines * columns / 16)


@pytest.mark.parametrize(
    ("path", "net"),
    [
        ("lenet.net", "lenet5"),
        ("resnet.net", "resnet20"),
        ("googlenet.net", "googlenet_bn"),
        ("alexnet.net", "alexnet"),
        ("mobilenet.net", "mobilenet_v2"),
        ("preact.net", "preact20"),
        ("norms.net", "layer"),
        ("norms.net", "group"),
        *(
            pytest.param(f"{file}.net", net, marks=SLOW)
            for file, net in (
                ("lenet", "caffe_lenet"),
                ("resnet", "resnet50"),
                ("googlenet", "googlenet"),
                ("norms", "instance"),
            )
        ),
    ],
)
def test_whole_steps_have_kernels_throughout(path: str, net: str) -> None:
    graph = simplify(lower_convolutions(training_step(str(ROOT / "models" / path), net, batch=2)))
    state = State(CPU)
    state.initialise(graph.states, seed=1)
    plan, memory = bound(graph)
    assert [k.name for k in plan.kernels if make_kernel_tasks(plan, k, memory) is None] == []


def bound(graph: Graph) -> tuple[Plan, dict[str, np.ndarray]]:
    """A plan of a graph, and buffers for it."""
    plan = make_plan(graph, CPU.fusion)
    memory = {"arena": CPU.allocate(plan.arena_bytes)}
    return plan, memory | {name: CPU.allocate(size) for name, size in plan.buffers.items()}


def test_texts_differ_only_where_their_signatures_do(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[object, tuple[str, str]] = {}
    many = 0

    def functions(o: RowKernelSpec) -> object:
        nonlocal many
        many += 1
        signature = o.signature()
        text = (
            RowsEmitter(o).text(),
            PrepareEmitter(o).text() if o.hoisted_exprs or o.shift_tile_indices else "",
        )
        assert texts.setdefault(signature, text) == text
        return known(o)

    known = row_kernel._compile_functions
    monkeypatch.setattr(row_kernel, "_compile_functions", functions)
    steps = [
        draw_training_step(RandomDraw(np.random.default_rng(seed)), "float32") for seed in range(12)
    ]
    for graph in [*steps, *(training_step(BLOCKS, net, batch=2) for net in BLOCK_NETS)]:
        plan, memory = bound(simplify(lower_convolutions(graph)))
        for kernel in plan.kernels:
            make_kernel_tasks(plan, kernel, memory)
    assert 20 < len(texts) < many / 3


def test_what_was_compiled_before_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, memory = bound(simplify(lower_convolutions(training_step(BLOCKS, "residual", batch=2))))

    def launched() -> None:
        row_kernel._compiled_functions.clear()
        compile_micro_kernel.cache_clear()
        monkeypatch.setattr(llvm_jit, "_cached_addresses", {})
        assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)

    def unexpected(self: object) -> str:
        raise AssertionError(f"{self} is written")

    launched()
    monkeypatch.setattr(RowsEmitter, "text", unexpected)
    monkeypatch.setattr(PrepareEmitter, "text", unexpected)
    launched()
    monkeypatch.setattr(llvm_jit, "_hash_sources", lambda: "others")
    with pytest.raises(AssertionError, match="is written"):
        launched()


def test_another_run_of_a_net_loads_no_code_again() -> None:
    graph = simplify(lower_convolutions(training_step(BLOCKS, "residual", batch=2)))
    counts = []
    for _ in range(2):
        plan, memory = bound(graph)
        assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)
        counts.append(len(llvm_jit._loaded_libraries))
    assert counts[0] == counts[1]


_STARTED = """
import sys
import numpy as np
from netdsl.backends.cpu.backend import CpuBackend
from netdsl.ir.builder import Builder
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import TensorType
b = Builder(dtype="float32")
x = b.input("x", TensorType((2, 8, 8, 16)))
w = b.input("w", TensorType((16, 3, 3, 16)))
y = b.conv2d(x, w, stride=(1, 1), pad=((1, 1), (1, 1)), groups=1)
ones = {n.name: np.ones(n.type.shape, np.float32) for n in (x, w)}
found = Executor(b.build({"y": y}), CpuBackend(), State(CpuBackend())).run(ones)["y"]
print(found[0, 4, 4, 0], "numba" in sys.modules)
"""


def test_a_start_that_finds_machine_code_does_without_numba() -> None:
    for _ in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = run_process(sys.executable, "-c", _STARTED, env=environment, text=True)
    assert done.stdout.split() == ["144.0", "False"], done.stderr


def test_a_loop_is_no_function_of_python() -> None:
    for one in (thread_pool._has_task, intrinsics.load_i64):
        with pytest.raises(TypeError, match="machine code"):
            one(0)


def test_pages_come_with_what_is_written_to_them() -> None:
    buffer = aligned_allocator.prefault_pages(
        np.zeros(aligned_allocator._MIN_PREFAULT_BYTES + 100, np.uint8)
    )
    buffer[:] = 1 + np.arange(buffer.size) % 250
    aligned_allocator._touch_pages(buffer)
    assert (buffer == 1 + np.arange(buffer.size) % 250).all()


def test_sums_of_a_product_under_another_shape_come_behind_it() -> None:
    b = Builder(dtype="float32")
    x, w = b.input("x", TensorType((3, 24))), b.state("w", TensorType((20, 24)), ("normal", 1.0))
    y = b.reshape(b.matmul(x, w), shape=(3, 2, 2, 5))
    r = b.relu(y)
    for outputs in ({"sum": b.reduce_sum(r, axes=(0, 1, 2))}, {"r": r, "y": y}):
        graph = b.build({"sum": b.reduce_sum(r, axes=(0, 1, 2)), **outputs})
        plan, memory = bound(graph)
        assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)
        same_as_the_interpreter(graph)


def test_what_a_reshape_cuts_otherwise_is_another_kernel() -> None:
    """No loop nest goes over 9x8 and 18x4."""
    b = Builder(dtype="float32")
    x = b.input("x", TensorType((2, 9, 9, 8)))
    y = b.tanh(b.reshape(b.relu(x), shape=(2, 18, 9, 4)))
    graph = b.build({"y": y, "sum": b.reduce_sum(y, axes=(0, 1, 2))})
    plan, memory = bound(graph)
    assert len(plan.kernels) == 2
    assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)
    same_as_the_interpreter(graph)


def test_a_strided_image_becomes_a_matrix() -> None:
    b = Builder(dtype="float32")
    x = b.input("x", TensorType((2, 5, 7, 3)))
    part = b.slice(x, start=(0, 0, 0, 0), stop=(2, 5, 7, 3), step=(1, 2, 2, 1))
    graph = b.build({"y": b.copy(b.reshape(part, shape=(2 * 3 * 4, 3)))})
    plan, memory = bound(graph)
    assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)
    same_as_the_interpreter(graph)


def test_moments_far_from_zero() -> None:
    b = Builder(dtype="float32")
    x = b.input("x", TensorType((4, 16, 16, 5)))
    graph = b.build({"m": b.moments(x, axes=(0, 1, 2))})
    given = {"x": 3000 + np.random.default_rng(0).standard_normal((4, 16, 16, 5)).astype("f4")}
    found = Executor(graph, CPU, State(CPU)).run(given)["m"]
    np.testing.assert_allclose(found, evaluate_results(graph, given)["m"], rtol=1e-3)


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 1, 9, 37), (3, 1, 1, 16), (2, 7, 96), (2, 4, 1)]
)
def test_rows_are_reduced_by_themselves(shape: tuple[int, ...]) -> None:
    """Sums, largest values and moments of each row, far from those of others too, beside values."""
    b, last = Builder(dtype="float32"), {"axes": (len(shape) - 1,)}
    x, g = (b.input(name, TensorType(shape)) for name in "xg")
    m = b.moments(x, **last)
    outputs = {
        "moments": m,
        "gradient": b.normalize_dmoments(g, x, m, **last, eps=1e-3),
        "sum": b.reduce_sum(b.mul(x, g), **last, keepdims=True),
        "largest": b.reduce_max(x, **last),
        "normal": b.normalize(x, m, **last, eps=1e-3),
    }
    graph, rng = b.build(outputs), np.random.default_rng(0)
    plan, memory = bound(graph)
    assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)
    level = 30 * np.arange(np.prod(shape[:-1])).reshape(*shape[:-1], 1)
    given = {name: rng.standard_normal(shape).astype("f4") for name in "xg"}
    given["x"] += level.astype("f4")
    found = Executor(graph, CPU, State(CPU)).run(given)
    expected = evaluate_results(graph, {k: v.astype("f8") for k, v in given.items()})
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_a_folded_net() -> None:
    network = elaborate(
        load_program(str(ROOT / "models" / "resnet.net")), "resnet20", Settings(batch=2)
    )
    folded = pass_manager.prepare_inference(network.graph)
    given = {"input": np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)}
    found = []
    for backend in (CPU, open_backend("reference")):
        state = State(backend)
        state.initialise(network.graph.states, seed=1)
        executor = FoldedExecutor(folded, backend, state)
        executor.refresh()
        found.append(np.array(executor.run(given)["main"]))
    close(found[0], found[1], "main")


def border_of(x: Any) -> HaloArgs:
    """A border of one pixel."""
    image, row, pixel, _ = x.strides
    sides = {"top": 1, "bottom": 1, "left": 1, "right": 1}
    size = {"rows": x.shape[1], "columns": x.shape[2], "channels": x.shape[3]}
    return HaloArgs(address=x.ctypes.data, image=image, row=row, pixel=pixel, **sides, **size)


def test_two_threads_share_the_pool() -> None:
    images = [np.ones((64, 10, 10, 4), np.float32) for _ in range(2)]
    kept: list[Any] = []
    args = [RecordTable(kept).add(border_of(x)) for x in images]
    tasks = [[(clear_halo.address, a, i, i + 1) for i in range(64)] for a in args]
    programs = [make_program([t], (kept, x)) for t, x in zip(tasks, images, strict=True)]

    def often(i: int) -> None:
        for _ in range(200):
            images[i][...] = 1
            programs[i]()
            assert images[i].sum() == 64 * 8 * 8 * 4

    run_in_threads(partial(often, 0), partial(often, 1))


def test_a_helper_that_would_miss_a_run_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has found no sleeper is one that the next sleeper sees."""
    made, looked = threading.Event(), threading.Semaphore(0)
    found: list[thread_pool.ThreadPool] = []

    def help_out(_: int) -> None:
        made.wait(20)
        found[0]._is_running = not looked._value
        looked.release()

    monkeypatch.setattr(thread_pool, "run_helper", SimpleNamespace(call=help_out))
    found.append(thread_pool.ThreadPool(1))
    made.set()
    assert looked.acquire(timeout=20)
    assert looked.acquire(timeout=20)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETDSL_THREADS", "none")
    with pytest.raises(NetError, match="NETDSL_THREADS=none"):
        thread_count.__wrapped__()
    monkeypatch.setenv("NETDSL_VECTOR", "5")
    with pytest.raises(NetError, match="NETDSL_VECTOR=5"):
        vector_width.__wrapped__()
    assert open_backend("cpu").name == "cpu"
    assert replace(CPU, name="other").fusion == CPU.fusion


def test_a_shuffled_image_has_zeros_around_it() -> None:
    """The copy of a view writes them for a depthwise convolution that reads it with padding."""
    text = "net a { input(6x5x8) -> relu -> shuffle(2) -> depthwise(3x3, pad=same) }"
    graph = elaborate(language.build_program(parse(text)), "a", Settings(batch=2)).graph
    plan, memory = bound(graph)
    (shuffle,) = (n for n in graph.nodes if n.startswith("shuffle1.reshape~"))
    assert plan.placements[shuffle].padding is not None
    assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)
    same_as_the_interpreter(graph)
