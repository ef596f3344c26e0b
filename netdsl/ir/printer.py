"""The IR as text: one line per node, in the language's syntax; netdsl.ir.text_parser reads it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from netdsl.ops import OPS
from netdsl.parameter_types import accepts_words
from netdsl.types import Graph, Node, dims

NAME_PATTERN = r"[^\W\d][\w.~]*"
"""Matches a name that needs no quotes."""
LITERALS = {"yes": True, "no": False, "none": None, "inf": float("inf"), "nan": float("nan")}
"""Values that look like names."""
_BARE_NAME = re.compile(NAME_PATTERN)


def to_text(graph: Graph) -> str:
    """Formats the whole graph, readable and diffable; the golden files of the passes use this form.

    An operand that is a constant is written as its value; its name appears once, on its own line.
    """
    consts = label_constants(graph)
    lines = [f"graph {format_name(graph.name)} {{"]
    lines += [f"  {format_node(n, consts)}" for n in graph.nodes.values()]
    for word, roots in (("output", graph.outputs), ("update", graph.updates)):
        lines += [
            f"  {word} {format_name(k)}: {_format_operand(v, consts)}" for k, v in roots.items()
        ]
    return "\n".join([*lines, "}"]) + "\n"


def label_constants(graph: Graph) -> dict[str, str]:
    """Returns the label by which each constant is written as an operand: its value, followed by a
    number if an earlier constant has the same value."""
    labels, counts = {}, Counter[str]()
    for node in graph.find_by_op("const"):
        value = format_literal(node.attrs["value"])
        counts[value] += 1
        labels[node.name] = format_constant_label(value, counts[value])
    return labels


def format_constant_label(value: str, count: int) -> str:
    """Returns the label of the `count`-th constant with a value."""
    return value if count == 1 else f"{value}~{count}"


def format_node(node: Node, consts: Mapping[str, str] | None = None) -> str:
    """Formats `name = op(operands, attribute=value) type`, with attributes only if they differ from
    the default, and with `@` and the region if it has one."""
    name, region = format_name(node.name), f"  @{format_name(node.region)}" if node.region else ""
    if node.op == "input":
        return f"input {name}: {node.type}{region}"
    if node.op == "state":
        law, scale = node.attrs["init"]
        learnt_suffix = "" if node.attrs["trainable"] else " not learnt"
        init = f"{format_name(law)}({format_literal(scale)})"
        return f"state {name}: {node.type} {init}{learnt_suffix}{region}"
    if node.op == "const":
        return f"const {name} = {format_literal(node.attrs['value'])}  {node.type}{region}"
    arguments = [*(_format_operand(a, consts or {}) for a in node.args), *_format_attributes(node)]
    return f"{name} = {node.op}({', '.join(arguments)})  {node.type}{region}"


def _format_operand(name: str, consts: Mapping[str, str]) -> str:
    return consts[name] if name in consts else format_name(name)


def format_name(name: str) -> str:
    """Formats a name, quoted if it would otherwise be read as something else."""
    is_bare = _BARE_NAME.fullmatch(name) and name.partition("~")[0] not in LITERALS
    return name if is_bare else json.dumps(name)


def _format_attributes(node: Node) -> list[str]:
    params = {p.name: p for p in OPS[node.op].attrs} if node.op in OPS else {}
    found = []
    for key, value in node.attrs.items():
        param = params.get(key)
        if param is None or value != param.default:
            is_word = isinstance(value, str) and param is not None and accepts_words(param.type)
            found.append(f"{key}={value if is_word else format_literal(value)}")
    return found


def format_literal(value: Any) -> str:
    """Formats a value so that it is read back exactly."""
    if isinstance(value, tuple):
        is_pair = len(value) == 2 and all(type(v) is int and v >= 0 for v in value)
        return dims(value) if is_pair else "[" + ", ".join(map(format_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return float.__repr__(value)
    return json.dumps(value) if isinstance(value, str) else str(value)
