"""The tree of a net by the kernels of its plan: the layers of one kernel are one group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

import networkx as nx

from netdsl.insight.draw.tree import (
    Edge,
    Entry,
    Group,
    LayerBox,
    NetTree,
    assemble_tree,
    find_edges,
    make_entries,
)
from netdsl.insight.profiler import find_layer
from netdsl.language.network import Network
from netdsl.plan.memory_traffic import find_kernel_label
from netdsl.plan.plan import Plan


def make_kernel_tree(network: Network, plan: Plan) -> NetTree:
    """The tree of a net whose layers are grouped by the kernels of a plan for inference, within the
    blocks that contain all layers of a kernel. A layer that is computed in several kernels belongs
    to the last of them. An elementwise layer without a kernel was merged into the layer that it
    reads (folded into its weights, or without effect); other layers without one, such as a
    concatenation that is written in place, stay outside."""
    entries = make_entries(network)
    edges = find_edges(network, entries)
    numbers = _find_kernels(network, plan, entries, edges)
    titles = [find_kernel_label(plan.graph, kernel) for kernel in plan.kernels]
    return assemble_tree(network.name, _order(entries, edges, numbers, titles), edges)


def _find_kernels(
    network: Network, plan: Plan, entries: Sequence[Entry], edges: Sequence[Edge]
) -> dict[str, int]:
    """The number of the kernel of each box that has one, by key."""
    paths = frozenset(layer.path for layer in network.layers)
    by_path: dict[str, int] = {}
    for number, kernel in enumerate(plan.kernels):
        by_path |= {find_layer(paths, name): number for name in kernel.nodes}
    boxes = {box.key: box for entry in entries for box in entry.item.boxes}
    sources = {target: source for source, target in edges}
    found: dict[str, int] = {}
    for key, box in boxes.items():
        if box.path in by_path:
            found[key] = by_path[box.path]
        elif box.is_elementwise and sources[key] in found:
            found[key] = found[sources[key]]
    return found


def _order(
    entries: Sequence[Entry],
    edges: Sequence[Edge],
    numbers: Mapping[str, int],
    titles: Sequence[str],
) -> list[Entry]:
    """One entry for each kernel and each box without one, in an executable order, as close to that
    of the text as it can be. Kernels that could not run one after the other, because parts of a
    layer are in several, are taken apart."""
    at = {entry.item.key: entry for entry in entries}
    positions = {key: i for i, key in enumerate(at)}
    units = {key: f"k{numbers[key]}" if key in numbers else key for key in at}
    graph = nx.DiGraph((units[a], units[b]) for a, b in edges)
    graph.add_nodes_from(units.values())
    tangled = {u for part in nx.strongly_connected_components(graph) if len(part) > 1 for u in part}
    units = {key: key if unit in tangled else unit for key, unit in units.items()}
    quotient = nx.DiGraph()
    quotient.add_nodes_from(units.values())
    quotient.add_edges_from((units[a], units[b]) for a, b in edges if units[a] != units[b])
    members: dict[str, list[str]] = {}
    for key, unit in units.items():
        members.setdefault(unit, []).append(key)
    order = nx.lexicographical_topological_sort(
        quotient, key=lambda unit: max(positions[key] for key in members[unit])
    )
    ordered = []
    for unit in order:
        inside = [at[key] for key in members[unit]]
        if unit in at:
            ordered += inside
        else:
            number = int(unit[1:])
            ordered.append(_make_kernel_entry(unit, f"kernel {number}: {titles[number]}", inside))
    return ordered


def _make_kernel_entry(key: str, title: str, entries: Sequence[Entry]) -> Entry:
    boxes = [box for entry in entries for box in (entry.item,) if isinstance(box, LayerBox)]
    levels = zip(*(entry.groups for entry in entries), strict=False)
    common = tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
    return Entry(common, Group(f"kernel{key[1:]}", boxes[0].path, title, "kernel", tuple(boxes)))
