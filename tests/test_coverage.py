"""What each engine has a kernel for: a golden table, so that no operator falls back unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netdsl.backends.cpu.backend import CPU_FUSION, make_kernel_tasks
from netdsl.backends.cpu.llvm_listing import make_placeholder_buffers
from netdsl.backends.cuda.anchor_binder import place_splits
from netdsl.backends.cuda.backend import CUDA_FUSION
from netdsl.backends.cuda.kernel_generator import generate_launches
from netdsl.errors import NetError
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan, make_plan
from tests.golden import assert_matches_golden
from tests.graphs import graph_of, with_dtype

EXAMPLES = 16
"""Drawn for each operator: attributes over their whole range."""
MULTIPROCESSORS = 132
HasKernel = Callable[[Plan, Kernel], bool]


def has_cpu_kernel(plan: Plan, kernel: Kernel) -> bool:
    return make_kernel_tasks(plan, kernel, make_placeholder_buffers(plan)) is not None


def has_cuda_kernel(plan: Plan, kernel: Kernel) -> bool:
    """Products are cuDNN's and cuBLASLt's; what follows them must be generated."""
    if kernel.kind == "anchor":
        return any(
            cut.rest_launches is not None for cut in place_splits(plan, kernel, MULTIPROCESSORS)
        )
    return generate_launches(plan, kernel, MULTIPROCESSORS) is not None


ENGINES: dict[str, tuple[str, FusionOptions, HasKernel]] = {
    "cpu float32": ("float32", CPU_FUSION, has_cpu_kernel),
    "cuda float32": ("float32", CUDA_FUSION, has_cuda_kernel),
    "cuda bfloat16": ("bfloat16", CUDA_FUSION, has_cuda_kernel),
    "cuda float16": ("float16", CUDA_FUSION, has_cuda_kernel),
}


def coverage(op: str, engine: str) -> str:
    """`kernel` if every example has one, `reference` if none has, else how many have."""
    dtype, fusion, has_kernel = ENGINES[engine]
    draw = RandomDraw(np.random.default_rng(7))
    found = []
    for _ in range(EXAMPLES):
        example = with_dtype(OPS[op].draw_example(draw), dtype)
        try:
            plan = make_plan(graph_of(op, example), fusion)
        except NetError:  # the operator does not take this type
            continue
        found.append(all(has_kernel(plan, k) for k in plan.kernels))
    if not found:
        return "-"
    if all(found):
        return "kernel"
    return f"{sum(found)} of {len(found)}" if any(found) else "reference"


def test_what_engines_have_kernels_for_is_known() -> None:
    """A cell that becomes `reference` is a fallback that nobody would see otherwise."""
    lines = [f"{'operator':<20}" + "".join(f"{engine:>16}" for engine in ENGINES)]
    for op, record in OPS.items():
        if record.kind != "leaf":
            cells = "".join(f"{coverage(op, engine):>16}" for engine in ENGINES)
            lines.append(f"{op:<20}{cells}")
    assert_matches_golden("coverage.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_operator_without_a_kernel_is_seen(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reference(xp: Any, x: Any) -> Any:
        return xp.arctan(x)

    monkeypatch.setitem(OPS, "unknown", replace(OPS["tanh"], name="unknown", reference=reference))
    assert coverage("unknown", engine) == "reference"
