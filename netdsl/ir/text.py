"""The IR as text: one line a node, in the words of the language."""

from __future__ import annotations

from typing import Any

from netdsl.ops import OPS
from netdsl.types import Graph, Node, dims


def to_text(graph: Graph) -> str:
    """The whole graph, readable and diffable; the golden files of the passes are made of it."""
    lines = [f"graph {graph.name} {{"]
    lines += [f"  {line_of(node)}" for node in graph.nodes.values()]
    lines += [f"  output {label}: {name}" for label, name in graph.outputs.items()]
    lines += [f"  update {state}: {name}" for state, name in graph.updates.items()]
    return "\n".join([*lines, "}"]) + "\n"


def line_of(node: Node) -> str:
    """`name = op(operands, attribute=value)  type`, attributes only where not the default."""
    if node.op in ("input", "state"):
        how = ""
        if node.op == "state":
            law, scale = node.attrs["init"]
            how = f" {law}" if law in ("zeros", "ones") else f" {law}({scale:.6g})"
            how += "" if node.attrs["trainable"] else " frozen"
        return f"{node.op} {node.name}: {node.type}{how}"
    inside = [*node.args, *_settings(node)]
    return f"{node.name} = {node.op}({', '.join(inside)})  {node.type}"


def _settings(node: Node) -> list[str]:
    defaults = {p.name: p.default for p in OPS[node.op].attrs}
    return [
        f"{k}={_setting(v)}"
        for k, v in node.attrs.items()
        if v != defaults.get(k) and not (node.op == "const" and k == "dtype")
    ]


def _setting(value: Any) -> str:
    if isinstance(value, tuple):
        pair = len(value) == 2 and all(isinstance(v, int) for v in value)
        return dims(value) if pair else "[" + ", ".join(map(_setting, value)) + "]"
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(value)
