"""Collectives on GPUs, which are emulated; NCCL is a fake one over the communicator of the host."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends.array_backend import model_backend
from netdsl.backends.base import Backend
from netdsl.backends.cuda import backend as backend_module
from netdsl.backends.cuda.gpu_ranks import GpuRanks, check_gpus
from netdsl.backends.cuda.kernel_generator import generate_launches
from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load_program
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan
from netdsl.ranks.launcher import find_local_rank
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.step import buckets
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph, TensorType
from tests.cuda_on_cpu import GPP
from tests.gpu_ranks import GpuRank, GpuRanksWorld, install_gpu_ranks
from tests.graphs import BLOCKS, make_values, plain_recipe
from tests.rank_processes import require_mpi, run_command
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
    world.deterministic = True  # nothing is compiled for the sake of timing it
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


def test_a_single_rank_uses_nccl_if_asked_to(world: GpuRanksWorld) -> None:
    """As the test on a GPU does: captured and replayed."""

    def work(rank: GpuRank) -> None:
        ranks = GpuRanks(rank.backend.communicator, rank.backend.device)
        run_step(small_graph(("float32",)), replace(rank.backend, ranks=ranks))
        assert len(rank.nccl.groups) == 2
        assert [o.label for o in rank.gpu.graphs[-1].operations].count("all_reduce") == 1

    world.run(1, work)


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


def test_a_step_with_a_kernel_by_reference_reduces_outside_of_its_graphs(
    world: GpuRanksWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph could not end between the start of a collective and its wait."""
    b = Builder()
    x = b.input("x", TensorType((4, 6)))
    total = b.all_reduce(b.mul(x, x), bucket=1)
    low = b.cast(b.cast(x, dtype="bfloat16"), dtype="float32")
    graph = b.build({"total": b.add(total, b.reduce_sum(low, axes=(0, 1)))})
    monkeypatch.setattr(backend_module, "generate_launches", without("reduce_sum"))
    ranks: list[GpuRank] = []

    def work(rank: GpuRank) -> Any:
        ranks.append(rank)
        return run_step(graph, rank.backend)["total"]

    one, other = world.run(2, work)
    first, second = (make_values(graph, seed=1 + rank)["x"] for rank in range(2))
    for found, own in ((one, first), (other, second)):
        np.testing.assert_allclose(found, first**2 + second**2 + own.sum(), atol=0.02)
    for rank in ranks:
        assert rank.backend.fallbacks
        assert len(rank.nccl.groups) == RUNS
        assert not any(o.label == "all_reduce" for g in rank.gpu.graphs for o in g.operations)


def without(op: str) -> Callable[..., Any]:
    """Generates launches, but none for kernels that compute `op`."""

    def generate(plan: Plan, kernel: Kernel, *rest: Any) -> Any:
        is_without = any(plan.graph[n].op == op for n in kernel.nodes)
        return None if is_without else generate_launches(plan, kernel, *rest)

    return generate


def prepare(world: GpuRanksWorld, size: int = 2, **given: Any) -> list[GpuRank]:
    """Opens ranks that run nothing."""
    for name, value in given.items():
        setattr(world, name, value)
    return world.run(size, lambda rank: rank)


def test_every_rank_has_a_gpu_of_its_own(world: GpuRanksWorld) -> None:
    """On one host, on several that show all GPUs, and on several that show one each."""
    assert [r.gpu.number for r in prepare(world, 4)] == [0, 1, 2, 3]
    hosts = lambda rank: f"node{rank // 2}"
    assert [r.gpu.number for r in prepare(world, 4, hosts=hosts)] == [0, 1, 0, 1]
    with pytest.raises(
        NetError, match=r"ranks 0 and 2 would share a GPU of node1 \(0000:00.*sees 2"
    ):
        prepare(world, 4, hosts=lambda rank: "node1", visible=2)


@pytest.mark.parametrize(
    ("version", "has"), [(0, "finds none"), (22605, "has 2.26.5"), (2804, "has 2.8.4")]
)
def test_a_rank_without_a_current_nccl_is_named(
    version: int, has: str, world: GpuRanksWorld
) -> None:
    with pytest.raises(NetError, match=rf"NCCL 2.27.7 or later; rank 1 \(node1\) {has}") as e:
        prepare(world, versions={1: version})
    assert "netdsl[nccl13]" in e.value.render()


def test_ranks_that_nccl_cannot_connect(world: GpuRanksWorld) -> None:
    def work(rank: GpuRank) -> None:
        rank.nccl.is_connected = rank.backend.communicator.is_root
        open_executor(small_graph(("float32",)), rank.backend)

    with pytest.raises(NetError, match="NCCL cannot connect the ranks: NCCL_ERROR_SYSTEM_ERROR"):
        world.run(2, work)


def test_ranks_on_gpus_that_differ_are_refused() -> None:
    one = {"gpu": "a", "name": "A100", "visible": 1, "architecture": "sm_80", "cuDNN": 91000}
    one |= {"multiprocessors": 108, "cuBLASLt": 130000, "NCCL": 22707}
    hosts = ("node1", "node2")
    check_gpus(hosts, (one, {**one, "gpu": "b"}))
    check_gpus(hosts, (one, one))  # the same address, on another host
    for what in ("architecture", "multiprocessors", "cuDNN", "cuBLASLt", "NCCL"):
        other = {**one, "name": "H100", what: 99999 if what != "architecture" else "sm_90"}
        with pytest.raises(NetError, match=rf"GPUs differ: {what} is .* rank 1 \(H100, node2\)"):
            check_gpus(hosts, (one, other))


