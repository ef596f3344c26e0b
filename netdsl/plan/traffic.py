"""Traffic: the bytes that kernels move to and from memory, by what they do."""

from __future__ import annotations

from collections.abc import Iterable

from netdsl.ops import OPS
from netdsl.plan.kernel import Kernel
from netdsl.types import Graph


def moved(graph: Graph, kernel: Kernel) -> int:
    """Bytes that one launch reads and writes, every operand and result once."""
    return sum(graph[v].type.nbytes for v in (*_distinct(graph, kernel), *kernel.outputs))


def _distinct(graph: Graph, kernel: Kernel) -> list[str]:
    """The operands of a kernel, each part of a value once however it is viewed."""
    seen: dict[tuple[str, int], str] = {}
    for name in kernel.inputs:
        base, narrow = name, False
        while OPS[graph[base].op].kind == "view":
            narrow |= graph[base].op == "slice"
            base = graph[base].args[0]
        if narrow:
            seen[name, 0] = name
        else:
            seen[base, 0] = base
    return list(seen.values())


def kind_of(graph: Graph, kernel: Kernel) -> str:
    """What a kernel does, in a word: its product or opaque operator, else map or reduce."""
    if kernel.name == "updates":
        return "updates"
    if kernel.kind == "anchor":
        return graph[kernel.name].op
    if kernel.kind == "map":
        return "reduce" if any(OPS[graph[n].op].kind == "reduce" for n in kernel.nodes) else "map"
    return "copy" if kernel.kind == "copy" else graph[kernel.nodes[-1]].op


def by_kind(graph: Graph, kernels: Iterable[Kernel]) -> dict[str, tuple[int, int]]:
    """Launches and bytes of each kind of kernel, the most bytes first."""
    table: dict[str, tuple[int, int]] = {}
    for k in kernels:
        count, total = table.get(kind_of(graph, k), (0, 0))
        table[kind_of(graph, k)] = count + 1, total + moved(graph, k)
    return dict(sorted(table.items(), key=lambda item: -item[1][1]))
