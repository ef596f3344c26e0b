"""Collectives on GPUs, which are emulated; NCCL is a fake one over the communicator of the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends.array_backend import model_backend
from netdsl.backends.base import Backend
from netdsl.backends.cuda.captured_step import CollectiveThunk
from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load_program
from netdsl.ranks.launcher import find_local_rank
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.step import buckets
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph, TensorType
from tests.cuda_on_cpu import GPP
from tests.gpu_ranks import GpuRank, GpuRanksWorld, install_gpu_ranks
from tests.graphs import BLOCKS, make_values, plain_recipe
from tests.thread_ranks import run_ranks

pytestmark = pytest.mark.skipif(GPP is None, reason="there is no g++ to compile for the CPU")
RUNS = 4
"""Once one by one, once captured, twice replayed."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GpuRanksWorld:
    return install_gpu_ranks(monkeypatch, tmp_path)


def make_step(net: str, ranks: int) -> Graph:
    network = elaborate(load_program(BLOCKS), net, Settings(batch=2, training=True, ranks=ranks))
    return compile_step(network, plain_recipe())


def open_executor(graph: Graph, backend: Backend) -> tuple[Executor, State]:
    """With the same states on all ranks."""
    state, values = State(backend), make_values(graph)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    return Executor(graph, backend, state), state


def run_step(graph: Graph, backend: Backend, runs: int = RUNS) -> dict[str, Any]:
    """The outputs of the last run, and the states after it, on inputs of this rank's own."""
    executor, state = open_executor(graph, backend)
    common = {name: x for name, x in make_values(graph).items() if not x.shape}  # such as the rate
    inputs = make_values(graph, seed=1 + backend.communicator.rank) | common
    for _ in range(runs):
        outputs = executor.run(inputs)
    found = {label: backend.download(x) for label, x in outputs.items()}
    return found | {name: backend.download(x) for name, x in state.arrays.items()}


def test_a_step_is_one_graph_whose_buckets_are_reduced_beside_kernels(
    world: GpuRanksWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a residual net with several buckets. States have the same bits on all ranks, and the
    values that the collectives of the host give."""
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 500)
    monkeypatch.setattr(buckets, "TAIL_BYTES", 0)
    graph = make_step("residual", ranks=2)
    ranks: list[GpuRank] = []

    def work(rank: GpuRank) -> dict[str, Any]:
        ranks.append(rank)
        return run_step(graph, rank.backend)

    one, other = world.run(2, work)
    reference = run_ranks(2, lambda c: run_step(graph, model_backend().with_communicator(c)))
    for name in [n.name for n in graph.states]:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for found, expected in zip((one, other), reference, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    for rank in ranks:
        check_graph(rank, graph)


def check_graph(rank: GpuRank, graph: Graph) -> None:
    """One graph, with each bucket as one group of calls on NCCL's stream."""
    (captured,) = (g for g in rank.gpu.graphs if any(o.label == "all_reduce" for o in g.operations))
    operations = captured.operations
    reduced = [i for i, o in enumerate(operations) if o.label == "all_reduce"]
    streams = {o.stream: rank.gpu.streams[o.stream].priority for o in operations}
    assert len(reduced) >= 4
    assert {operations[i].stream for i in reduced} == {s for s, p in streams.items() if p == -1}
    assert len(streams) == 2
    groups = rank.nccl.groups
    assert len(groups) == 2 * len(reduced)  # in the first run, and while capturing
    assert groups[: len(reduced)] == groups[len(reduced) :]  # at the same addresses
    assert {c.stream for calls in groups for c in calls} == {operations[reduced[0]].stream}
    assert {c.dtype for calls in groups for c in calls} == {"float32"}
    values = graph.find_by_op("all_reduce")
    counts = [c.count for calls in groups[: len(reduced)] for c in calls]
    assert sorted(counts) == sorted(n.type.size for n in values)
    check_overlap(captured, reduced)


def check_overlap(captured: Any, reduced: list[int]) -> None:
    """Each bucket but the last one has kernels that may run while it is reduced, and the first
    begins in the first half of the backward pass."""
    past = [captured.ancestors(frozenset((i,))) for i in range(len(captured.operations))]
    beside = [
        sum(i not in past[r] and r not in past[i] for i in range(len(past))) - 1 for r in reduced
    ]
    assert all(n >= 2 for n in beside[:-1]), beside
    backward = [i for i in range(len(past)) if i not in past[reduced[0]]]
    assert len(backward) > len(captured.operations) // 4


def small_graph(dtypes: tuple[str, ...], bucket: int = 1) -> Graph:
    """Sums over ranks: of an input, of what is computed, and of a part of a larger value."""
    b = Builder()
    outputs = {}
    for dtype in dtypes:
        x = b.cast(b.input(f"x {dtype}", TensorType((3, 5))), dtype=dtype)
        total = b.all_reduce(b.add(x, x), bucket=bucket)
        outputs[f"sum {dtype}"] = b.cast(b.mul(total, total), dtype="float32")
    y = b.input("y", TensorType((4, 3)))
    joined = b.concat(b.all_reduce(y, bucket=bucket), b.neg(y), axis=1)
    outputs["joined"] = b.add(joined, joined)
    return b.build(outputs)


@pytest.mark.parametrize("bucket", [0, 1])
@pytest.mark.parametrize("size", [1, 3])
def test_values_of_any_type_and_place_are_reduced(
    size: int, bucket: int, world: GpuRanksWorld
) -> None:
    graph = small_graph(("float32", "float16", "bfloat16"), bucket)
    found = world.run(size, lambda rank: run_step(graph, rank.backend, runs=3))
    expected = run_ranks(
        size, lambda c: run_step(graph, model_backend().with_communicator(c), runs=3)
    )
    for own, others in zip(found, expected, strict=True):
        for name, value in others.items():
            np.testing.assert_allclose(own[name], value, rtol=0.02, err_msg=name)
