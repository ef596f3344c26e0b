"""Reductions of each row on the CPU: against the reference, fused and seen through views."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.backends.cpu.backend import CpuBackend
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.ops.op import Draw
from netdsl.plan.plan import make_plan
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import Array, Graph, Node, TensorType
from tests.conftest import HypothesisDraw

CPU = CpuBackend()
REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "moments", "normalize_dmoments")


def draw_rows(draw: Draw, b: Builder, shape: tuple[int, ...]) -> Node:
    """A value of a shape: in one piece, part of a wider one, or turned."""
    how = draw.choice(("whole", "part", "turned"))
    name = f"x{len(b.nodes)}"
    if how == "whole":
        return b.input(name, TensorType(shape))
    if how == "turned":
        turned = b.input(name, TensorType((shape[1], shape[0], *shape[2:])))
        return b.transpose(turned, perm=(1, 0, *range(2, len(shape))))
    wide = b.input(name, TensorType((*shape[:-1], shape[-1] + 3)))
    start = (0,) * (len(shape) - 1) + (draw.integer(0, 3),)
    stop = (*shape[:-1], start[-1] + shape[-1])
    return b.slice(wide, start=start, stop=stop, step=(1,) * len(shape))


def draw_row_reductions(draw: Draw) -> Graph:
    """Reductions of one domain that keep its first axes, two at least, with what they reduce."""
    shape = (
        *(draw.integer(2, 4) for _ in range(draw.integer(2, 3))),
        draw.choice((1, 2, 7, 16, 17, 40, 130)),
    )
    axes = tuple(range(draw.integer(2, len(shape) - 1), len(shape)))
    b = Builder(dtype="float32")
    x, z = draw_rows(draw, b, shape), draw_rows(draw, b, shape)
    scale = b.input("scale", TensorType(shape[-1:]))
    y = draw.choice((x, b.add(x, z), b.mul(b.relu(x), b.mul(scale, b.const(3.0)))))
    m = b.input("m", TensorType((2, *shape[: axes[0]])))
    outputs = {}
    for i, op in enumerate(REDUCTIONS):
        if draw.choice((True, False)):
            attrs = {"axes": axes}
            if op == "normalize_dmoments":
                outputs[op] = b.normalize_dmoments(z, y, m, eps=0.1, **attrs)
            elif op == "moments":
                outputs[op] = b.moments(y, **attrs)
            else:
                outputs[op] = b.emit(op, y, keepdims=bool(i % 2), **attrs)
    return b.build({**outputs, "mean": b.reduce_mean(y, axes=axes), "y": b.copy(y)})


def draw_values(graph: Graph, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        n.name: np.abs(rng.standard_normal(n.type.shape, dtype=np.float32) + 2)
        for n in graph.inputs
    }


@settings(max_examples=50)
@given(st.data())
def test_rows_are_reduced_as_by_the_reference(data: st.DataObject) -> None:
    draw = HypothesisDraw(data)
    graph = draw_row_reductions(draw)
    values = draw_values(graph, draw.integer(0, 99))
    found, expected = Executor(graph, CPU, State(CPU)).run(values), evaluate_results(graph, values)
    for label in graph.outputs:
        np.testing.assert_allclose(found[label], expected[label], 2e-5, 1e-5, err_msg=label)


def layer_norm(shape: tuple[int, ...]) -> Graph:
    b = Builder(dtype="float32")
    x = b.input("x", TensorType(shape))
    return b.build({"m": b.moments(x, axes=(len(shape) - 1,))})


def test_rows_of_an_image_have_a_kernel() -> None:
    (choice,) = CPU.explain_choices(make_plan(layer_norm((2, 5, 5, 24)), CPU.fusion))
    assert choice.taken is not None
    assert choice.taken.name == "map"


def test_moments_of_large_values_keep_their_digits() -> None:
    graph = layer_norm((2, 3, 3, 4096))
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((2, 3, 3, 4096))).astype(np.float32)
    (found,) = Executor(graph, CPU, State(CPU)).run({"x": x}).values()
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found[0], wide.mean(axis=3), rtol=1e-6)
    np.testing.assert_allclose(found[1], wide.var(axis=3), rtol=1e-4)


def test_what_is_not_finite_stays_in_its_row() -> None:
    graph = layer_norm((2, 2, 2, 20))
    x = np.ones((2, 2, 2, 20), np.float32)
    x[0, 1, 0, 17] = np.nan
    x[1, 0, 1, 3] = np.inf
    (found,) = Executor(graph, CPU, State(CPU)).run({"x": x}).values()
    assert np.argwhere(~np.isfinite(found[0])).tolist() == [[0, 1, 0], [1, 0, 1]]
