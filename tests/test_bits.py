"""The CPU engine's bits: a value has the same in every kernel, on every number of threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np
import pytest

from netdsl.backends.cpu.backend import make_kernel_tasks
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language import program as language
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.ops.example_values import RandomDraw
from netdsl.ops.op import Draw
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.simplify import simplify
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.recipe.recipe import default_recipe
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph, Node, TensorType
from tests.conftest import ROOT
from tests.processes import run_process
from tests.test_cpu import CPU, bound, same_as_the_interpreter


@pytest.mark.parametrize("eps", [1e-12, 3e-4, 0.3, 0.7, 2.0, 37.5])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2), (1, 2, 3)])
def test_gradients_of_normalisation_for_any_eps(eps: float, axes: tuple[int, ...]) -> None:
    b = Builder(dtype="float32")
    g, x = (b.input(n, TensorType((3, 4, 5, 6))) for n in "gx")
    m = b.moments(x, axes=axes)
    y = b.normalize_dmoments(g, x, m, axes=axes, eps=eps)
    same_as_the_interpreter(b.build({"y": y, "z": b.normalize(x, m, axes=axes, eps=eps)}))


_CHAIN = (
    "relu",
    "gelu",
    "elu",
    "tanh",
    "sigmoid",
    "leaky_relu",
    "exp",
    "add",
    "mul",
    "sub",
    "norm",
)


def chain(b: Builder, x: Node, draw: Draw) -> Node:
    """Some elementwise nodes over an image, with vectors of its channels on the way."""
    y, axes = x, tuple(range(x.type.rank - 1))
    for i in range(draw.integer(1, 5)):
        op = draw.choice((draw.choice(_CHAIN), "mul", "norm"))
        if op == "norm":
            m = b.input(f"m{i}", TensorType((2, x.type.shape[-1])))
            y = b.normalize(y, m, axes=axes, eps=draw.choice((1e-5, 0.3)))
        elif op in ("add", "mul", "sub"):
            shape = draw.choice((x.type.shape, x.type.shape[-1:], ()))
            y = b.emit(op, y, b.input(f"z{i}", TensorType(shape)))
        else:
            y = b.emit(op, y)
    return y


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("product", [False, True])
def test_a_value_has_the_same_bits_in_every_kernel(seed: int, product: bool) -> None:
    """In a map, behind a product, beside other nodes: its difference from what was stored of it is
    zero, wherever it is computed again."""

    def graph_of(more: Callable[[Builder, Node], dict[str, Node]]) -> Graph:
        draw, b = RandomDraw(np.random.default_rng(seed)), Builder(dtype="float32")
        x = b.input("x", TensorType((3, 7, 5, draw.integer(1, 40))))
        if product:
            c = x.type.shape[3]
            x = b.matmul(x, b.input("w", TensorType((c, c))))
        return b.build(more(b, chain(b, x, draw)))

    def compared(op: str, b: Builder, y: Node) -> Node:
        y0 = b.input("y0", y.type)
        return b.greater(y0, y) if op == "below" else b.emit(op, y, y0)

    stored = graph_of(lambda b, y: {"y": y})
    rng = np.random.default_rng(seed)
    values = {n.name: rng.uniform(0.5, 1.5, n.type.shape).astype("f4") for n in stored.inputs}
    y0 = np.array(Executor(stored, CPU, State(CPU)).run(values)["y"])
    assert np.isfinite(y0).all()
    for op in ("sub", "greater", "below"):
        graph = graph_of(lambda b, y, op=op: {"z": compared(op, b, y)})  # type: ignore[misc]
        assert not np.any(Executor(graph, CPU, State(CPU)).run({**values, "y0": y0})["z"]), op


_BITS = """
import hashlib
import sys
import numpy as np
from netdsl.backends.cpu import winograd
from netdsl.backends.cpu.backend import CpuBackend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load_program
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.step.compile import compile_step
from netdsl.training.recipe.recipe import default_recipe
from tests.graphs import make_values

