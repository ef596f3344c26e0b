"""A graph for other programs: as a networkx graph of one's own, as JSON and as GraphML."""

from __future__ import annotations

import json
from typing import Any

import networkx as nx

from netdsl.text_escaping import escape_line
from netdsl.types import Graph, Node, dims


def digraph(graph: Graph) -> nx.DiGraph:
    """A copy to work with. Nodes stand in an order in which they can run, each with its `node`; an
    edge leads from an operand to its reader and says in `operands` which ones of it that is, as
    `mul(x, x)` has one edge. `name`, `outputs` and `updates` are the graph's own attributes."""
    found = nx.DiGraph(name=graph.name, outputs=dict(graph.outputs), updates=dict(graph.updates))
    found.add_nodes_from((name, {"node": node}) for name, node in graph.nodes.items())
    for node in graph.nodes.values():
        for arg, places in _operands(node).items():
            found.add_edge(arg, node.name, operands=places)
    return found


def _operands(node: Node) -> dict[str, tuple[int, ...]]:
    """What a node reads, and as which of its operands."""
    found: dict[str, tuple[int, ...]] = {}
    for place, arg in enumerate(node.args):
        found[arg] = (*found.get(arg, ()), place)
    return found


def to_json(graph: Graph) -> str:
    """networkx's node-link form on one line; `netdsl.ir.read` reads it back."""
    found = digraph(graph)
    for data in found.nodes.values():
        data |= _described(data.pop("node"))
    return json.dumps(nx.node_link_data(found, edges="edges"), allow_nan=False)


def _described(node: Node) -> dict[str, Any]:
    """A node in the words of JSON."""
    found: dict[str, Any] = {
        "op": node.op,
        "shape": node.type.shape,
        "dtype": node.type.dtype,
        "attrs": dict(node.attrs),
    }
    if node.region:
        found["region"] = node.region
    if node.span is not None:
        found["place"] = escape_line(str(node.span))
    return found


def to_graphml(graph: Graph) -> str:
    """GraphML, whose attributes are numbers and texts: those that are neither are JSON."""
    found = digraph(graph)
    for key in ("outputs", "updates"):
        found.graph[key] = json.dumps(found.graph[key])
    for name, data in found.nodes.items():
        plain = _described(data.pop("node"))
        plain |= {"shape": dims(plain["shape"]), "attrs": json.dumps(plain["attrs"])}
        data |= {"label": f"{name} = {plain['op']}", **plain}
    for *_, data in found.edges(data=True):
        data["operands"] = ",".join(map(str, data["operands"]))
    return "\n".join(nx.generate_graphml(found)) + "\n"
