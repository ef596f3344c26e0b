"""What could compute each kernel of a plan on a GPU, as far as that is known without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from netdsl.backends.cuda.anchor_binder import (
    PlacedSplit,
    can_use_direct_kernel,
    make_direct_launches,
    place_splits,
)
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from netdsl.backends.cuda.kernel_generator import make_launches
from netdsl.lower.candidates import Assessment, Candidate, CandidateChoice, choose
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.kernel import Kernel
from netdsl.plan.memory_traffic import count_moved_bytes
from netdsl.plan.plan import Plan


@dataclass(frozen=True)
class _CudaProblem:
    plan: Plan
    kernel: Kernel
    multiprocessors: int


def _launch_generated(problem: _CudaProblem) -> tuple[CudaLaunch, ...]:
    plan, kernel = problem.plan, problem.kernel
    return make_launches(plan, kernel, problem.multiprocessors, plan.placements)


def _explain_generated(problem: _CudaProblem) -> str | None:
    try:
        _launch_generated(problem)
    except UnsupportedKernelError as e:
        return str(e)
    return None


def _estimate_generated(problem: _CudaProblem) -> float:
    return count_moved_bytes(problem.plan.graph, problem.kernel)


_GENERATED = Candidate("generated", _explain_generated, _estimate_generated, _launch_generated)
"""Its cost is the bytes that it moves."""


def explain_choices(plan: Plan, multiprocessors: int) -> tuple[CandidateChoice[Any, Any], ...]:
    """The choice for each kernel. Candidates for products are timed when they are bound."""
    return tuple(_explain_choice(plan, kernel, multiprocessors) for kernel in plan.kernels)


def _explain_choice(plan: Plan, kernel: Kernel, multiprocessors: int) -> CandidateChoice[Any, Any]:
    if kernel.kind == "collective":
        return CandidateChoice(assessments=(Assessment("NCCL all_reduce"),))
    if kernel.kind != "anchor":
        return choose((_GENERATED,), _CudaProblem(plan, kernel, multiprocessors), "bytes")
    found = place_splits(plan, kernel, multiprocessors)
    return CandidateChoice(
        assessments=tuple(a for placed in found for a in _assess(placed, multiprocessors))
    )


def _assess(placed: PlacedSplit, multiprocessors: int) -> Iterator[Assessment]:
    """What is timed for a split: a library's product, and a generated one for few channels."""
    epilogue = f" with {placed.split.epilogue.kind}" if placed.split.epilogue else ""
    library = "cuBLASLt" if placed.node.op in ("matmul", "gram") else "cuDNN"
    reason = (
        f"no kernel computes what follows {placed.split.value}"
        if placed.rest_launches is None
        else None
    )
    yield Assessment(f"{library} {placed.node.op}{epilogue}", reason)
    if can_use_direct_kernel(placed):
        yield Assessment(
            f"generated {placed.node.op}{epilogue}",
            reason or _explain_direct(placed, multiprocessors),
        )


def _explain_direct(placed: PlacedSplit, multiprocessors: int) -> str | None:
    try:
        make_direct_launches(placed, multiprocessors)
    except UnsupportedKernelError as e:
        return str(e)
    return None