for case in sys.argv[1:]:
    path, net, batch, speedup = case.split(":")
    winograd._MIN_SPEEDUP = float(speedup)
    network = elaborate(load_program(path), net, Settings(batch=int(batch), training=True))
    graph = compile_step(network, default_recipe(net))
    values, backend = make_values(graph), CpuBackend()
    state = State(backend)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor, found = Executor(graph, backend, state), hashlib.sha256()
    for step in range(3):
        out = executor.run({**values, "step": np.int32(step)})
        found.update(np.asarray(out["loss"]).tobytes())
    for name in sorted(graph.updates):
        found.update(np.ascontiguousarray(state.arrays[name]).tobytes())
    print(case, found.hexdigest())
"""


@pytest.mark.parametrize("threads", ["7", pytest.param("3", marks=pytest.mark.slow)])
def test_results_do_not_depend_on_the_number_of_threads(threads: str) -> None:
    """Sums over pixels, direct and by minimal filtering, behind products and in maps."""
    nets = (
        "lenet.net:lenet5:50:inf",
        "mobilenet.net:mobilenet_small:5:inf",
        "norms.net:group:5:inf",
    )
    nets += ("lenet.net:lenet5:50:0", "resnet.net:resnet20:6:inf", "resnet.net:resnet20:6:0")
    found = {
        count: run_process(
            *(sys.executable, "-c", _BITS, *(f"{ROOT}/models/{n}" for n in nets)),
            env={**os.environ, "PYTHONPATH": str(ROOT), "NETDSL_THREADS": count},
            text=True,
        ).stdout.splitlines()
        for count in ("1", threads)
    }
    assert len(found["1"]) == len(nets)
    assert found[threads] == found["1"]


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2), (1, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 5, 21), (2, 40, 40, 3), (5, 1, 1, 130)])
def test_largest_values(axes: tuple[int, ...], keepdims: bool, shape: tuple[int, ...]) -> None:
    b = Builder(dtype="float32")
    x = b.input("x", TensorType(shape))
    graph = b.build({"y": b.reduce_max(x, axes=axes, keepdims=keepdims)})
    plan, memory = bound(graph)
    assert all(make_kernel_tasks(plan, k, memory) for k in plan.kernels)
    rng = np.random.default_rng(0)
    negative = -1 - rng.random(shape, np.float32)
    odd = negative.copy()
    odd[0, 0, 0, :2] = -np.inf
    odd[-1, -1, -1, -1] = np.nan
    for values in (negative, odd, np.full(shape, -np.inf, np.float32)):
        found = Executor(graph, CPU, State(CPU)).run({"x": values})["y"]
        np.testing.assert_array_equal(found, evaluate_results(graph, {"x": values})["y"])


GLOBAL = "net a { input(8x8x3) -> conv(16, 3x3, pad=same) -> %s -> globalmaxpool -> fc(10) }"
BEFORE_THE_MAXIMUM = (
    "batchnorm -> relu",
    "layernorm -> gelu",
    "groupnorm(4, eps=0.3) -> elu(alpha=0.5)",
    "instancenorm -> tanh",
    "batchnorm(eps=2) -> add { identity | conv(16, 1x1) } -> relu",
    "batchnorm -> mul { identity | globalavgpool -> conv(16, 1x1) -> sigmoid }",
    "batchnorm -> leaky_relu(0.2) -> dropout(0.3)",
)


@pytest.mark.parametrize("before", BEFORE_THE_MAXIMUM)
def test_gradients_of_global_maxima_behind_fused_chains(before: str) -> None:
    """Each maximum is found where it was: some gradient comes of every one, and none is NaN."""
    network = elaborate(
        language.build_program(parse(GLOBAL % before)), "a", Settings(batch=4, training=True)
    )
    same_as_the_interpreter(
        simplify(lower_convolutions(compile_step(network, default_recipe("a"))))
    )
