"""Generated CUDA source without a GPU: its numbers on the CPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from netdsl.backends.cuda import map_kernels, space_to_depth, window_kernels
from netdsl.backends.cuda.backend import CUDA_FUSION
from netdsl.backends.cuda.kernel_generator import generate_launches
from netdsl.backends.cuda.map_kernels import map_launches
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.lower.trace import TracedKernel
from netdsl.ops import OPS
from netdsl.passes import pass_manager
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.mixed_precision import convert_to_mixed_precision
from netdsl.passes.simplify import simplify
from netdsl.plan.layout import IntTuple, make_contiguous
from netdsl.plan.placement import Placement
from netdsl.plan.plan import make_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.signature import BoundCall
from netdsl.training.recipe.precision import LOW_PRECISIONS, PRECISIONS
from netdsl.training.step.compile import compile_accumulation, compile_step
from netdsl.types import Attrs, Graph, Node, TensorType
from tests.conftest import HypothesisDraw
from tests.cuda_on_cpu import (
    GPP,
    MULTIPROCESSORS,
    HostBackend,
    compile_library,
    open_host_backend,
    pack_arguments,
)
from tests.graphs import (
    BLOCK_NETS,
    BLOCKS,
    SMALL_CONVOLUTIONS,
    add_non_finite,
    all_operators_graph,
    assert_non_finite_preserved,
    block_step,
    convolution_with_gradients,
    draw_training_step,
    lowered_step,
    make_values,
    plain_recipe,
    rewrite_all_norms,
    training_step,
)

needs_compiler = pytest.mark.skipif(GPP is None, reason="there is no g++ to compile for the CPU")


def run(graph: Graph, backend: HostBackend, tolerance: float, steps: int = 2) -> list[str]:
    """Steps of generated kernels against the interpreter; what had no kernel."""
    values = make_values(graph)
    state = State(backend)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor = Executor(graph, backend, state)
    for _ in range(steps):
        expected = evaluate_results(graph, values)
        found = dict(executor.run(values))
        for label in graph.outputs:
            close(found[label], expected[label], tolerance, label)
        for name in graph.updates:
            close(state.arrays[name], expected[f"update {name}"], tolerance, name)
            values[name] = state.arrays[name].copy()
    return backend.fallbacks


def close(found: Any, expected: Any, tolerance: float, what: str, least: float = 1.0) -> None:
    scale = max(least, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(
        np.asarray(found, "float64"),
        np.asarray(expected, "float64"),
        rtol=tolerance,
        atol=tolerance * scale,
        err_msg=what,
    )


Engine = Callable[..., HostBackend]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """Makes the CUDA engine without a GPU; of the ways to compute a product it takes the n-th."""
    return lambda way=0: open_host_backend(monkeypatch, tmp_path, way)


WAYS = (0, -1)
"""The libraries' epilogues, and products alone with what follows them generated."""


@needs_compiler
@pytest.mark.parametrize("net", BLOCK_NETS)
def test_blocks_on_the_cpu(net: str, engine: Engine) -> None:
    graph = simplify(lower_convolutions(block_step(net)))
    for way in WAYS:  # kernels that both have are compiled once
        assert run(graph, engine(way), 1e-9) == []


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", ["residual", "googlenet", "plain"])
def test_mixed_blocks_on_the_cpu(net: str, way: int, engine: Engine) -> None:
    """16-bit loads and stores; sums stay in 32 bits, so one step stays near the interpreter's."""
    graph = simplify(
        convert_to_mixed_precision(
            simplify(lower_convolutions(training_step(BLOCKS, net, batch=2))), "bfloat16"
        )
    )
    assert run(graph, engine(way), 0.05, steps=1) == []


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("low", "tolerance"), [(None, 1e-8), pytest.param("float16", 0.02, marks=pytest.mark.slow)]
)
def test_batch_norm_by_algebra_on_the_cpu(
    low: str | None, tolerance: float, way: int, engine: Engine
) -> None:
    narrow = (lambda graph: convert_to_mixed_precision(graph, low),) if low else ()
    dtype = "float32" if low else "float64"
    graph = lowered_step("residual", *narrow, rewrite_all_norms, dtype=dtype)
    backend = engine(way)
    assert graph.find_by_op("gram")
    assert run(graph, backend, tolerance, steps=1) == []
    epilogues = {"product 6", "product 6 beside", "conv2d_dgrad mask"}
    assert epilogues & backend.device.taken.keys() == (epilogues if way == 0 else set())


