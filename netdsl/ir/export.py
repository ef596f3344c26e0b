"""Graph export for other programs: as a networkx copy, as JSON, GraphML and Graphviz's dot."""

from __future__ import annotations

import json
from typing import Any

import networkx as nx

from netdsl.text_escaping import escape_line, escape_text
from netdsl.types import Graph, Node, dims


def to_networkx(graph: Graph) -> nx.DiGraph:
    """Returns an independent copy. Nodes are in executable order, each with its `node`. An edge
    leads from an operand to its reader, and its `operands` lists the operand positions, since
    `mul(x, x)` has only one edge. `name`, `outputs` and `updates` are graph attributes."""
    dag = nx.DiGraph(name=graph.name, outputs=dict(graph.outputs), updates=dict(graph.updates))
    dag.add_nodes_from((name, {"node": node}) for name, node in graph.nodes.items())
    for node in graph.nodes.values():
        for arg, positions in _find_operand_positions(node).items():
            dag.add_edge(arg, node.name, operands=positions)
    return dag


def _find_operand_positions(node: Node) -> dict[str, tuple[int, ...]]:
    """Maps each value that a node reads to its operand positions."""
    positions: dict[str, tuple[int, ...]] = {}
    for position, arg in enumerate(node.args):
        positions[arg] = (*positions.get(arg, ()), position)
    return positions


def to_json(graph: Graph) -> str:
    """Formats a graph in networkx's node-link form on one line; `netdsl.ir.json_reader` reads it
    back."""
    dag = to_networkx(graph)
    for data in dag.nodes.values():
        data |= _node_to_json(data.pop("node"))
    return json.dumps(nx.node_link_data(dag, edges="edges"), allow_nan=False)


def _node_to_json(node: Node) -> dict[str, Any]:
    """Returns a node as a JSON object."""
    entry: dict[str, Any] = {
        "op": node.op,
        "shape": node.type.shape,
        "dtype": node.type.dtype,
        "attrs": dict(node.attrs),
    }
    if node.region:
        entry["region"] = node.region
    if node.span is not None:
        entry["place"] = escape_line(str(node.span))
    return entry


def to_graphml(graph: Graph) -> str:
    """Formats a graph as GraphML, whose attributes are numbers and strings; all others are written
    as JSON."""
    dag = to_networkx(graph)
    for key in ("outputs", "updates"):
        dag.graph[key] = json.dumps(dag.graph[key])
    for name, data in dag.nodes.items():
        plain = _node_to_json(data.pop("node"))
        plain |= {"shape": dims(plain["shape"]), "attrs": json.dumps(plain["attrs"])}
        data |= {"label": f"{name} = {plain['op']}", **plain}
    for *_, data in dag.edges(data=True):
        data["operands"] = ",".join(map(str, data["operands"]))
    return "\n".join(nx.generate_graphml(dag)) + "\n"


def to_dot(graph: Graph) -> str:
    """Formats a graph in the language of Graphviz: a box for each node with its operator and type,
    an edge for each operand. States and constants are drawn as ellipses."""
    lines = [f"digraph {_quote_dot(graph.name)} {{", "  node [shape=box];"]
    for node in graph.nodes.values():
        label = f"{node.name}\n{node.op}: {node.type}"
        shape = " shape=ellipse" if not node.args else ""
        lines.append(f"  {_quote_dot(node.name)} [label={_quote_dot(label)}{shape}];")
    for node in graph.nodes.values():
        reader = _quote_dot(node.name)
        lines += [f"  {_quote_dot(arg)} -> {reader};" for arg in dict.fromkeys(node.args)]
    return "\n".join([*lines, "}"]) + "\n"


def _quote_dot(text: str) -> str:
    """Text as a quoted string of Graphviz, with line ends as `\\n`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escape_text(escaped).replace("\n", "\\n") + '"'
