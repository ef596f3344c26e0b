"""The plan of a graph: kernels in their order, and where every value lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netdsl.ir.builder import Builder
from netdsl.ops import OPS
from netdsl.passes.rewrite import rebuilt
from netdsl.plan.arrange import Arrangement, arrange
from netdsl.plan.flow import Flow
from netdsl.plan.fusion import Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout, contiguous
from netdsl.plan.offsets import Storage, pack, peak
from netdsl.plan.partition import partition
from netdsl.plan.placement import ARENA, Geometry, Placement
from netdsl.plan.schedule import schedule
from netdsl.types import ITEMSIZE, Graph, Node


@dataclass(frozen=True)
class Piece:
    """A branch of a concatenation that has to be copied to its place."""

    source: str
    target: Placement


@dataclass(frozen=True)
class Plan:
    """`placements` holds every value that a kernel reads or writes, views under their own names.

    `arena` and `peak` are bytes: what is allocated, and the most that is in use at one time in
    this order. `buffers` are the bytes of what lies outside: inputs, states and constants.
    """

    graph: Graph
    kernels: tuple[Kernel, ...]
    placements: Mapping[str, Placement]
    buffers: Mapping[str, int]
    arena: int
    peak: int

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
                geometry = place.geometry and Geometry(place.geometry.halo, kind.shape[3])
                found.append(Piece(arg, Placement(place.buffer, kind.dtype, layout, geometry)))
        return tuple(found)


def make_plan(graph: Graph, fusion: Fusion) -> Plan:
    """Partition, order and memory of a graph for a backend that offers `fusion`."""
    graph = _with_copies(graph)
    flow = Flow(graph)
    kernels = partition(graph, fusion)
    direct = _direct(flow, kernels)
    order, waiting = schedule(flow, kernels, direct)
    direct = {s: v for s, v in direct.items() if s not in waiting}
    arrangement = arrange(flow, order, fusion)
    order = [k for k in order if not _written_in_place(flow, k, arrangement)]
    order += _keeping(flow, direct)
    return _placed(flow, order, arrangement, direct, fusion)


def _with_copies(graph: Graph) -> Graph:
    """The graph with a copy of each input, state or constant that is given out while its state is
    written over, or that becomes a state itself."""
    updated = {*graph.updates.values()}
    outputs = {v for v in graph.outputs.values() if _leaf_of(graph, v) in graph.updates}
    copied = {v for v in updated if _leaf_of(graph, v) is not None} | outputs
    if not copied:
        return graph
    b = Builder(graph)
    new = {name: b.nodes[name] for name in graph.nodes}
    for name in copied:
        with b.at(graph[name].span, name):
            new[name] = b.copy(b.nodes[name])
    return rebuilt(b, graph, new)


def _leaf_of(graph: Graph, name: str) -> str | None:
    """The input, state or constant that a node is a view of, if it is one."""
    while OPS[graph[name].op].kind == "view":
        name = graph[name].args[0]
    return name if OPS[graph[name].op].kind == "leaf" else None


def _direct(flow: Flow, kernels: Sequence[Kernel]) -> dict[str, str]:
    """The states that may be written over by the kernel that computes their update: the value is
    computed for nothing else that is kept, and its kernel reads the state element by element."""
    graph = flow.graph
    writer = {o: part for k in kernels for part in (k.parts or (k,)) for o in part.outputs}
    launch = {o: k for k in kernels for o in k.outputs}
    values = list(graph.updates.values())
    shown = {flow.base[v] for v in graph.outputs.values()}
    found = {}
    for state, value in graph.updates.items():
        part = writer.get(value)
        if part is None or value in shown or values.count(value) > 1 or part.kind == "copy":
            continue
        readers = {n for n in launch[value].nodes if _reads(flow, n, state)}
        even = all(e.full for n in readers for e in flow.edges[n] if e.base == state)
        if readers <= set(part.nodes) and even and flow.nodes[value].op != "concat":
            found[state] = value
    return found


def _reads(flow: Flow, name: str, base: str) -> bool:
    return any(e.base == base for e in flow.edges.get(name, ()))


def _written_in_place(flow: Flow, kernel: Kernel, arrangement: Arrangement) -> bool:
    """Whether a concatenation has nothing left to do."""
    if len(kernel.nodes) != 1 or flow.nodes[kernel.nodes[0]].op != "concat":
        return False
    return all(arrangement.inside.get(a) == kernel.name for a in kernel.inputs)


def _keeping(flow: Flow, direct: Mapping[str, str]) -> list[Kernel]:
    """Copies of updated values to their states, when everything has been computed."""
    return [
        Kernel(f"keep {state}", "copy", (), (value,), (state,))
        for state, value in flow.graph.updates.items()
        if state not in direct
    ]


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
    _reuse(flow, order, found, states)
    parts = _storages(flow, order, found)
    offsets, arena = pack(parts, fusion.align)
    placements = {
        name: _placement(flow, found, offsets, name)
        for name in found.layouts
        if flow.base[name] in found.owner
    }
    buffers = {
        name: _bytes(flow.nodes[name], found, name)
        for name in found.layouts
        if OPS[flow.nodes[name].op].kind == "leaf"
    }
    return Plan(flow.graph, tuple(order), placements, buffers, arena, peak(parts))


def _reuse(
    flow: Flow, order: Sequence[Kernel], found: Arrangement, states: Mapping[str, str]
) -> None:
    """Gives results the storage of an operand that nobody reads afterwards."""
    last = _last_reads(flow, order, found)
    for i, kernel in enumerate(order):
        if kernel.kind not in ("map", "anchor") or kernel.parts:
            continue
        if any(flow.kind(n) == "reduce" for n in kernel.nodes):
            continue
        taken: set[str] = set()
        for out in kernel.outputs:
            if found.owner.get(out) != out or out in states:
                continue
            for name in _dying(flow, kernel, found, last, i):
                alike = found.layouts[name] == found.layouts[out]
                same = flow.nodes[name].type.dtype == flow.nodes[out].type.dtype
                zeros = found.geometry.get(name) == found.geometry.get(out)
                if alike and same and zeros and name not in taken:
                    taken.add(name)
                    found.owner[out] = found.owner[name]
                    last[found.owner[out]] = max(last[found.owner[out]], last.get(out, i))
                    break


def _last_reads(flow: Flow, order: Sequence[Kernel], found: Arrangement) -> dict[str, int]:
    """When each storage is read last; what is given out lives until the end."""
    last: dict[str, int] = {}
    for i, k in enumerate(order):
        for name in (*k.inputs, *k.outputs):
            owner = found.owner[flow.base[name]]
            last[owner] = i
    for name in flow.graph.outputs.values():
        last[found.owner[flow.base[name]]] = len(order)
    return last


def _dying(
    flow: Flow, kernel: Kernel, found: Arrangement, last: Mapping[str, int], now: int
) -> list[str]:
    """Operands, read element by element only, whose storage has no other use and dies here."""
    full: dict[str, bool] = {}
    for n in kernel.nodes:
        for e in flow.edges.get(n, ()):
            full[e.base] = full.get(e.base, True) and e.full
    stored = {flow.base[i] for i in kernel.inputs}
    return [
        b
        for b in sorted(stored, key=flow.place.__getitem__)
        if full[b]
        and OPS[flow.nodes[b].op].kind != "leaf"
        and b not in found.inside
        and flow.nodes[b].op != "concat"
        and flow.nodes[found.owner[b]].op not in ("concat", "state")
        and last[found.owner[b]] == now
    ]


def _storages(flow: Flow, order: Sequence[Kernel], found: Arrangement) -> list[Storage]:
    birth: dict[str, int] = {}
    death = _last_reads(flow, order, found)
    size: dict[str, int] = {}
    for i, k in enumerate(order):
        for name in k.outputs:
            owner = found.owner[flow.base[name]]
            if OPS[flow.nodes[owner].op].kind != "leaf":
                birth.setdefault(owner, i)
                size[owner] = _bytes(flow.nodes[owner], found, owner)
    return [Storage(name, size[name], birth[name], death[name]) for name in birth]


def _bytes(node: Node, found: Arrangement, name: str) -> int:
    geometry = found.geometry.get(name)
    extents = geometry.extents(node.type.shape) if geometry else node.type.shape
    return contiguous_size(extents) * ITEMSIZE[node.type.dtype]


def contiguous_size(extents: Sequence[int]) -> int:
    layout = contiguous(extents)
    return layout.shape[0] * layout.strides[0] if layout.shape else 1


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
