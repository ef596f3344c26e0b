"""The IR as text: one line a node, in the words of the language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netdsl.ops import OPS
from netdsl.types import Graph, Node, dims


def to_text(graph: Graph) -> str:
    """The whole graph, readable and diffable; the golden files of the passes are made of it.

    Constants stand where they are read, not on lines of their own.
    """
    consts = consts_of(graph)
    lines = [f"graph {graph.name} {{"]
    lines += [f"  {line_of(n, consts)}" for n in graph.nodes.values() if n.name not in consts]
    lines += [f"  output {label}: {consts.get(v, v)}" for label, v in graph.outputs.items()]
    lines += [f"  update {state}: {consts.get(v, v)}" for state, v in graph.updates.items()]
    return "\n".join([*lines, "}"]) + "\n"


def consts_of(graph: Graph) -> dict[str, str]:
    """The constants of a graph as they are written where they are read."""
    return {n.name: _setting(n.attrs["value"]) for n in graph.of("const")}


def line_of(node: Node, consts: Mapping[str, str] | None = None) -> str:
    """`name = op(operands, attribute=value)  type`, attributes only where not the default; `@` and
    the region where there is one."""
    if node.op == "input":
        return f"input {node.name}: {node.type}"
    if node.op == "state":
        law, scale = node.attrs["init"]
        kept = "" if node.attrs["trainable"] else " not learnt"
        return f"state {node.name}: {node.type} {law}({scale:.6g}){kept}"
    known = consts or {}
    inside = [*(known.get(a, a) for a in node.args), *_settings(node)]
    region = f"  @{node.region}" if node.region else ""
    return f"{node.name} = {node.op}({', '.join(inside)})  {node.type}{region}"


def _settings(node: Node) -> list[str]:
    params = OPS[node.op].attrs if node.op in OPS else ()
    defaults = {p.name: p.default for p in params}
    return [f"{k}={_setting(v)}" for k, v in node.attrs.items() if v != defaults.get(k)]


def _setting(value: Any) -> str:
    if isinstance(value, tuple):
        pair = len(value) == 2 and all(isinstance(v, int) for v in value)
        return dims(value) if pair else "[" + ", ".join(map(_setting, value)) + "]"
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(value)
