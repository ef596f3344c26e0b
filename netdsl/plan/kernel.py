"""A kernel: the set of nodes that one launch computes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from netdsl.types import Graph

KernelKind = Literal["map", "anchor", "opaque", "copy", "collective"]


@dataclass(frozen=True)
class Kernel:
    """`map` iterates over a domain elementwise (with reductions over it), `anchor` is a product
    with the epilogue on its tiles, `opaque` is a single node, `copy` moves a value, `collective`
    reduces the values of a bucket over all ranks.

    `nodes` are in graph order and may include nodes that other kernels also compute. `inputs` are
    the values that they read from memory, each under the name of the view that is read; `outputs`
    are the values written. A launch over several domains has a kernel for each in `parts`.
    """

    name: str
    kind: KernelKind
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[Kernel, ...] = ()


def extract_part(
    graph: Graph, kernel: Kernel, outputs: Sequence[str], stored: Collection[str]
) -> Kernel:
    """Returns the map that computes some outputs of a kernel and reads the `stored` values from
    memory."""
    worklist, nodes, inputs = list(outputs), set[str](), set[str]()
    while worklist:
        name = worklist.pop()
        if name in stored or name not in kernel.nodes:
            inputs.add(name)
        elif name not in nodes:
            nodes.add(name)
            worklist += graph[name].args
    ordered_nodes = tuple(n for n in kernel.nodes if n in nodes)
    return Kernel(outputs[-1], "map", ordered_nodes, tuple(sorted(inputs)), tuple(outputs))
