"""The dependency graph of kernels: which kernel reads what another one writes."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.kernel import Kernel


def build_kernel_dag(flow: DataflowGraph, kernels: Sequence[Kernel]) -> nx.DiGraph:
    """Returns the quotient of the IR by kernels: a node per kernel, its number, with the `kernel`,
    and an edge to each kernel that reads what it writes. It is built from what kernels write and
    read, since several of them may compute one node of the IR. A concatenation whose branches are
    written in place is produced by the kernels that write these."""
    dag = nx.DiGraph()
    dag.add_nodes_from((i, {"kernel": k}) for i, k in enumerate(kernels))
    # readers of a state in a step do not depend on the copy to it at the end of the step
    writer = {o: i for i, k in enumerate(kernels) if k.nodes for o in k.outputs}
    writers: dict[str, set[int]] = {}
    for name, node in flow.nodes.items():
        own = {writer[name]} if name in writer else set()
        if node.op == "concat":
            own = own.union(*(writers[flow.base[a]] for a in node.args))
        writers[name] = own
    for i, kernel in enumerate(kernels):
        for base in {flow.base[a] for a in kernel.inputs}:
            dag.add_edges_from((j, i) for j in writers[base])
    return dag
