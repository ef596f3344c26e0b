"""Candidates: the choice among them, the table of the CPU engine, and what is told of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends.array_backend import reference_backend
from netdsl.backends.base import Thunk
from netdsl.backends.cpu.backend import CpuBackend
from netdsl.backends.cpu.candidates import CPU_CANDIDATES
from netdsl.backends.cpu.kernel_problem import KernelProblem
from netdsl.backends.cpu.map_kernels import KernelTasks, PlanMemory
from netdsl.backends.cpu.task_program import make_program
from netdsl.cli.kernel_tables import format_cost
from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.lower.candidates import Assessment, Candidate, CandidateChoice, choose
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw, draw_operand
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.simplify import simplify
from netdsl.plan.fusion import NO_FUSION
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan, make_plan
from netdsl.runtime.executor import Executor, Workspace
from netdsl.runtime.state import State
from netdsl.types import Array, Graph, Node, TensorType
from tests.graphs import (
    BLOCKS,
    draw_training_step,
    graph_of,
    make_values,
    training_step,
    with_dtype,
)
from tests.test_cli import DIGITS, LENET
from tests.third_party_backend import ThirdParty

CPU = CpuBackend()
LOCAL = "net a { input(8x8x3); local(4, 3x3) -> relu; fc(5) }"


# the mechanism


def candidate(name: str, reason: str | None, cost: float = 0.0) -> Candidate[int, str]:
    def estimate(problem: int) -> float:
        assert reason is None
        return cost * problem

    return Candidate(name, lambda _: reason, estimate, lambda problem: f"{name} {problem}")


def test_the_cheapest_that_applies_is_taken() -> None:
    table = (candidate("a", None, 3), candidate("b", "too odd", 1), candidate("c", None, 2))
    choice = choose(table, 10)
    assert choice.taken is table[2]
    assert choice.taken.launch(10) == "c 10"
    assert choice.assessments == (
        Assessment("a", cost=30),
        Assessment("b", reason="too odd"),
        Assessment("c", cost=20),
    )


def test_of_equal_costs_the_first_is_taken() -> None:
    for cost in (1.0, math.inf):
        table = (candidate("a", "no"), candidate("b", None, cost), candidate("c", None, cost))
        assert choose(table, 1).taken is table[1]


def test_where_nothing_applies_nothing_is_taken() -> None:
    assert choose((), 1) == CandidateChoice(None, ())
    assert choose((candidate("a", "no"),), 1) == CandidateChoice(
        None, (Assessment("a", reason="no"),)
    )


# the table of the CPU engine


def given(b: Builder, *shape: int) -> Node:
    return b.input(f"x{len(b.nodes)}", TensorType(shape))


def convolution(
    image: tuple[int, ...], weight: tuple[int, ...], stride: int = 1, groups: int = 1
) -> Graph:
    b, pad = Builder(dtype="float32"), weight[1] // 2
    window = {"stride": (stride, stride), "pad": ((pad, pad), (pad, pad)), "groups": groups}
    return b.build({"y": b.conv2d(given(b, *image), given(b, *weight), **window)})


def weight_gradient(stride: int) -> Graph:
    b, side = Builder(dtype="float32"), 32 // stride
    window = {"stride": (stride, stride), "pad": ((1, 1), (1, 1)), "kernel": (3, 3)}
    g, x = given(b, 8, side, side, 64), given(b, 8, 32, 32, 64)
    return b.build({"y": b.conv2d_wgrad(g, x, **window)})


def product(rows: int, depth: int, columns: int) -> Graph:
    b = Builder(dtype="float32")
    return b.build({"y": b.matmul(given(b, rows, depth), given(b, columns, depth))})


def pointwise_gradient() -> Graph:
    b = Builder(dtype="float32")
    turned = (b.transpose(given(b, 64, c), perm=(1, 0)) for c in (24, 40))
    return b.build({"y": b.matmul(*turned)})


def sums_under_another_shape() -> Graph:
    b = Builder(dtype="float32")
    y = b.reshape(b.matmul(given(b, 3, 24), given(b, 20, 24)), shape=(3, 2, 2, 5))
    r = b.relu(y)
    return b.build({"sum": b.reduce_sum(r, axes=(0, 1, 2)), "r": r})


def one_operator(build: Callable[[Builder], Node]) -> Graph:
    b = Builder(dtype="float32")
    return b.build({"y": build(b)})


def strided_matrix(b: Builder) -> Node:
    part = b.slice(given(b, 2, 5, 7, 3), start=(0,) * 4, stop=(2, 5, 7, 3), step=(1, 2, 2, 1))
    return b.copy(b.reshape(part, shape=(24, 3)))


def joined(b: Builder) -> Node:
    x = given(b, 2, 4, 4, 3)
    return b.concat(x, given(b, 2, 4, 4, 5), axis=3)


def two_states_of_one_value() -> Graph:
    """Only one of them can be updated in place."""
    b = Builder(dtype="float32")
    one, other = (b.state(n, TensorType((5,)), ("constant", 0.0)) for n in ("one", "other"))
    y = b.add(one, other)
    return b.build({"y": y}, {"one": y, "other": y})


POOL = {"kernel": (2, 2), "stride": (2, 2), "pad": ((0, 0), (0, 0))}
TAKEN: dict[str, Callable[[], Graph]] = {
    "depthwise": lambda: convolution((2, 9, 9, 24), (24, 3, 3, 1), groups=24),
    "winograd": lambda: convolution((8, 32, 32, 64), (64, 3, 3, 64)),
    "winograd_wgrad": lambda: weight_gradient(1),
    "direct_wgrad": lambda: weight_gradient(2),
    "small_m_gemm": lambda: product(4, 512, 40),
    "implicit_gemm": lambda: product(64, 512, 40),
    "split_epilogue": sums_under_another_shape,
    "map": lambda: one_operator(lambda b: b.exp(given(b, 3, 5))),
    "batched_maps": lambda: simplify(training_step(BLOCKS, "residual", batch=2)),
    "copy": two_states_of_one_value,
    "concat": lambda: one_operator(joined),
    "reshape_copy": lambda: one_operator(strided_matrix),
    "pooling": lambda: one_operator(lambda b: b.max_pool(given(b, 2, 4, 4, 3), **POOL)),
    "lrn": lambda: one_operator(lambda b: b.lrn(given(b, 2, 4, 4, 8), size=3, alpha=0.1)),
    "scores": lambda: one_operator(lambda b: b.softmax(given(b, 4, 10))),
}
"""A graph for each candidate of the table, a kernel of which it computes."""


def names_taken(graph: Graph) -> list[str | None]:
    choices = CPU.explain_choices(make_plan(graph, CPU.fusion))
    return [choice.taken and choice.taken.name for choice in choices]


def test_every_candidate_has_a_case() -> None:
    assert set(TAKEN) == {c.name for c in CPU_CANDIDATES}


@pytest.mark.parametrize("name", TAKEN)
def test_every_candidate_is_taken_by_some_kernel(name: str) -> None:
    assert name in names_taken(TAKEN[name]())


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        (product(32, 512, 40), "small_m_gemm"),
        (product(33, 512, 40), "implicit_gemm"),
        (product(4, 8, 40), "implicit_gemm"),
        (pointwise_gradient(), "direct_wgrad"),
        (convolution((8, 32, 32, 64), (64, 3, 3, 64), stride=2), "implicit_gemm"),
        (convolution((8, 32, 32, 64), (64, 3, 3, 32), groups=2), "implicit_gemm"),
        (convolution((8, 32, 32, 3), (4, 3, 3, 3)), "implicit_gemm"),
    ],
)
def test_measured_thresholds_decide(graph: Graph, name: str) -> None:
    assert names_taken(graph) == [name]


# what the table says is true


@dataclass(frozen=True)
class CheckedBackend(CpuBackend):
    """Computes every kernel by the reference, and with every candidate that applies."""

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        place = PlanMemory(plan, memory)
        able: dict[str, KernelTasks] = {}
        for candidate in CPU_CANDIDATES:
            problem = KernelProblem(place, kernel)
            reason = candidate.applies(problem)
            if reason is None:
                assert candidate.cost(problem) >= 0
                able[candidate.name] = candidate.launch(problem)
            else:
                assert reason.strip()
        return CheckedKernel(place, kernel, self.array_backend.bind(plan, kernel, memory), able)


@dataclass(frozen=True)
class CheckedKernel:
    """Runs the reference last, so that its values are those that the next kernel reads."""

    memory: PlanMemory
    kernel: Kernel
    reference: Thunk
    candidates: Mapping[str, KernelTasks]

    def __call__(self) -> None:
        before = {name: buffer.copy() for name, buffer in self.memory.buffers.items()}
        found = {}
        for name, tasks in self.candidates.items():
            make_program([tasks.refresh_tasks, *tasks.stages])()
            found[name] = self._outputs()
            for buffer, values in before.items():
                self.memory.buffers[buffer][...] = values
        self.reference()
        expected = self._outputs()
        for name, outputs in found.items():
            for one, other in zip(outputs, expected, strict=True):
                close(one, other, f"{name} for {self.kernel}")

    def _outputs(self) -> list[Array]:
        """What the kernel has written, with the zeros around it."""
        found = []
        for name in self.kernel.outputs:
            place = self.memory.plan.placements[name]
            layout = place.layout if place.padding is None else place.padded_layout()
            view = CPU.view(self.memory.buffers[place.buffer], place.dtype, layout)
            found.append(view.astype(np.float64))
        return found


CHECKED = CheckedBackend()


def close(found: Array, expected: Array, what: str) -> None:
    size = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * size, err_msg=what)


def check_graph(graph: Graph, operands: Mapping[str, Array] | None = None) -> None:
    values, state = {**make_values(graph), **(operands or {})}, State(CHECKED)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    workspace = Workspace(CHECKED, [graph])
    workspace.reserve_arena(0)[...] = 255  # NaN: whatever is read and not written is seen
    Executor(graph, CHECKED, state, workspace=workspace).run(values)


@pytest.mark.parametrize("op", [n for n, op in OPS.items() if op.kind not in ("leaf", "view")])
def test_what_applies_computes_drawn_operators(op: str) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        example = with_dtype(OPS[op].draw_example(RandomDraw(rng)), "float32")
        operands = {f"x{i}": draw_operand(o, rng) for i, o in enumerate(example.operands)}
        check_graph(graph_of(op, example), operands)


@pytest.mark.parametrize("seed", range(12))
def test_what_applies_computes_drawn_steps(seed: int) -> None:
    graph = draw_training_step(RandomDraw(np.random.default_rng(seed)), "float32")
    check_graph(simplify(lower_convolutions(graph)) if seed % 2 else graph)


@pytest.mark.parametrize("name", TAKEN)
def test_what_applies_computes_the_cases(name: str) -> None:
    check_graph(TAKEN[name]())


@pytest.mark.parametrize(("kernel", "pad"), [((3, 1), ((1, 1), (0, 0))), ((3, 3), ((1, 1),) * 2)])
def test_a_small_product_has_zeros_around_it(kernel: Any, pad: Any) -> None:
    """It is the image that a convolution reads; where its rows have gaps it is no small product."""
    b = Builder(dtype="float32")
    y = b.matmul(b.exp(given(b, 1, 4, 4, 256)), given(b, 32, 256))
    graph = b.build({"z": b.conv2d(y, given(b, 8, *kernel, 32), pad=pad)})
    assert names_taken(graph)[1] == ("small_m_gemm" if kernel == (3, 1) else "implicit_gemm")
    check_graph(graph)


def test_a_condition_for_each_channel_is_known_to_have_no_code() -> None:
    """It is found late, when rows are laid out; behind a product, it is left to no candidate."""
    for is_product in (False, True):
        b = Builder(dtype="float32")
        mask = b.greater(given(b, 24), b.const(0.0))
        x = b.matmul(given(b, 40, 32), given(b, 24, 32)) if is_product else given(b, 40, 24)
        graph = b.build({"mask": mask, "y": b.select(mask, b.exp(x), x)})
        plan = make_plan(graph, NO_FUSION if not is_product else CPU.fusion)
        reasons = {a.reason for c in CPU.explain_choices(plan) for a in c.assessments}
        assert "no code for conditions along channels" in reasons
        check_graph(graph)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_what_the_reference_computes_has_reasons(dtype: str) -> None:
    for op in ("exp", "matmul", "conv2d", "max_pool", "softmax", "lrn", "concat"):
        example = with_dtype(OPS[op].draw_example(RandomDraw(np.random.default_rng(1))), dtype)
        for choice in CPU.explain_choices(make_plan(graph_of(op, example), CPU.fusion)):
            assert choice.taken is None
            assert all(a.reason for a in choice.assessments)


# what is told of it


def test_the_reference_has_no_candidates_and_others_may_not_tell() -> None:
    plan = make_plan(product(4, 8, 3), CPU.fusion)
    assert reference_backend().explain_choices(plan) == (CandidateChoice(),)
    with pytest.raises(NetError, match="third party"):
        ThirdParty().explain_choices(plan)


def test_explain_shows_what_computes_each_kernel(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "local.net").write_text(LOCAL)
    code, out, _ = netdsl("explain", "local.net", "--kernels", "--device", "cpu")
    assert code == 0
    assert "a, inference, batch 1, device cpu" in out
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines() if ".matmul" in line}
    assert rows["local1.matmul"] == "reference"
    assert "2 of them by reference" in out
    assert "candidates" not in out
    _, out, _ = netdsl("explain", "local.net", "--kernels", "--device", "model")
    assert "4 kernels, 4 of them by reference" in out


def test_explain_shows_why(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "local.net").write_text(LOCAL)
    code, out, _ = netdsl("explain", "local.net", "--kernels", "--why", "--device", "cpu")
    assert code == 0
    parts = {part.split(" ", 1)[0]: part for part in out.split("\n\n")}
    assert "small_m_gemm, implicit_gemm: a batch of matrix products" in parts["local1.matmul"]
    assert "* " not in parts["local1.matmul"]
    # Which one is chosen depends on the width of the vectors.
    chosen = parts["fc1.matmul"].splitlines()[0].rpartition(": ")[2]
    assert f"* {chosen} " in parts["fc1.matmul"]
    assert "implicit_gemm " in parts["fc1.matmul"]
    assert "others: for other kinds of kernels" in parts["fc1.matmul"]


def test_costs_are_shown_with_their_unit() -> None:
    assert format_cost(Assessment("a", cost=1234.4), "cycles") == "1,234 cycles"
    assert format_cost(Assessment("a", cost=math.inf), "cycles") == "only if nothing else can"
    assert format_cost(Assessment("a"), "cycles") == "will be timed on the device"


def test_explain_shows_why_as_json(netdsl: Any) -> None:
    _, out, _ = netdsl("explain", LENET, "--kernels", "--json", "--device", "cpu")
    kernels = json.loads(out)["kernels"]
    assert kernels[0]["computed_by"] == "implicit_gemm"
    assert [c["name"] for c in kernels[0]["candidates"]] == [c.name for c in CPU_CANDIDATES]
    for kernel in kernels:
        cheapest = min(
            (c for c in kernel["candidates"] if c["reason"] is None),
            key=lambda c: math.inf if c["cost"] is None else c["cost"],
        )
        assert kernel["computed_by"] == cheapest["name"]


def test_a_gpu_is_explained_without_one(netdsl: Any) -> None:
    code, out, _ = netdsl("explain", DIGITS, "--train", "--kernels", "--why", "--device", "cuda")
    assert code == 0
    assert "* generated" in out
    assert "cuDNN conv2d" in out
    assert "will be timed on the device" in out


def test_why_needs_kernels(netdsl: Any) -> None:
    code, _, err = netdsl("explain", LENET, "--why")
    assert code == 2
    assert "add `--kernels`" in err


def test_time_marks_what_runs_by_reference(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "local.net").write_text(LOCAL)
    _, out, _ = netdsl("time", "local.net", "--device", "cpu", "--rounds", "1")
    assert "matmul by reference" in out
    assert "2 of 4 kernels by reference" in out
    _, out, _ = netdsl("time", LENET, "--device", "cpu", "--rounds", "1")
    assert "by reference" not in out
