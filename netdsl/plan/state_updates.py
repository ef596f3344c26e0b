"""State updates: in place where that is safe, else stored separately and copied at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from netdsl.ir.builder import Builder
from netdsl.ir.views import strip_views
from netdsl.ops import OPS
from netdsl.passes.rewrite import rebuild_graph
from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.kernel import Kernel
from netdsl.types import Graph, Node


def insert_copies(graph: Graph) -> Graph:
    """Inserts a copy of each output that is an updated state, and of each input, state or constant
    that becomes the new value of a state."""
    updated = {*graph.updates.values()}
    outputs = {v for v in graph.outputs.values() if strip_views(graph, v).name in graph.updates}
    copied = {v for v in updated if OPS[strip_views(graph, v).op].kind == "leaf"} | outputs
    if not copied:
        return graph
    b = Builder(graph)
    new_nodes = {name: b.nodes[name] for name in graph.nodes}
    for name in (n for n in graph.nodes if n in copied):
        with b.at(graph[name].span, name):
            new_nodes[name] = b.copy(b.nodes[name])
    return rebuild_graph(b, graph, new_nodes, prune=False)


def find_in_place_updates(flow: DataflowGraph, kernels: Sequence[Kernel]) -> dict[str, str]:
    """Returns the states that the kernel computing their update may overwrite: the value is not an
    output or the update of another state, and its kernel reads the state elementwise."""
    graph = flow.graph
    parts = [(k, part) for k in kernels for part in (k.parts or (k,))]
    writer = {o: (k, part) for k, part in parts for o in part.outputs}
    readers: dict[str, list[tuple[Kernel, Kernel]]] = {state: [] for state in graph.updates}
    for k, part in parts:
        for base in {flow.base[i] for i in part.inputs} & readers.keys():
            readers[base].append((k, part))
    times = Counter(graph.updates.values())
    given_out = {flow.base[v] for v in graph.outputs.values()}
    found = {}
    for state, value in graph.updates.items():
        if value not in writer or value in given_out or times[value] > 1:
            continue
        launch, own = writer[value]
        same_launch_readers = [part for k, part in readers[state] if k is launch]
        can_overwrite = own.kind != "copy" and flow.nodes[value].op != "concat"
        can_overwrite = can_overwrite and not has_rereads(flow.nodes[n] for n in own.nodes)
        if can_overwrite and all(
            part is own and _reads_elementwise(flow, part, state) for part in same_launch_readers
        ):
            found[state] = value
    return found


def has_rereads(nodes: Iterable[Node]) -> bool:
    """Returns whether a kernel of these nodes may reread an element after others have been written:
    moments are taken around the first value."""
    return any(n.op == "moments" for n in nodes)


def _reads_elementwise(flow: DataflowGraph, kernel: Kernel, state: str) -> bool:
    """Returns whether a kernel reads a state only elementwise."""
    nodes = (n for n in flow.readers[state] if n in kernel.nodes)
    return all(e.is_one_to_one for n in nodes for e in flow.edges[n] if e.base == state)


def make_update_copies(flow: DataflowGraph, in_place_updates: Mapping[str, str]) -> list[Kernel]:
    """Returns the copies of updated values to their states, which run after everything else."""
    return [
        Kernel(f"keep {state}", "copy", (), (value,), (state,))
        for state, value in flow.graph.updates.items()
        if state not in in_place_updates
    ]
