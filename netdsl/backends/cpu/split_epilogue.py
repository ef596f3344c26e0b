"""The candidate for a product whose tiles cannot take what its kernel does next: that comes behind
it, as a map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from netdsl.backends.cpu.kernel_problem import KernelProblem
from netdsl.backends.cpu.map_candidates import BYTES_PER_CYCLE, explain_map, make_map_tasks
from netdsl.backends.cpu.map_kernels import KernelTasks, PlanMemory
from netdsl.backends.cpu.product_candidates import PRODUCT_CANDIDATES, CpuChoice, product_candidate
from netdsl.lower.candidates import choose
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import Placement
from netdsl.types import Array


@dataclass(frozen=True)
class SplitKernel:
    """A product alone, what computes it, and the kernel's other nodes as a map that reads it."""

    product: KernelProblem
    choice: CpuChoice
    rest: KernelProblem


_PLACEHOLDER = np.zeros(1, np.float32)
"""Gives an address to a product that is looked at only."""


def _split_kernel(problem: KernelProblem, buffer: Array = _PLACEHOLDER) -> SplitKernel:
    """`buffer` is where the product lies if the plan does not store it."""
    memory, kernel, name = problem.memory, problem.kernel, problem.kernel.name
    if not problem.is_product_stored:
        place = Placement(f"product {name}", problem.node.type.dtype, problem.product_layout)
        plan = replace(memory.plan, placements={**memory.plan.placements, name: place})
        memory = PlanMemory(plan, {**memory.buffers, place.buffer: buffer})
    product = KernelProblem(memory, Kernel(name, "anchor", (name,), problem.node.args, (name,)))
    outputs = problem.other_outputs
    nodes = tuple(n for n in kernel.nodes if n != name)
    rest = Kernel(outputs[-1], "map", nodes, (*kernel.inputs, name), outputs)
    return SplitKernel(product, choose(PRODUCT_CANDIDATES, product), KernelProblem(memory, rest))


def _explain_split(problem: KernelProblem) -> str | None:
    if not problem.other_outputs:
        return "nothing follows the product"
    if not set(problem.node.args) <= set(problem.kernel.inputs):
        return "a product that cannot be computed alone"
    split = problem.once(_split_kernel)
    if split.choice.taken is None:
        return "nothing computes the product alone"
    return explain_map(split.rest)


def _estimate_split(problem: KernelProblem) -> float:
    """The product alone, and the time to write and read it once more."""
    split, moved_bytes = problem.once(_split_kernel), 2 * problem.node.type.nbytes
    taken = split.choice.taken
    assert taken is not None
    return taken.cost(split.product) + moved_bytes / BYTES_PER_CYCLE


def _make_split_tasks(problem: KernelProblem) -> KernelTasks:
    target = problem.product_target
    split = (
        problem.once(_split_kernel)
        if target.buffer is None
        else _split_kernel(problem, target.buffer)
    )
    taken = split.choice.taken
    assert taken is not None
    tasks = taken.launch(split.product)
    tasks.append_stages(make_map_tasks(split.rest))
    tasks.keepalive.append(target)
    return tasks


SPLIT_EPILOGUE = product_candidate(
    "split_epilogue", _explain_split, _estimate_split, _make_split_tasks
)
"""The product alone, then the kernel's other nodes as a map."""
