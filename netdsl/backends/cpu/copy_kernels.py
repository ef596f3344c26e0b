"""Copies from one layout to another, as tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from netdsl.backends.cpu.domain_expressions import DomainExpressions
from netdsl.backends.cpu.loop_nest import MAX_OUTER_AXES, LoopNest, make_loop_nest
from netdsl.backends.cpu.map_kernels import KernelTasks
from netdsl.backends.cpu.memory_ref import KernelOperand
from netdsl.backends.cpu.row_kernel import compile_row_kernel
from netdsl.backends.cpu.row_kernel_spec import RowKernelBody
from netdsl.backends.cpu.task_program import split_range, thread_count
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.trace import trace_copy
from netdsl.plan.layout import Layout
from netdsl.plan.placement import Placement

_MAX_SPLIT = 16


@dataclass(frozen=True)
class CopyLoops:
    """A copy of float32 elements between two places, and the loops over them."""

    expressions: DomainExpressions
    loop_nest: LoopNest


def make_copy_loops(source: KernelOperand, layout: Layout, address: int) -> CopyLoops:
    """The loops that copy an operand to a layout of the same shape in memory at an address. Raises
    UnsupportedKernelError if there are too many of them."""
    operands = {"source": source, "target": KernelOperand(address, layout, source.dtype)}
    places = [Placement(name, o.dtype, o.layout) for name, o in operands.items()]
    expressions = DomainExpressions(trace_copy(*places), operands, layout.shape)
    return CopyLoops(expressions, make_loop_nest(expressions.shape, expressions.all_refs()))


def make_split_copy_loops(source: KernelOperand, layout: Layout, address: int) -> list[CopyLoops]:
    """The same as several copies, one for each index of short axes that a loop nest has no room
    for."""
    try:
        return [make_copy_loops(source, layout, address)]
    except UnsupportedKernelError:
        shorter = [(size, a) for a, size in enumerate(layout.shape[:-1]) if size > 1]
        if len(shorter) <= MAX_OUTER_AXES or min(shorter)[0] > _MAX_SPLIT:
            raise
    size, axis = min(shorter)
    return [
        copy
        for i in range(size)
        for copy in make_split_copy_loops(
            replace(source, layout=_fix_index(source.layout, axis, i)),
            _fix_index(layout, axis, i),
            address,
        )
    ]


def _fix_index(layout: Layout, axis: int, index: int) -> Layout:
    """The part of a layout at one index of an axis."""
    shape = tuple(1 if a == axis else s for a, s in enumerate(layout.shape))
    return replace(layout, shape=shape, offset=layout.offset + index * layout.strides[axis])


def make_copy_tasks(copy: CopyLoops) -> KernelTasks:
    """The tasks that run a copy."""
    loop_nest, e = copy.loop_nest, copy.expressions
    row_kernel = compile_row_kernel(loop_nest, RowKernelBody(e.outputs, (), e.refs), 1)
    if loop_nest.row_count > 1:
        chunks = [
            (a, b, 0, loop_nest.run)
            for a, b in split_range(loop_nest.row_count, 4 * thread_count())
        ]
    else:
        chunks = [(0, 1, a, b) for a, b in split_range(loop_nest.run, 1 + loop_nest.run // 16384)]
    return KernelTasks(
        [[(row_kernel.function, row_kernel.args, *c, 0) for c in chunks]], [row_kernel]
    )
