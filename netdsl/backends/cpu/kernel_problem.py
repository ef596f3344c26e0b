"""A kernel at its place in memory, as candidates see it: facts that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.anchor_epilogue import AnchorEpilogue
from netdsl.backends.cpu.implicit_gemm import GEMM_MAKERS, ImplicitGemm
from netdsl.backends.cpu.map_kernels import (
    DomainBody,
    KernelTasks,
    PlanMemory,
    can_clear_halo,
    find_domain,
    make_body_tasks,
)
from netdsl.backends.cpu.memory_ref import KernelOperand
from netdsl.backends.cpu.row_kernel_spec import RowKernelSpec
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple, Layout, make_contiguous
from netdsl.plan.placement import Placement
from netdsl.types import Array, Node

T = TypeVar("T")
OTHER_KIND = "for other kinds of kernels"
"""The reason against candidates that a kernel has nothing to do with."""


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What was built, or the reason why it cannot be."""

    result: T | None = None
    reason: str | None = None

    def unwrap(self) -> T:
        """What was built, where there is no reason against it."""
        assert self.result is not None, self.reason
        return self.result


def attempt(build: Callable[[], T]) -> Attempt[T]:
    """Builds expressions and loop nests, which find only while they are built what this engine has
    no code for."""
    try:
        return Attempt(build())
    except UnsupportedKernelError as e:
        return Attempt(reason=f"no code for {e}")


def explain_halos(places: Iterable[Placement]) -> str | None:
    """Why the zeros around values cannot be written, or None."""
    can_clear = all(map(can_clear_halo, places))
    return None if can_clear else "a halo with more channels than its image, or not float32"


def check_row_kernel(body: DomainBody, fixed_axes: int = 0, can_merge_rows: bool = True) -> None:
    """Raises UnsupportedKernelError where a body with this loop nest cannot be compiled."""
    loop_nest = body.build_loop_nest(fixed_axes, can_merge_rows)
    if any(p.dtype == "bool" for p in body.expressions.refs.values()):  # all else has code
        RowKernelSpec(loop_nest, body.row_body, 1, (0, 0, 0))


def check_epilogue(epilogue: AnchorEpilogue, in_registers: bool, has_all_columns: bool) -> None:
    """Raises UnsupportedKernelError where a product cannot be written, or what follows its rows
    cannot be compiled. What a tile does in its registers has been checked before."""
    if in_registers:
        return
    if epilogue.is_stored:
        epilogue.locate_output(0)
    if epilogue.body is not None:
        check_row_kernel(epilogue.body, 2, has_all_columns)


@dataclass(frozen=True)
class ProductTarget:
    """Where a product is written: `buffer` is its own memory, if the plan does not store it."""

    operand: KernelOperand
    buffer: Array | None = None


@dataclass(frozen=True)
class KernelProblem:
    """A kernel and the memory of its plan."""

    memory: PlanMemory
    kernel: Kernel
    _results: dict[Callable[..., Any], Any] = field(default_factory=dict)

    def once(self, compute: Callable[[KernelProblem], T]) -> T:
        """The result of a function of this problem, computed at the first call."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        return self._results[compute]

    @cached_property
    def node(self) -> Node:
        """The product of an anchor, the last node of another kernel."""
        name = self.kernel.name if self.kernel.kind == "anchor" else self.kernel.nodes[-1]
        return self.memory.plan.graph[name]

    @cached_property
    def parts(self) -> tuple[KernelProblem, ...]:
        """A problem for each part of a launch over several domains."""
        return tuple(KernelProblem(self.memory, part) for part in self.kernel.parts)

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """The element types of what the kernel reads and computes."""
        graph, kernel = self.memory.plan.graph, self.kernel
        return frozenset(graph[n].type.dtype for n in (*kernel.nodes, *kernel.inputs))

    @cached_property
    def halo_reason(self) -> str | None:
        """Why the zeros around outputs cannot be written, or None."""
        return explain_halos(self.memory.plan.placements[o] for o in self.kernel.outputs)

    # maps

    @cached_property
    def map_body(self) -> Attempt[DomainBody]:
        """The body of a map kernel."""
        outputs = self.kernel.outputs
        operands = {name: self.memory.operand(name) for name in self.kernel.inputs}
        domain = find_domain(self.memory, self.kernel)
        return attempt(lambda: self._build_body(domain, operands, outputs))

    def _build_body(
        self, domain: IntTuple, operands: dict[str, KernelOperand], outputs: tuple[str, ...]
    ) -> DomainBody:
        body = DomainBody(self.memory, self.kernel, domain, operands, outputs)
        check_row_kernel(body)
        return body

    # products

    @cached_property
    def is_product_stored(self) -> bool:
        return self.kernel.name in self.kernel.outputs

    @cached_property
    def other_outputs(self) -> tuple[str, ...]:
        """What a kernel writes beside its product."""
        return tuple(o for o in self.kernel.outputs if o != self.kernel.name)

    @cached_property
    def product_layout(self) -> Layout:
        """The layout of a product that is complete before the kernel's other nodes read it."""
        if self.is_product_stored:
            return self.memory.plan.placements[self.node.name].layout
        return make_contiguous(self.node.type.shape)

    @cached_property
    def product_target(self) -> ProductTarget:
        """Where such a product is written. Takes its memory: only for the candidate that is
        launched."""
        if self.is_product_stored:
            return ProductTarget(self.memory.operand(self.node.name))
        buffer = allocate_floats(self.node.type.size)
        address = int(buffer.ctypes.data)
        return ProductTarget(KernelOperand(address, self.product_layout, "float32"), buffer)

    def build_body_after_product(self, product: KernelOperand) -> DomainBody:
        """The body of the other nodes, which reads such a product."""
        operands = {i: self.memory.operand(i) for i in self.kernel.inputs}
        operands[self.node.name] = product
        return self._build_body(self.node.type.shape, operands, self.other_outputs)

    @cached_property
    def reason_after_product(self) -> str | None:
        """Why the other nodes cannot be computed from such a product, or None."""
        if not self.other_outputs:
            return None
        product = KernelOperand(0, self.product_layout, "float32")
        return attempt(lambda: self.build_body_after_product(product)).reason

    @cached_property
    def gemm(self) -> tuple[ImplicitGemm, IntTuple]:
        """The product as an implicit GEMM, and its domain; `explain_gemm` is None."""
        return GEMM_MAKERS[self.node.op](self.memory, self.kernel, self.node)

    @cached_property
    def epilogue(self) -> Attempt[AnchorEpilogue]:
        """What the kernel does with tiles or rows of the product."""
        _, domain = self.gemm
        return attempt(lambda: AnchorEpilogue(self.memory, self.kernel, self.node, domain))


def make_tasks_after_product(problem: KernelProblem) -> KernelTasks:
    """What a kernel computes once its product is complete."""
    if not problem.other_outputs:
        return KernelTasks()
    body = problem.build_body_after_product(problem.product_target.operand)
    return make_body_tasks(problem.memory, body, problem.other_outputs)
