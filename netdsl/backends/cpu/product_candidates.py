"""Candidates for kernels of a product: convolutions, their gradients and matrix products.

What follows a product costs the same in all of them, so that costs are those of the product alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from netdsl.backends.cpu.anchor_kernels import GemmTasks
from netdsl.backends.cpu.depthwise import explain_depthwise, make_depthwise_tasks
from netdsl.backends.cpu.implicit_gemm import explain_gemm
from netdsl.backends.cpu.kernel_problem import (
    OTHER_KIND,
    Attempt,
    KernelProblem,
    attempt,
    check_epilogue,
)
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.map_kernels import KernelTasks
from netdsl.backends.cpu.small_m_gemm import explain_small_m, make_small_m_tasks
from netdsl.backends.cpu.wgrad import DirectWgrad, explain_wgrad, explain_wgrad_output
from netdsl.backends.cpu.winograd import (
    WinogradConv,
    estimate_winograd_cycles,
    explain_winograd,
)
from netdsl.backends.cpu.winograd_wgrad import WinogradWgrad, estimate_winograd_wgrad_cycles
from netdsl.lower.candidates import Candidate, CandidateChoice

CpuCandidate = Candidate[KernelProblem, KernelTasks]
"""Costs are estimated cycles of one core."""
CpuChoice = CandidateChoice[KernelProblem, KernelTasks]

MAX_SMALL_M_ROWS = 32
"""Rows up to which reading weights as they lie was measured to be faster than packing them."""
MIN_SMALL_M_VECTORS = 16
"""Vectors of depth from which it was."""
MIN_POINTWISE_PIXELS = 64
"""Pixels from which copying operands that are read along their columns was measured to pay."""


def _explain_anchor(problem: KernelProblem) -> str | None:
    """Why a kernel is no product that this engine computes, or None."""
    if problem.kernel.kind != "anchor":
        return OTHER_KIND
    if not problem.dtypes <= {"float32", "bool"}:
        return "types other than float32"
    return problem.halo_reason


def _multiplication_cycles(count: int) -> float:
    """Two vectors of products in a cycle."""
    return count / (2 * vector_width())


def _group_waste(groups: int, columns: int) -> float:
    """How many columns are computed for each of the `columns` that a group has: whole vectors."""
    return -(-columns // vector_width()) * vector_width() / columns if groups > 1 else 1.0


# weight gradients


def _count_wgrad_multiplications(problem: KernelProblem) -> int:
    gradient = problem.memory.operand(problem.node.args[0]).layout.shape
    pixels = gradient[1] if problem.node.op == "matmul" else math.prod(gradient[:3])
    return pixels * problem.node.type.size


def _estimate_direct_wgrad(problem: KernelProblem) -> float:
    node = problem.node
    if node.op == "matmul":
        pixels = problem.memory.operand(node.args[0]).layout.shape[1]
        waste = 1.0 if pixels >= MIN_POINTWISE_PIXELS else math.inf
    else:
        groups = node.attrs["groups"]
        waste = _group_waste(groups, node.type.shape[0] // groups)
    return waste * _multiplication_cycles(_count_wgrad_multiplications(problem))


def _explain_winograd_wgrad(problem: KernelProblem) -> str | None:
    node = problem.node
    if node.op != "conv2d_wgrad":
        return OTHER_KIND
    if problem.memory.operand(node.args[0]).layout.strides[3] != 1:
        return "a gradient whose channels are not contiguous"
    return explain_winograd(node, node.type.shape[1:3]) or explain_wgrad_output(problem)


# depthwise convolutions


def _estimate_depthwise(problem: KernelProblem) -> float:
    """Every product loads both of its operands: a vector of them in a cycle."""
    if problem.node.op == "conv2d_wgrad":
        return _count_wgrad_multiplications(problem) / vector_width()
    return problem.gemm[0].multiplications / vector_width()


# matrix products of few rows


def _estimate_small_m(problem: KernelProblem) -> float:
    """Not measured beyond few rows or for shallow products, which other candidates compute."""
    x, w = (problem.memory.operand(a).layout.shape for a in problem.node.args)
    rows, depth = math.prod(x[:-1]), w[1]
    if rows > MAX_SMALL_M_ROWS or depth < MIN_SMALL_M_VECTORS * vector_width():
        return math.inf
    return _multiplication_cycles(rows * math.prod(w))


# implicit GEMM and minimal filtering


def _attempt_gemm(problem: KernelProblem) -> Attempt[GemmTasks]:
    def build() -> GemmTasks:
        tasks = GemmTasks(problem)
        check_epilogue(tasks.epilogue, tasks.is_fused_in_registers, tasks.has_single_block)
        return tasks

    return attempt(build)


def _explain_gemm(problem: KernelProblem) -> str | None:
    return (
        explain_gemm(problem.memory, problem.node)
        or problem.epilogue.reason
        or problem.once(_attempt_gemm).reason
    )


def _estimate_gemm(problem: KernelProblem) -> float:
    gemm, _ = problem.gemm
    waste = _group_waste(len(gemm.groups), gemm.groups[0].columns)
    return waste * _multiplication_cycles(gemm.multiplications)


def _attempt_winograd(problem: KernelProblem) -> Attempt[WinogradConv]:
    def build() -> WinogradConv:
        tasks = WinogradConv(problem)
        in_registers = tasks.epilogue.register_epilogue is not None
        check_epilogue(tasks.epilogue, in_registers, tasks.has_single_block)
        return tasks

    return attempt(build)


def _explain_winograd(problem: KernelProblem) -> str | None:
    node = problem.node
    if node.op not in ("conv2d", "conv2d_dgrad"):
        return OTHER_KIND
    kernel = problem.memory.operand(node.args[1]).layout.shape[1:3]
    reason = explain_winograd(node, kernel) or problem.epilogue.reason
    if reason:
        return reason
    weights = problem.gemm[0].weights
    if 4 not in (weights.column_stride, weights.depth_stride):
        return "weights with gaps between all of them"
    return problem.once(_attempt_winograd).reason


def _estimate_winograd(problem: KernelProblem) -> float:
    gemm, (*size, columns) = problem.gemm
    kernel_size = problem.memory.operand(problem.node.args[1]).layout.shape[1]
    return estimate_winograd_cycles(kernel_size, tuple(size), (gemm.weights.depth, columns))


def product_candidate(
    name: str,
    explain: Callable[[KernelProblem], str | None],
    estimate: Callable[[KernelProblem], float],
    launch: Callable[[KernelProblem], KernelTasks],
) -> CpuCandidate:
    """A candidate for anchors alone."""
    return Candidate(name, lambda p: p.once(_explain_anchor) or explain(p), estimate, launch)


PRODUCT_CANDIDATES: tuple[CpuCandidate, ...] = (
    product_candidate("depthwise", explain_depthwise, _estimate_depthwise, make_depthwise_tasks),
    product_candidate(
        "winograd_wgrad",
        _explain_winograd_wgrad,
        estimate_winograd_wgrad_cycles,
        lambda problem: WinogradWgrad(problem).launch(),
    ),
    product_candidate(
        "direct_wgrad",
        explain_wgrad,
        _estimate_direct_wgrad,
        lambda problem: DirectWgrad(problem).launch(),
    ),
    product_candidate("small_m_gemm", explain_small_m, _estimate_small_m, make_small_m_tasks),
    product_candidate(
        "winograd",
        _explain_winograd,
        _estimate_winograd,
        lambda problem: problem.once(_attempt_winograd).unwrap().launch(),
    ),
    product_candidate(
        "implicit_gemm",
        _explain_gemm,
        _estimate_gemm,
        lambda problem: problem.once(_attempt_gemm).unwrap().launch(),
    ),
)
"""From the most special to the most general: of equal costs, the first is taken."""
