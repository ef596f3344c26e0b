"""States and the straight executor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.backends.array_backend import ArrayBackend
from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.ops.distributions import DISTRIBUTIONS
from netdsl.runtime.executor import Executor, FoldedExecutor, Workspace
from netdsl.runtime.state import State, draw_initial_value
from netdsl.training.job import prepare_job
from netdsl.types import Array, Attrs, Graph, Node, TensorType
from tests.conftest import ROOT

REFERENCE = open_backend("reference")


def weight(name: str, law: tuple[str, float], shape: tuple[int, ...] = (200, 100)) -> Node:
    kind = TensorType(shape)
    attrs = {"shape": shape, "dtype": "float32", "init": law, "trainable": True}
    return Node(name, "state", (), Attrs(attrs), kind)


def test_draws_follow_their_law_and_depend_on_name_and_seed() -> None:
    normal = draw_initial_value(weight("a", ("normal", 0.1)), 1)
    assert abs(normal.mean()) < 0.005
    assert normal.std() == pytest.approx(0.1, rel=0.02)
    uniform = draw_initial_value(weight("a", ("uniform", 0.2)), 1)
    assert uniform.min() == pytest.approx(-0.2, abs=1e-3)
    assert uniform.max() == pytest.approx(0.2, abs=1e-3)
    assert np.all(draw_initial_value(weight("a", ("constant", 3.0)), 1) == 3)
    truncated = draw_initial_value(weight("a", ("trunc_normal", 0.1)), 1)
    assert 0.19 < np.abs(truncated).max() <= np.float32(0.2)
    assert truncated.std() == pytest.approx(0.0879626, rel=0.02)
    assert np.array_equal(normal, draw_initial_value(weight("a", ("normal", 0.1)), 1))
    for other in (
        draw_initial_value(weight("b", ("normal", 0.1)), 1),
        draw_initial_value(weight("a", ("normal", 0.1)), 2),
    ):
        assert not np.array_equal(normal, other)


@pytest.mark.parametrize("shape", [(5, 3, 3, 2), (40, 2, 3, 3), (40, 40), (70, 100), (3,)])
def test_orthogonal_rows_or_columns(shape: tuple[int, ...]) -> None:
    values = draw_initial_value(weight("a", ("orthogonal", 2.0), shape), 1)
    matrix = values.reshape(shape[0], -1).astype(np.float64)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    np.testing.assert_allclose(wide @ wide.T, 4 * np.eye(len(wide)), atol=1e-6)


def test_deviations_of_what_is_drawn() -> None:
    for name, distribution in DISTRIBUTIONS.items():
        shape = (64, 5, 5, 16)
        values = draw_initial_value(weight("a", (name, 0.3), shape), 1)
        expected = distribution.deviation(shape, 0.3)
        assert np.std(values) == pytest.approx(expected, rel=0.02, abs=1e-6)


def test_loading_names_what_is_missing_or_misshapen() -> None:
    state = State(REFERENCE)
    node = weight("conv1.weight", ("normal", 0.1), (2, 3))
    with pytest.raises(NetError, match=r"has no `conv1.weight`"):
        state.load({}, [node], "x")
    with pytest.raises(NetError, match="is 3x2 in x, but the net needs 2x3"):
        state.load({"conv1.weight": np.zeros((3, 2))}, [node], "x")


def test_the_executor_computes_what_the_interpreter_does_and_updates_at_the_end() -> None:
    program = load_program(str(ROOT / "models" / "resnet.net"))
    network = elaborate(program, "resnet20", Settings(batch=2, training=True))
    state = State(REFERENCE)
    state.initialise(network.graph.states, seed=1)
    given = {"input": np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)}
    expected = evaluate_results(network.graph, {**state.arrays, **given})
    out = Executor(network.graph, REFERENCE, state).run(given)
    np.testing.assert_array_equal(out["main"], expected["main"])
    assert network.graph.updates
    for name in network.graph.updates:
        np.testing.assert_array_equal(state.arrays[name], expected[f"update {name}"])


def test_the_executor_runs_only_what_is_needed_and_lets_go() -> None:
    program = load_program(str(ROOT / "models" / "lenet.net"))
    graph = elaborate(program, "lenet5").graph
    state = State(REFERENCE)
    state.initialise(graph.states, seed=1)
    early = replace(graph, outputs={"main": "c1.tanh1.tanh"}, updates={})
    executor = Executor(early, REFERENCE, state)
    assert executor.state_names == ("c1.conv1.weight", "c1.conv1.bias")
    given = {"input": np.zeros((1, 28, 28, 1), np.float32)}
    assert executor.run(given)["main"].shape == (1, 28, 28, 6)


def test_unknown_devices_are_told() -> None:
    with pytest.raises(NetError, match="no device `gpu`"):
        open_backend("gpu")


def test_small_inputs_come_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and vectors, of whatever type; an image by itself."""
    b = Builder()
    kinds = {
        "a": TensorType((), "float32"),
        "b": TensorType((3,), "int32"),
        "c": TensorType((5,), "float64"),
        "x": TensorType((2, 5), "float32"),
    }
    given = {name: b.input(name, kind) for name, kind in kinds.items()}
    wide = b.add(b.cast(given["c"], dtype="float32"), b.mul(given["x"], given["a"]))
    graph = b.build({"wide": wide, "b": b.mul(given["b"], given["b"])})
    written: list[int] = []
    plain = ArrayBackend.write

    def write(self: ArrayBackend, target: Array, values: Array) -> None:
        written.append(target.nbytes)
        plain(self, target, values)

    monkeypatch.setattr(ArrayBackend, "write", write)
    executor = Executor(graph, REFERENCE, State(REFERENCE))
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        values = {n: rng.integers(1, 9, k.shape).astype(k.dtype) for n, k in kinds.items()}
        found = dict(executor.run(values))
        for name, expected in evaluate_results(graph, values).items():
            np.testing.assert_array_equal(found[name], expected)
    assert len(written) == 4
    assert written[0] == 40