def test_local_ranks() -> None:
    """By the variables that MPICH, Open MPI and Slurm set."""
    ompi = {"OMPI_COMM_WORLD_RANK": "9", "OMPI_COMM_WORLD_SIZE": "16"}
    assert find_local_rank({}) == 0
    assert find_local_rank({"SLURM_LOCALID": "3"}) == 0  # a batch script, not one of its ranks
    assert find_local_rank({**ompi, "OMPI_COMM_WORLD_LOCAL_RANK": "1", "SLURM_LOCALID": "0"}) == 1
    pmi = {"PMI_RANK": "9", "PMI_SIZE": "16"}
    assert find_local_rank({**pmi, "MPI_LOCALRANKID": "1", "SLURM_LOCALID": "0"}) == 1
    slurm = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1"}
    assert find_local_rank(slurm) == 1
    assert find_local_rank(pmi) == 9


def test_a_deterministic_run_turns_nvls_off_before_nccl_begins(world: GpuRanksWorld) -> None:
    graph = small_graph(("float32",))
    seen = []

    def work(rank: GpuRank) -> None:
        run_step(graph, rank.backend, runs=1)
        seen.append(os.environ["NCCL_NVLS_ENABLE"])
        run_step(graph, rank.backend.as_deterministic(), runs=1)

    world.deterministic = True
    world.run(2, work)
    assert seen == ["0", "0"]


def test_a_process_that_has_begun_with_nvls_cannot_be_deterministic(world: GpuRanksWorld) -> None:
    graph = small_graph(("float32",))

    def work(rank: GpuRank) -> None:
        run_step(graph, rank.backend, runs=1)
        run_step(graph, rank.backend.as_deterministic(), runs=1)

    with pytest.raises(NetError, match="NCCL keeps the setting of the first run"):
        world.run(2, work)


@pytest.mark.parametrize("hosts", ["aaa", "aba"])
def test_all_ranks_take_the_choices_of_rank_0(hosts: str, world: GpuRanksWorld) -> None:
    """Whatever their own times are. The first rank of each host finishes binding before the others
    of it begin."""
    graph = make_step("residual", ranks=3)
    order: list[tuple[str, int]] = []

    def work(rank: GpuRank) -> dict[str, str]:
        device, number = rank.backend.device, rank.backend.communicator.rank
        rng = np.random.default_rng(number)
        device.measure_milliseconds = lambda run: float(rng.random())
        before = device.tuner.choose_fastest

        def choose(*args: Any) -> Any:
            order.append((hosts[number], number))
            return before(*args)

        device.tuner.choose_fastest = choose
        open_executor(graph, rank.backend)
        return dict(device.tuner.chosen)

    world.hosts = lambda rank: f"node {hosts[rank]}"
    chosen = world.run(3, work)
    assert len(set(chosen[0].values())) > 1
    assert chosen[0] == chosen[1] == chosen[2]
    assert all(rank == 0 for _, rank in order[: len(order) // 3])
    for host in set(hosts):
        ranks = [rank for h, rank in order if h == host]
        first = hosts.index(host)
        assert ranks[: ranks.count(first)] == [first] * ranks.count(first)


def test_a_rank_that_cannot_take_a_choice_is_named(world: GpuRanksWorld) -> None:
    graph = make_step("residual", ranks=2)

    def work(rank: GpuRank) -> None:
        tuner = rank.backend.device.tuner
        rank.backend.device.measure_milliseconds = lambda run: 1.0
        if not rank.backend.communicator.is_root:
            before = tuner.choose_fastest

            def choose(task_key: Any, candidates: Any, *rest: Any) -> Any:
                tuner.prescribed = {}
                return before(task_key, candidates, *rest)

            tuner.choose_fastest = choose
        open_executor(graph, rank.backend)

    with pytest.raises(NetError, match=r"rank 1 \(node1\) computes a product by .*, rank 0 by"):
        world.run(2, work)


NET = """net small {
  input(8x8x1)
  conv(8, 3x3, pad=same, bias=no) -> batchnorm -> relu -> maxpool(2x2)
  fc(10)
}
data { source = digits, batch = 100, augment = [random_crop(1)] }
train { epochs = 1, optimizer = adam(lr=0.01), precision = full, deterministic = yes }
"""


def test_a_run_of_two_processes(tmp_path: Path, netdsl: Any, world: GpuRanksWorld) -> None:
    """From the command line, launched by MPI. The figures are those of a single process without
    a GPU."""
    (tmp_path / "small.net").write_text(NET)
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-m", "tests.emulated_gpu_rank", "cache", "train", "small.net"]
    launch = [str(require_mpi()), "-n", "2"]
    options = ["--device", "cuda", "--out", "two", "--json"]
    done = run_command([*launch, *command, *options], tmp_path)
    assert done.exit_code == 0, done.err
    two = json.loads(done.out)
    code, out, err = netdsl("train", "small.net", "--device", "model", "--out", "one", "--json")
    assert code == 0, err
    one = json.loads(out)
    assert two["ranks"] == 2
    for key in ("train_loss", "val_accuracy", "test_accuracy"):
        assert two[key] == pytest.approx(one[key], rel=0.03), key
    calls = [json.loads((tmp_path / "cache" / f"rank-{r}.json").read_text()) for r in range(2)]
    assert calls[0] == calls[1]
    assert calls[0]["graphs"] == 1
    assert len(calls[0]["groups"]) == 2  # one by one, and while capturing
