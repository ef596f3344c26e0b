"""The plan of a graph: kernels in their order, and where every value lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx

from netdsl.ir.collector import pause_collector
from netdsl.ops import OPS
from netdsl.plan.arrange import Arrangement, arrange
from netdsl.plan.dag import kernel_dag
from netdsl.plan.flow import Flow
from netdsl.plan.fusion import Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.offsets import pack, peak
from netdsl.plan.partition import partition
from netdsl.plan.placement import ARENA, Geometry, Placement
from netdsl.plan.schedule import schedule
from netdsl.plan.storage import allocated, reuse, storages
from netdsl.plan.updates import keeping, with_copies, written_over
from netdsl.types import ITEMSIZE, Graph


@dataclass(frozen=True)
class Piece:
    """A branch of a concatenation that has to be copied to its place."""

    source: str
    target: Placement


@dataclass(frozen=True)
class Plan:
    """`placements` holds every value that a kernel reads or writes, views under their own names.

    `arena` and `peak` are bytes: what is allocated, and the most that is in use at one time in
    this order. `buffers` are the bytes of what lies outside: inputs, states and constants. States
    that are `settled` change only before a refresh: what is made of them alone is made there.
    """

    flow: Flow
    kernels: tuple[Kernel, ...]
    placements: Mapping[str, Placement]
    buffers: Mapping[str, int]
    arena: int
    peak: int
    settled: frozenset[str] = frozenset()

    @property
    def graph(self) -> Graph:
        return self.flow.graph

    @cached_property
    def dag(self) -> nx.DiGraph:
        """The kernels by their numbers, with edges to those that read what they write."""
        return kernel_dag(self.flow, self.kernels)

    def pieces(self, concat: str) -> tuple[Piece, ...]:
        """What joining tensors has to copy: the branches that lie elsewhere."""
        whole = self.graph[concat]
        place, axis = self.placements[whole.name], whole.attrs["axis"]
        found, at = [], place.layout.offset
        for arg in whole.args:
            kind = self.graph[arg].type
            layout = Layout(kind.shape, place.layout.strides, at)
            at += kind.shape[axis] * place.layout.strides[axis]
            there = self.placements[arg]
            if (there.buffer, there.layout) != (place.buffer, layout):
                geometry = place.geometry and Geometry(place.geometry.halo, kind.shape[-1])
                found.append(Piece(arg, Placement(place.buffer, kind.dtype, layout, geometry)))
        return tuple(found)


@pause_collector()
def make_plan(graph: Graph, fusion: Fusion) -> Plan:
    """Partition, order and memory of a graph for a backend that offers `fusion`."""
    flow = Flow(with_copies(graph))
    kernels = partition(flow, fusion)
    direct = written_over(flow, kernels)
    order, waiting = schedule(flow, kernels, direct)
    direct = {s: v for s, v in direct.items() if s not in waiting}
    arrangement = arrange(flow, order, fusion)
    order = [_copying(flow, k, arrangement) for k in order]
    order = [k for k in order if k.inputs or not _joins(flow, k)]
    order += keeping(flow, direct)
    return _placed(flow, order, arrangement, direct, fusion)


def _joins(flow: Flow, kernel: Kernel) -> bool:
    return len(kernel.nodes) == 1 and flow.nodes[kernel.nodes[0]].op == "concat"


def _copying(flow: Flow, kernel: Kernel, arrangement: Arrangement) -> Kernel:
    """A concatenation reads only the branches that do not lie in it already."""
    if not _joins(flow, kernel):
        return kernel
    inside = arrangement.inside
    return replace(kernel, inputs=tuple(a for a in kernel.inputs if inside.get(a) != kernel.name))


def _placed(
    flow: Flow,
    order: Sequence[Kernel],
    found: Arrangement,
    direct: Mapping[str, str],
    fusion: Fusion,
) -> Plan:
    states = {value: state for state, value in direct.items()}
    for value, state in states.items():
        found.owner[value] = state
    reuse(flow, order, found, states, fusion.over)
    parts = storages(flow, order, found)
    offsets, arena = pack(parts, fusion.align)
    placements = {
        name: _placement(flow, found, offsets, name)
        for name in found.layouts
        if flow.base[name] in found.owner
    }
    buffers = {
        name: allocated(flow.nodes[name], found, name)
        for name in found.layouts
        if OPS[flow.nodes[name].op].kind == "leaf"
    }
    return Plan(flow, tuple(order), placements, buffers, arena, peak(parts))


def _placement(flow: Flow, found: Arrangement, offsets: Mapping[str, int], name: str) -> Placement:
    base = flow.base[name]
    owner = found.owner[base]
    layout, dtype = found.layouts[name], flow.nodes[name].type.dtype
    geometry = found.geometry.get(name)
    if OPS[flow.nodes[owner].op].kind == "leaf":
        return Placement(owner, dtype, layout, geometry)
    first = offsets[owner] // ITEMSIZE[dtype]
    moved = Layout(layout.shape, layout.strides, layout.offset + first)
    return Placement(ARENA, dtype, moved, geometry)