@needs_compiler
def test_bias_and_relu_go_into_the_products(engine: Engine) -> None:
    network = elaborate(load_program(BLOCKS), "googlenet", Settings(batch=2, dtype="float32"))
    main = pass_manager.prepare_inference(network.graph).main
    backend = engine()
    run(main, backend, 1e-4, steps=1)
    kinds = set(backend.device.taken)
    assert {"product 6", "conv2d bias+relu"} <= kinds
    assert "product 1" not in kinds


@needs_compiler
@pytest.mark.parametrize("scale", [1024.0, 1e9])
def test_a_scaled_step_on_the_cpu(scale: float, engine: Engine) -> None:
    """Steps that are made and steps that are left out, by the scale of the loss."""
    low = BoundCall("float16", LOW_PRECISIONS["float16"], {"scale": scale, "steady": 1})
    chosen = BoundCall("mixed", PRECISIONS["mixed"], {"low": low})
    network = elaborate(load_program(BLOCKS), "residual_small", Settings(batch=2, training=True))
    graph = compile_step(network, replace(plain_recipe(), precision=chosen))
    assert evaluate_results(graph, make_values(graph))["left_out"] == (scale > 1e6)
    assert run(graph, engine(), 0.05) == []


@needs_compiler
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_drawn_graphs_on_the_cpu(engine: Engine, data: st.DataObject) -> None:
    graph = simplify(lower_convolutions(draw_training_step(HypothesisDraw(data))))
    run(graph, engine(data.draw(st.sampled_from(WAYS))), 1e-8, steps=1)


@needs_compiler
@pytest.mark.parametrize("seed", range(4))
def test_every_operator_on_drawn_examples(seed: int, engine: Engine) -> None:
    """Several examples of each, all in one graph, so that they are compiled together; then on
    numbers that are not finite."""
    rng = np.random.default_rng(seed)
    graph, given = all_operators_graph(rng, 3)
    backend = engine(WAYS[seed % len(WAYS)])
    executor = Executor(graph, backend, State(backend))
    odd = add_non_finite(given, rng)
    for label, expected, found in both(executor, given):
        close(found, expected, 2e-4, f"{label} {graph[graph.outputs[label]].attrs}", 1e-2)
    for label, expected, found in both(executor, odd):
        node = graph[graph.outputs[label]]
        assert_non_finite_preserved(node.op, found, expected, f"{label} {node.attrs}")


@needs_compiler
def test_exponents_that_have_formulas_of_their_own(engine: Engine) -> None:
    b = Builder(dtype="float32")
    x = b.input("x", TensorType((3, 7), "float32"))
    outputs = {f"{p}": b.power(x, exponent=p) for p in (2.0, 1.0, 0.5, -1.0, 0.0, 1.5, -0.5)}
    backend = engine()
    executor = Executor(b.build(outputs), backend, State(backend))
    values = {"x": np.random.default_rng(0).uniform(0.1, 4, (3, 7)).astype(np.float32)}
    for label, expected, found in both(executor, values):
        close(found, expected, 1e-6, label)


