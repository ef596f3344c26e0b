"""Memory traffic: the bytes that kernels move to and from memory, by kind of kernel."""

from __future__ import annotations

from collections.abc import Iterable

from netdsl.ops import OPS
from netdsl.plan.kernel import Kernel
from netdsl.types import Graph


def count_moved_bytes(graph: Graph, kernel: Kernel) -> int:
    """Returns the bytes that one launch reads and writes. A value read through several views counts
    once, and a concatenation writes only what it copies."""
    parts: dict[str, int] = {}
    for name in kernel.inputs:
        part, size = _find_read_region(graph, name)
        parts[part] = max(parts.get(part, 0), size)
    read = sum(parts.values())
    is_concat = kernel.nodes and graph[kernel.nodes[-1]].op == "concat"
    return read + (read if is_concat else sum(graph[v].type.nbytes for v in kernel.outputs))


def _find_read_region(graph: Graph, name: str) -> tuple[str, int]:
    """Returns the value, or the slice of one, that an operand views, and its bytes."""
    node = graph[name]
    size, part = node.type.nbytes, None
    while OPS[node.op].kind == "view":
        if node.op == "slice":
            part = part or node.name
        node = graph[node.args[0]]
        size = min(size, node.type.nbytes)
    return part or node.name, size


def find_kernel_label(graph: Graph, kernel: Kernel) -> str:
    """Returns a one-word label: the kernel's product or opaque operator, else map or reduce."""
    if kernel.parts:
        return kernel.name
    if kernel.kind == "anchor":
        return graph[kernel.name].op
    if kernel.kind == "map":
        return "reduce" if any(OPS[graph[n].op].kind == "reduce" for n in kernel.nodes) else "map"
    return "copy" if kernel.kind == "copy" else graph[kernel.nodes[-1]].op


def sum_by_kernel_label(graph: Graph, kernels: Iterable[Kernel]) -> dict[str, tuple[int, int]]:
    """Returns launches and bytes per kind of kernel, most bytes first."""
    table: dict[str, tuple[int, int]] = {}
    for k in kernels:
        count, total = table.get(find_kernel_label(graph, k), (0, 0))
        table[find_kernel_label(graph, k)] = count + 1, total + count_moved_bytes(graph, k)
    return dict(sorted(table.items(), key=lambda item: -item[1][1]))
