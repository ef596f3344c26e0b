"""The graph of kernels: which one needs what another writes."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.kernel import Kernel


def build_kernel_dag(flow: DataflowGraph, kernels: Sequence[Kernel]) -> nx.DiGraph:
    """The quotient of the IR by kernels: a node for each, its number, with the `kernel`, and an
    edge to all that read what it writes. It is made of what kernels write and read, as one node of
    the IR may be computed in several of them. A concatenation that lies where its branches are
    written comes from the kernels that write these.
    """
    dag = nx.DiGraph()
    dag.add_nodes_from((i, {"kernel": k}) for i, k in enumerate(kernels))
    # a copy to a state at the end of a step is not what reads the state in it
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
