"""The plan of a graph: its kernels in order, and the memory location of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx

from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.ops import OPS
from netdsl.plan.arena_allocator import compute_peak_bytes, pack_allocations
from netdsl.plan.collectives import find_waits
from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.kernel_dag import build_kernel_dag
from netdsl.plan.layout import Layout
from netdsl.plan.layout_assignment import LayoutAssignment, assign_layouts
from netdsl.plan.partition import partition_kernels
from netdsl.plan.placement import ARENA, ImagePadding, Placement
from netdsl.plan.schedule import schedule_kernels
from netdsl.plan.state_updates import find_in_place_updates, insert_copies, make_update_copies
from netdsl.plan.storage_reuse import compute_allocated_bytes, make_allocations, reuse_storage
from netdsl.types import ITEMSIZE, Graph


@dataclass(frozen=True)
class ConcatCopy:
    """A branch of a concatenation that must be copied into it."""

    source: str
    target: Placement


@dataclass(frozen=True)
class Plan:
    """`placements` holds every value that a kernel reads or writes, views under their own names.

    `arena_bytes` is the size of the arena, `peak_bytes` the most bytes in use at one time in this
    order. `buffers` holds the sizes in bytes of what is outside the arena: inputs, states and
    constants. `frozen_states` change only before a refresh; what depends only on them is computed
    there.
    """

    flow: DataflowGraph
    kernels: tuple[Kernel, ...]
    placements: Mapping[str, Placement]
    buffers: Mapping[str, int]
    arena_bytes: int
    peak_bytes: int
    frozen_states: frozenset[str] = frozenset()

    @property
    def graph(self) -> Graph:
        return self.flow.graph

    @cached_property
    def dag(self) -> nx.DiGraph:
        """The kernels by number, with edges to those that read what they write."""
        return build_kernel_dag(self.flow, self.kernels)

    @cached_property
    def waits(self) -> Mapping[int, tuple[int, ...]]:
        """For each kernel by number the collectives whose results it is the first to read."""
        return find_waits(self.flow, self.kernels)

    def find_concat_copies(self, concat: str) -> tuple[ConcatCopy, ...]:
        """Returns what a concatenation must copy: the branches that are not written in place."""
        concat_node = self.graph[concat]
        placement, axis = self.placements[concat_node.name], concat_node.attrs["axis"]
        copies, at = [], placement.layout.offset
        for arg in concat_node.args:
            tensor_type = self.graph[arg].type
            layout = Layout(tensor_type.shape, placement.layout.strides, at)
            at += tensor_type.shape[axis] * placement.layout.strides[axis]
            branch_placement = self.placements[arg]
            if (branch_placement.buffer, branch_placement.layout) != (placement.buffer, layout):
                padding = placement.padding and ImagePadding(
                    placement.padding.halo, tensor_type.shape[-1]
                )
                copies.append(
                    ConcatCopy(arg, Placement(placement.buffer, tensor_type.dtype, layout, padding))
                )
        return tuple(copies)


@pause_garbage_collection()
def make_plan(graph: Graph, fusion: FusionOptions) -> Plan:
    """Partitions, schedules and places a graph for a backend that offers `fusion`."""
    flow = DataflowGraph(insert_copies(graph))
    kernels = partition_kernels(flow, fusion)
    in_place_updates = find_in_place_updates(flow, kernels)
    order, waiting = schedule_kernels(flow, kernels, in_place_updates)
    in_place_updates = {s: v for s, v in in_place_updates.items() if s not in waiting}
    assignment = assign_layouts(flow, order, fusion)
    order = [_drop_placed_branches(flow, k, assignment) for k in order]
    order = [k for k in order if k.inputs or not _is_concat(flow, k)]
    order += make_update_copies(flow, in_place_updates)
    return _place_values(flow, order, assignment, in_place_updates, fusion)


def _is_concat(flow: DataflowGraph, kernel: Kernel) -> bool:
    return len(kernel.nodes) == 1 and flow.nodes[kernel.nodes[0]].op == "concat"


def _drop_placed_branches(
    flow: DataflowGraph, kernel: Kernel, assignment: LayoutAssignment
) -> Kernel:
    """A concatenation reads only the branches that were not written in place."""
    if not _is_concat(flow, kernel):
        return kernel
    enclosing_concats = assignment.enclosing_concats
    return replace(
        kernel, inputs=tuple(a for a in kernel.inputs if enclosing_concats.get(a) != kernel.name)
    )


def _place_values(
    flow: DataflowGraph,
    order: Sequence[Kernel],
    assignment: LayoutAssignment,
    in_place_updates: Mapping[str, str],
    fusion: FusionOptions,
) -> Plan:
    states = {value: state for state, value in in_place_updates.items()}
    for value, state in states.items():
        assignment.storage_owners[value] = state
    reuse_storage(flow, order, assignment, states, fusion.in_place_products)
    allocations = make_allocations(flow, order, assignment)
    offsets, arena = pack_allocations(allocations, fusion.alignment)
    placements = {
        name: _make_placement(flow, assignment, offsets, name)
        for name in assignment.layouts
        if flow.base[name] in assignment.storage_owners
    }
    buffers = {
        name: compute_allocated_bytes(flow.nodes[name], assignment, name)
        for name in assignment.layouts
        if OPS[flow.nodes[name].op].kind == "leaf"
    }
    return Plan(flow, tuple(order), placements, buffers, arena, compute_peak_bytes(allocations))


def _make_placement(
    flow: DataflowGraph, assignment: LayoutAssignment, offsets: Mapping[str, int], name: str
) -> Placement:
    base = flow.base[name]
    owner = assignment.storage_owners[base]
    layout, dtype = assignment.layouts[name], flow.nodes[name].type.dtype
    padding = assignment.paddings.get(name)
    if OPS[flow.nodes[owner].op].kind == "leaf":
        return Placement(owner, dtype, layout, padding)
    first = offsets[owner] // ITEMSIZE[dtype]
    shifted_layout = Layout(layout.shape, layout.strides, layout.offset + first)
    return Placement(ARENA, dtype, shifted_layout, padding)
