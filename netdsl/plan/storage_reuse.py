"""Storage reuse: which allocations a plan needs, for how long, and which results take over one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod

from netdsl.ops import OPS
from netdsl.plan.arena_allocator import Allocation
from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout_assignment import LayoutAssignment
from netdsl.types import ITEMSIZE, Node


def reuse_storage(
    flow: DataflowGraph,
    order: Sequence[Kernel],
    assignment: LayoutAssignment,
    states: Mapping[str, str],
    in_place_products: Collection[str],
) -> None:
    """Gives results the storage of an operand that nothing reads afterwards; for products, only
    those of `in_place_products`."""
    last = _find_last_reads(flow, order, assignment)
    for i, kernel in enumerate(order):
        if kernel.kind == "collective":
            _reduce_in_place(flow, kernel, assignment, states, last, i)
        if not _can_run_in_place(flow, kernel, in_place_products) or kernel.parts:
            continue
        if any(flow.op_kind(n) == "reduce" for n in kernel.nodes):
            continue
        taken_names: set[str] = set()
        for out in kernel.outputs:
            if assignment.storage_owners.get(out) != out or out in states:
                continue
            for name in _find_dying_operands(flow, kernel, assignment, last, i):
                has_same_layout = assignment.layouts[name] == assignment.layouts[out]
                has_same_dtype = flow.nodes[name].type.dtype == flow.nodes[out].type.dtype
                has_same_padding = assignment.paddings.get(name) == assignment.paddings.get(out)
                if (
                    has_same_layout
                    and has_same_dtype
                    and has_same_padding
                    and name not in taken_names
                ):
                    taken_names.add(name)
                    assignment.storage_owners[out] = assignment.storage_owners[name]
                    last[assignment.storage_owners[out]] = max(
                        last[assignment.storage_owners[out]], last.get(out, i)
                    )
                    break


def _reduce_in_place(
    flow: DataflowGraph,
    kernel: Kernel,
    assignment: LayoutAssignment,
    states: Mapping[str, str],
    last: dict[str, int],
    now: int,
) -> None:
    """Gives each result of a collective the storage of its own operand, if that dies here."""
    for out in kernel.outputs:
        operand = flow.nodes[out].args[0]
        base = flow.base[operand]
        owner = assignment.storage_owners.get(base)
        is_own_storage = assignment.storage_owners.get(out) == out and out not in states
        if owner is None or not is_own_storage:
            continue
        has_same_place = (
            assignment.layouts[operand].has_same_elements(assignment.layouts[out])
            and flow.nodes[base].type.size == flow.nodes[out].type.size
            and assignment.paddings.get(base) == assignment.paddings.get(out)
        )
        is_temporary = OPS[flow.nodes[owner].op].kind != "leaf" and flow.nodes[owner].op != "concat"
        if has_same_place and is_temporary and last[owner] == now:
            last[owner] = max(now, last.get(out, now))
            assignment.storage_owners[out] = owner


def _can_run_in_place(
    flow: DataflowGraph, kernel: Kernel, in_place_products: Collection[str]
) -> bool:
    """Returns whether a kernel has finished reading an element when it overwrites it: a product
    with several results may compute some of them afterwards."""
    if kernel.kind == "anchor":
        return flow.nodes[kernel.name].op in in_place_products and len(kernel.outputs) == 1
    return kernel.kind == "map"


def _find_last_reads(
    flow: DataflowGraph, order: Sequence[Kernel], assignment: LayoutAssignment
) -> dict[str, int]:
    """Returns when each storage is last used; outputs live until the end."""
    last: dict[str, int] = {}
    for i, k in enumerate(order):
        for name in (*k.inputs, *k.outputs):
            owner = assignment.storage_owners[flow.base[name]]
            last[owner] = i
    for name in flow.graph.outputs.values():
        last[assignment.storage_owners[flow.base[name]]] = len(order)
    return last


def _find_dying_operands(
    flow: DataflowGraph,
    kernel: Kernel,
    assignment: LayoutAssignment,
    last: Mapping[str, int],
    now: int,
) -> list[str]:
    """Returns the operands read only elementwise whose storage has no other use and dies here."""
    is_one_to_one: dict[str, bool] = {}
    for n in kernel.nodes:
        for e in flow.edges.get(n, ()):
            is_one_to_one[e.base] = is_one_to_one.get(e.base, True) and e.is_one_to_one
    stored = {flow.base[i] for i in kernel.inputs}
    return [
        b
        for b in sorted(stored, key=flow.position.__getitem__)
        if is_one_to_one[b]
        and OPS[flow.nodes[b].op].kind != "leaf"
        and b not in assignment.enclosing_concats
        and flow.nodes[b].op != "concat"
        and flow.nodes[assignment.storage_owners[b]].op not in ("concat", "state")
        and last[assignment.storage_owners[b]] == now
    ]


def make_allocations(
    flow: DataflowGraph, order: Sequence[Kernel], assignment: LayoutAssignment
) -> list[Allocation]:
    birth: dict[str, int] = {}
    death = _find_last_reads(flow, order, assignment)
    size: dict[str, int] = {}
    for i, k in enumerate(order):
        for name in k.outputs:
            owner = assignment.storage_owners[flow.base[name]]
            if OPS[flow.nodes[owner].op].kind != "leaf":
                birth.setdefault(owner, i)
                size[owner] = compute_allocated_bytes(flow.nodes[owner], assignment, owner)
    return [Allocation(name, size[name], birth[name], death[name]) for name in birth]


def compute_allocated_bytes(node: Node, assignment: LayoutAssignment, name: str) -> int:
    padding = assignment.paddings.get(name)
    padded_shape = padding.padded_shape(node.type.shape) if padding else node.type.shape
    return prod(padded_shape) * ITEMSIZE[node.type.dtype]
