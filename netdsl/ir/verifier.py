"""The verifier: checks the invariants of every graph, before and after every pass."""

from __future__ import annotations

import networkx as nx

from netdsl.errors import NetError, internal_error
from netdsl.ir.printer import format_node
from netdsl.ops import OPS
from netdsl.types import Graph, Node, TensorType


def verify_graph(graph: Graph) -> Graph:
    """Returns `graph` itself if it is valid. Raises AssertionError with the IR around the fault.

    Every operator is known; every operand precedes its reader (so there is no cycle), and the edges
    of the dag lead from operands to their readers; every type is what the operator's rule infers;
    an update has its state's type, and a state has at most one update.
    """
    for name, node in graph.dag.nodes(data="node"):
        if node is None:
            readers = ", ".join(graph.dag.successors(name)) or "nothing"
            raise internal_error(f"{readers} reads {name}, which is not a node")
    types: dict[str, TensorType] = {}
    for name, node in graph.nodes.items():
        problem = _find_fault(graph.dag, name, node, types)
        if problem:
            raise internal_error(f"{problem}\n{format_context(graph, name)}")
        types[name] = node.type
    _verify_roots(graph)
    return graph


def _find_fault(dag: nx.DiGraph, name: str, node: Node, types: dict[str, TensorType]) -> str | None:
    """Returns what is wrong with a node, given the types of all nodes before it."""
    if node.name != name:
        return f"node {node.name} is filed as {name}"
    if node.op not in OPS:
        return f"there is no operator {node.op}"
    missing = [a for a in node.args if a not in types]
    if missing:
        return f"{name} reads {', '.join(missing)} before it is computed"
    if set(dag.predecessors(name)) != set(node.args):
        return f"the edges that lead to {name} are not those of its operands"
    try:
        inferred = OPS[node.op].shape(*(types[a] for a in node.args), **node.attrs)
    except NetError as e:
        return e.message
    if inferred != node.type:
        return f"{name} is declared {node.type}, but its operator gives {inferred}"
    return None


def _verify_roots(graph: Graph) -> None:
    for label, name in graph.outputs.items():
        if name not in graph.nodes:
            raise internal_error(f"output {label} is {name}, which no node computes")
    for state, name in graph.updates.items():
        if state not in graph.nodes or graph[state].op != "state":
            raise internal_error(f"{state} is updated but is not a state")
        if name not in graph.nodes or graph[name].type != graph[state].type:
            raise internal_error(f"the update of {state} does not have its type")


def format_context(graph: Graph, name: str, radius: int = 3) -> str:
    """Formats a few lines of IR with the node in the middle marked."""
    names = list(graph.nodes)
    index = names.index(name)
    nearby_names = names[max(0, index - radius) : index + radius + 1]
    return "\n".join(("> " if n == name else "  ") + format_node(graph[n]) for n in nearby_names)
