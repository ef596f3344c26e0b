"""A kernel: the set of nodes that one launch computes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from netdsl.types import Graph

KernelKind = Literal["map", "anchor", "opaque", "copy"]


@dataclass(frozen=True)
class Kernel:
    """`map` runs over a domain element by element (with reductions of it), `anchor` is a product
    with what happens to its tiles, `opaque` one node of its own, `copy` moves a value.

    `nodes` stand in order, those that another kernel computes too among them; `inputs` are what
    they read from memory, each under the name of the view that is read, `outputs` what is written.
    A launch over several domains has a kernel for each in `parts`.
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
    """The map that computes some outputs of a kernel; what is `stored` it reads from memory."""
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
