"""What each engine has a kernel for: a golden table, so that no operator falls back unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netdsl.backends.cpu.backend import CPU_FUSION, CpuBackend
from netdsl.backends.cuda.anchor_binder import place_splits
from netdsl.backends.cuda.backend import CUDA_FUSION
from netdsl.backends.cuda.kernel_generator import generate_launches
from netdsl.errors import NetError
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.simplify import simplify
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan, make_plan
from netdsl.types import Graph
from tests.golden import assert_matches_golden
from tests.graphs import graph_of, with_dtype
from tests.torch_cases import LAYER_CASES, LayerCase, elaborate_case

EXAMPLES = 16
"""Drawn for each operator: attributes over their whole range."""
MULTIPROCESSORS = 132
FindMissing = Callable[[Plan], list[str]]


def find_missing_on_cpu(plan: Plan) -> list[str]:
    """The names of kernels that no candidate computes: choosing one compiles nothing."""
    choices = zip(plan.kernels, CpuBackend().explain_choices(plan), strict=True)
    return [kernel.name for kernel, choice in choices if choice.taken is None]


def find_missing_on_cuda(plan: Plan) -> list[str]:
    return [kernel.name for kernel in plan.kernels if not has_cuda_kernel(plan, kernel)]


def has_cuda_kernel(plan: Plan, kernel: Kernel) -> bool:
    """Products are cuDNN's and cuBLASLt's; what follows them must be generated."""
    if kernel.kind == "anchor":
        return any(
            cut.rest_launches is not None for cut in place_splits(plan, kernel, MULTIPROCESSORS)
        )
    return generate_launches(plan, kernel, MULTIPROCESSORS) is not None


ENGINES: dict[str, tuple[str, FusionOptions, FindMissing]] = {
    "cpu float32": ("float32", CPU_FUSION, find_missing_on_cpu),
    "cuda float32": ("float32", CUDA_FUSION, find_missing_on_cuda),
    "cuda bfloat16": ("bfloat16", CUDA_FUSION, find_missing_on_cuda),
    "cuda float16": ("float16", CUDA_FUSION, find_missing_on_cuda),
}


def coverage(op: str, engine: str) -> str:
    """`kernel` if every example has one, `reference` if none has, else how many have."""
    dtype, fusion, find_missing = ENGINES[engine]
    draw = RandomDraw(np.random.default_rng(7))
    found = []
    for _ in range(EXAMPLES):
        example = with_dtype(OPS[op].draw_example(draw), dtype)
        try:
            plan = make_plan(graph_of(op, example), fusion)
        except NetError:  # the operator does not take this type
            continue
        found.append(not find_missing(plan))
    if not found:
        return "-"
    if all(found):
        return "kernel"
    return f"{sum(found)} of {len(found)}" if any(found) else "reference"


def layer_graph(case: LayerCase, dtype: str) -> Graph:
    """A layer and its gradients by the image and its weights."""
    network = elaborate_case(case, dtype)
    b = Builder(network.graph, dtype)
    y = b.nodes[network.graph.outputs["main"]]
    wrt = [*network.graph.inputs, *network.parameters]
    gradients = grad(b, y, wrt, cotangent=b.input("direction", y.type))
    outputs = {"y": y, **{f"d {name}": g for name, g in gradients.items()}}
    updates = {state: b.nodes[node] for state, node in network.graph.updates.items()}
    return simplify(lower_convolutions(b.build(outputs, updates)))


def missing_kernels(case: LayerCase, engine: str) -> list[str]:
    """What a layer and its gradients compute without a kernel."""
    dtype, fusion, find_missing = ENGINES[engine]
    return find_missing(make_plan(layer_graph(case, dtype), fusion))


def test_what_layers_lack_kernels_for_is_known() -> None:
    """Each word with its gradients, on each engine: a line here is a fallback that users meet."""
    lines = [
        f"{engine}: {case.text}: {', '.join(missing)}\n"
        for engine in ("cpu float32", "cuda float32", "cuda bfloat16")
        for case in LAYER_CASES
        if (missing := missing_kernels(case, engine))
    ]
    assert_matches_golden("layer_coverage.txt", "".join(lines))


def test_what_engines_have_kernels_for_is_known() -> None:
    """A cell that becomes `reference` is a fallback that nobody would see otherwise."""
    lines = [f"{'operator':<20}" + "".join(f"{engine:>16}" for engine in ENGINES)]
    for op, record in OPS.items():
        if record.kind not in ("leaf", "collective"):  # engines bind collectives themselves
            cells = "".join(f"{coverage(op, engine):>16}" for engine in ENGINES)
            lines.append(f"{op:<20}{cells}")
    assert_matches_golden("coverage.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_operator_without_a_kernel_is_seen(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reference(xp: Any, x: Any) -> Any:
        return xp.arctan(x)

    monkeypatch.setitem(OPS, "unknown", replace(OPS["tanh"], name="unknown", reference=reference))
    assert coverage("unknown", engine) == "reference"
