"""Storage: which allocations a plan needs, for how long, and which results take over one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod

from netdsl.ops import OPS
from netdsl.plan.arrange import Arrangement
from netdsl.plan.flow import Flow
from netdsl.plan.kernel import Kernel
from netdsl.plan.offsets import Storage
from netdsl.types import ITEMSIZE, Node


def reuse(
    flow: Flow,
    order: Sequence[Kernel],
    found: Arrangement,
    states: Mapping[str, str],
    over: Collection[str],
) -> None:
    """Gives results the storage of an operand that nobody reads afterwards; of products, those of
    `over`."""
    last = _last_reads(flow, order, found)
    for i, kernel in enumerate(order):
        if not _in_place(flow, kernel, over) or kernel.parts:
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


def _in_place(flow: Flow, kernel: Kernel, over: Collection[str]) -> bool:
    """Whether a kernel is done with an element when it writes the one in its place: a product with
    several results may compute some of them afterwards."""
    if kernel.kind == "anchor":
        return flow.nodes[kernel.name].op in over and len(kernel.outputs) == 1
    return kernel.kind == "map"


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


def storages(flow: Flow, order: Sequence[Kernel], found: Arrangement) -> list[Storage]:
    birth: dict[str, int] = {}
    death = _last_reads(flow, order, found)
    size: dict[str, int] = {}
    for i, k in enumerate(order):
        for name in k.outputs:
            owner = found.owner[flow.base[name]]
            if OPS[flow.nodes[owner].op].kind != "leaf":
                birth.setdefault(owner, i)
                size[owner] = allocated(flow.nodes[owner], found, owner)
    return [Storage(name, size[name], birth[name], death[name]) for name in birth]


def allocated(node: Node, found: Arrangement, name: str) -> int:
    geometry = found.geometry.get(name)
    extents = geometry.extents(node.type.shape) if geometry else node.type.shape
    return prod(extents) * ITEMSIZE[node.type.dtype]