def both(executor: Executor, given: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each output as the interpreter has it and as an engine has it."""
    found = executor.run(given)
    for label, expected in evaluate_results(executor.graph, given).items():
        yield label, expected, found[label]


CONVOLUTIONS = [
    ((8, 12, 3), (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((8, 8, 3), (11, 5), (4, 4), ((2, 2), (2, 2))),
    ((6, 8, 1), (3, 3), (2, 2), ((0, 1), (1, 1))),
]


@needs_compiler
@pytest.mark.parametrize(("image", "kernel", "stride", "pad"), CONVOLUTIONS)
def test_blocks_of_pixels(image: Any, kernel: Any, stride: Any, pad: Any, tmp_path: Path) -> None:
    """A strided convolution over a thin image is one at stride 1 over blocks of its pixels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *image))
    w = rng.standard_normal((5, *kernel, image[2]))
    attrs = {"stride": stride, "pad": pad, "dilation": (1, 1), "groups": 1}
    y = OPS["conv2d"].reference(np, x, w, **attrs)
    node = Node("y", "conv2d", ("x", "w"), Attrs(attrs), TensorType(y.shape, "float64"))
    blocks = space_to_depth.find_space_to_depth(node, x.shape, w.shape, y.shape)
    assert blocks is not None
    inner = {"x": np.zeros(blocks.image_shape), "w": np.zeros(blocks.weight_shape(5))}
    moved(
        space_to_depth.trace_image_copy(blocks, place("a", x), place("b", inner["x"])),
        x,
        inner["x"],
        tmp_path,
    )
    moved(
        space_to_depth.trace_weight_copy(blocks, place("a", w), place("b", inner["w"])),
        w,
        inner["w"],
        tmp_path,
    )
    plain = {**attrs, "stride": (1, 1), "pad": ((0, 0), (0, 0))}
    close(OPS["conv2d"].reference(np, inner["x"], inner["w"], **plain), y, 1e-12, "blocks")
    g = rng.standard_normal(y.shape)
    wgrad = OPS["conv2d_wgrad"].reference
    gathered = np.zeros_like(w)
    dw = wgrad(np, g, inner["x"], kernel=blocks.kernel, **plain)
    moved(
        space_to_depth.trace_weight_gradient_copy(blocks, place("a", dw), place("b", gathered)),
        dw,
        gathered,
        tmp_path,
    )
    close(gathered, wgrad(np, g, x, kernel=kernel, **attrs), 1e-12, "gradient")


def place(name: str, array: Any) -> Placement:
    return Placement(name, str(array.dtype), make_contiguous(array.shape))


def moved(traced: TracedKernel, source: Any, target: Any, folder: Path) -> None:
    """Runs a copy from `a` to `b`."""
    (launch,) = map_launches(traced, 2)
    words = pack_arguments(launch, {"a": source, "b": target})
    pointer = words.ctypes.data_as(ctypes.c_void_p)
    compile_library([launch], folder).call_0(pointer, *launch.grid, launch.threads)


@needs_compiler
def test_gradients_are_added_up_together(engine: Engine) -> None:
    """For their joint norm: a launch for those whose sums are taken alike, a second one for large
    ones."""
    text = "net n { input(8x8x3); conv(6, 3x3) -> batchnorm -> relu; (fc(200) -> relu) * 3; fc(7) }"
    network = elaborate(build_program(parse(text)), None, Settings(batch=2, training=True))
    graph = compile_step(network, replace(plain_recipe(), clip=0.1))
    backend = engine()
    plan = make_plan(graph, backend.fusion)
    (totals,) = (k for k in plan.kernels if k.name == "totals")
    found = generate_launches(plan, totals, MULTIPROCESSORS)
    assert found
    assert len(totals.parts) > 10 > len(found)
    assert run(graph, backend, 1e-4) == []