RECIPE = """net n { input(8x8x1); conv(8, 3x3, pad=same) -> batchnorm -> relu -> maxpool(2x2)
  dropout(0.2) -> fc(10) }
data { source = digits, batch = 32 }
train { epochs = 1, accumulate = 2, ema = 0.9, optimizer = adam(lr=0.01) }
"""


@pytest.mark.parametrize("device", ["reference", "model", "cpu"])
def test_executors_that_share_an_arena_need_nothing_that_was_in_it(device: str) -> None:
    """Steps and evaluations in turn, once each in an arena of its own, once in one that holds NaN
    before each run: the same bits."""
    job, backend, found = prepare_job(build_program(parse(RECIPE)), None), open_backend(device), []
    assert len(job.graphs) == 4
    for shared in (False, True):
        state, judged = State(backend), State(backend)
        state.initialise(job.step_graph.states, seed=1)
        judged.initialise(job.evaluation_graph.states, seed=1)
        workspace = Workspace(backend, job.graphs) if shared else None
        one, two = (Executor(g, backend, state, workspace=workspace) for g in job.graphs[:2])
        folded = FoldedExecutor(job.folded_evaluation, backend, judged, workspace)
        if workspace:
            largest = max(e.plan.arena_bytes for e in (one, two, folded))
            assert workspace.reserve_arena(0) is workspace.reserve_arena(largest)
        values = dict[str, Array]()
        for step in range(2):
            for executor in (two, one, folded):
                _spoil(workspace)
                if executor is folded:
                    folded.refresh()
                    _spoil(workspace)
                out = executor.run(_inputs(executor.plan.graph, step))
                values |= {
                    f"{step} {executor.plan.graph.name} {k}": v.copy() for k, v in out.items()
                }
        found.append([*values.values(), *state.snapshot().values()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def _spoil(workspace: Workspace | None) -> None:
    if workspace is not None:
        workspace.reserve_arena(0)[...] = 255


def _inputs(graph: Graph, step: int) -> dict[str, Array]:
    rng, given = np.random.default_rng(step), dict[str, Array]()
    for node in graph.inputs:
        most = 10 if node.name == "labels" else 200 if node.type.rank == 4 else 1
        drawn = rng.integers(0, most + 1, node.type.shape) if most > 1 else np.ones(node.type.shape)
        given[node.name] = np.minimum(drawn, 9 if most == 10 else 255).astype(node.type.dtype)
    return given


def test_an_arena_that_is_too_small_is_made_anew() -> None:
    job = prepare_job(build_program(parse(RECIPE)), None)
    workspace = Workspace(REFERENCE, [job.folded_evaluation.prepare])
    before = workspace.reserve_arena(0)
    assert len(workspace.reserve_arena(len(before) + 1)) > len(before)
    assert workspace.find_plan(job.step_graph).kernels