@needs_compiler
@pytest.mark.parametrize("value", [0.0, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_over_some_channels_of_an_image(dtype: str, value: float, engine: Engine) -> None:
    """Pixels whose distance is no multiple of what is loaded at once."""
    b = Builder()
    x = b.relu(b.cast(b.input("x", TensorType((2, 6, 6, 20), "float32")), dtype=dtype))
    some = b.slice(x, start=(0, 0, 0, 0), stop=(2, 6, 6, 16), step=(1, 1, 1, 1))
    wide = b.pad(some, low=(0, 1, 1, 0), high=(0, 1, 1, 0), interior=(0, 0, 0, 0), value=value)
    y = b.max_pool(wide, kernel=(2, 2), stride=(1, 1), pad=((0, 0), (0, 0)))
    graph = b.build({"y": b.cast(y, dtype="float32"), "x": b.cast(x, dtype="float32")})
    assert run(graph, engine(), 1e-6 if dtype == "float32" else 0.01) == []


@needs_compiler
def test_threads_that_keep_much_take_fewer_elements_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_kernels, "_MAX_REGISTER_VALUES", 9)
    assert run(simplify(lower_convolutions(block_step("residual"))), engine(), 1e-9) == []


@needs_compiler
def test_a_large_batch_of_pooling_goes_by_parts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many images as the workspace has room for."""
    b = Builder()
    x, g = (b.input(n, TensorType((7, s, s, 8), "float32")) for n, s in (("x", 6), ("g", 3)))
    window = {"kernel": (2, 2), "stride": (2, 2), "pad": ((0, 0), (0, 0))}
    graph = b.build({"d": b.max_pool_grad(g, b.relu(x), **window)})
    monkeypatch.setattr(window_kernels, "WORKSPACE_BYTES", 3 * 3 * 3 * 8 + 5)
    backend = engine()
    assert run(graph, backend, 1e-6) == []
    plan = make_plan(graph, backend.fusion)
    found = generate_launches(plan, plan.kernels[-1], MULTIPROCESSORS)
    assert found
    assert len(found) == 2 * 3


@needs_compiler
@pytest.mark.parametrize("axes", [(0,), (0, 1)])
@pytest.mark.parametrize("rows", [64, 9000])
def test_moments_of_what_a_state_becomes(rows: int, axes: IntTuple, engine: Engine) -> None:
    """They are taken around a value that must not have been written over."""
    b = Builder()
    s = b.state("s", TensorType((rows, 24)), ("normal", 1.0), trainable=False)
    new = b.add(b.mul(s, b.const(3.0)), b.input("x", TensorType((rows, 24), "float32")))
    graph = b.build({"m": b.moments(new, axes=axes)}, {"s": new})
    verify_plan(make_plan(graph, CUDA_FUSION))
    assert run(graph, engine(), 1e-4) == []


def test_no_grid_has_more_rows_than_a_gpu_takes() -> None:
    """A number for each image, of images that no vector divides."""
    b = Builder()
    x, s = (
        b.input(n, TensorType(k, "float32")) for n, k in (("x", (8, 4099, 4099)), ("s", (8, 1, 1)))
    )
    plan = make_plan(b.build({"y": b.mul(x, s)}), CUDA_FUSION)
    (launch,) = generate_launches(plan, plan.kernels[-1], 132) or ()
    columns, rows = launch.grid
    assert rows == 1
    assert columns > 65535


TWO_STAGES: dict[IntTuple, tuple[IntTuple, ...]] = {
    (9000, 24): ((0,), (0, 1)),
    (40, 2048): ((0, 1),),
}
"""Axes over which so much is added up that several blocks share a result."""


@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(3, 5), (7, 8), (700, 6), *TWO_STAGES], ids=str)
def test_reductions_end_in_their_first_launch_where_one_block_is_enough(
    shape: IntTuple, dtype: str, engine: Engine
) -> None:
    """Sums, means, largest values and moments over rows, over columns and over everything."""
    for axes in ((0,), (1,), (0, 1)):
        b = Builder()
        x = b.mul(b.input("x", TensorType(shape, dtype)), b.const(2.0, dtype))
        found = {op: getattr(b, op)(x, axes=axes) for op in ("reduce_sum", "reduce_mean")}
        found["most"] = b.reduce_max(b.neg(x), axes=axes)
        if axes == (0,):
            found["moments"] = b.moments(x, axes=axes)
        backend = engine()
        assert run(b.build(found), backend, 1e-9 if dtype == "float64" else 1e-4) == []
        twice = any("void finish" in source for source in backend.device.asked)
        assert twice == (axes in TWO_STAGES.get(shape, ()))


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", SMALL_CONVOLUTIONS, ids=lambda case: "x".join(map(str, case[0])))
def test_convolutions_of_few_channels(case: Any, dtype: str, engine: Engine) -> None:
    """Forward with bias and relu, and both gradients, the image's with a mask."""
    graph = convolution_with_gradients(*case, dtype)
    backend = engine("_direct")
    assert run(graph, backend, 1e-5 if dtype == "float32" else 0.02, steps=1) == []
    strided = case[3] != (1, 1)
    assert sum(backend.device.taken.values()) == strided  # whose gradient a library computes


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
def test_what_begins_between_two_places_is_copied_for_a_library(way: int, engine: Engine) -> None:
    """Some channels of an image, the first of which is not a multiple of 16 bytes from its pixel's
    first."""
    b = Builder()
    x = b.relu(b.cast(b.input("x", TensorType((2, 6, 6, 80), "float32")), dtype="bfloat16"))
    some = b.slice(x, start=(0, 0, 0, 12), stop=(2, 6, 6, 80), step=(1, 1, 1, 1))
    w = b.cast(b.input("w", TensorType((8, 3, 3, 68), "float32")), dtype="bfloat16")
    window = {"stride": (1, 1), "pad": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    y = b.cast(b.conv2d(some, w, **window), dtype="float32")
    backend = engine(way)
    assert run(b.build({"y": y, "x": b.cast(x, dtype="float32")}), backend, 0.02) == []
    assert any(what.startswith("conv2d") for what in backend.device.taken)


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
def test_timing_leaves_the_states_alone(way: int, engine: Engine) -> None:
    """Gradients are summed up in states where an update takes several batches."""
    network = elaborate(load_program(BLOCKS), "plain", Settings(batch=2, training=True))
    graph = compile_accumulation(network, replace(plain_recipe(), accumulate=2))
    assert any(graph[n].op == "add" for n in graph.updates.values())
    backend = engine(way)
    backend.device.timing = True
    assert run(graph, backend, 1e-4) == []


def read_twice(kind: str) -> Graph:
    """A product that is added to a value which dies there, and what else is computed from both."""
    b = Builder()
    x = b.input("x", TensorType((64, 32), "float32"))
    w = b.state("w", TensorType((32, 32), "float32"), ("normal", 1.0))
    r = b.matmul(x, w)
    p = b.matmul(b.tanh(b.matmul(b.tanh(x), w)), w)
    v = b.add(p, r)
    outputs = {"v": b.relu(v), "p": p} if kind == "product" else {"v": v, "u": b.add(v, r)}
    return b.build(outputs)


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["product", "sum"])
def test_nothing_is_written_over_what_is_read_later(kind: str, way: int, engine: Engine) -> None:
    assert run(read_twice(kind), engine(way), 1e-4, steps=1) == []


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
def test_an_epilogue_behind_a_view(way: int, engine: Engine) -> None:
    """A convolution whose relu comes after it has been flattened."""
    b = Builder()
    x = b.input("x", TensorType((2, 2, 2, 4), "float32"))
    w = b.state("w", TensorType((10, 3, 3, 4), "float32"), ("normal", 1.0))
    y = b.conv2d(x, w, stride=(2, 2), pad=((1, 1), (1, 1)))
    graph = b.build({"y": b.relu(b.reshape(y, shape=(2, 10)))})
    assert run(graph, engine(way), 1e-4, steps=1) == []
