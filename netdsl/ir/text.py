"""The IR as text: one line a node, in the words of the language; netdsl.ir.parse reads it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from netdsl.ops import OPS
from netdsl.parameter_types import Choice
from netdsl.types import Graph, Node, dims

NAME = r"[^\W\d][\w.~]*"
"""A name that needs no quotes."""
WORDS = {"yes": True, "no": False, "none": None, "inf": float("inf"), "nan": float("nan")}
"""Values that look like names."""
_PLAIN = re.compile(NAME)


def to_text(graph: Graph) -> str:
    """The whole graph, readable and diffable; the golden files of the passes are made of it.

    Where a constant is read, its value stands; what it is called is said once, on its own line.
    """
    consts = consts_of(graph)
    lines = [f"graph {name_text(graph.name)} {{"]
    lines += [f"  {line_of(n, consts)}" for n in graph.nodes.values()]
    for word, roots in (("output", graph.outputs), ("update", graph.updates)):
        lines += [f"  {word} {name_text(k)}: {_read(v, consts)}" for k, v in roots.items()]
    return "\n".join([*lines, "}"]) + "\n"


def consts_of(graph: Graph) -> dict[str, str]:
    """The constants of a graph as they are written where they are read: by their values, with a
    number behind those of a value that others have too."""
    found, seen = {}, Counter[str]()
    for node in graph.find_by_op("const"):
        value = value_text(node.attrs["value"])
        seen[value] += 1
        found[node.name] = numbered(value, seen[value])
    return found


def numbered(value: str, count: int) -> str:
    """What the `count`-th constant of a value is written as."""
    return value if count == 1 else f"{value}~{count}"


def line_of(node: Node, consts: Mapping[str, str] | None = None) -> str:
    """`name = op(operands, attribute=value)  type`, attributes only where not the default; `@` and
    the region where there is one."""
    name, region = name_text(node.name), f"  @{name_text(node.region)}" if node.region else ""
    if node.op == "input":
        return f"input {name}: {node.type}{region}"
    if node.op == "state":
        law, scale = node.attrs["init"]
        kept = "" if node.attrs["trainable"] else " not learnt"
        return f"state {name}: {node.type} {name_text(law)}({value_text(scale)}){kept}{region}"
    if node.op == "const":
        return f"const {name} = {value_text(node.attrs['value'])}  {node.type}{region}"
    inside = [*(_read(a, consts or {}) for a in node.args), *_settings(node)]
    return f"{name} = {node.op}({', '.join(inside)})  {node.type}{region}"


def _read(name: str, consts: Mapping[str, str]) -> str:
    return consts[name] if name in consts else name_text(name)


def name_text(name: str) -> str:
    """A name, in quotes where it would be read as something else."""
    plain = _PLAIN.fullmatch(name) and name.partition("~")[0] not in WORDS
    return name if plain else json.dumps(name)


def _settings(node: Node) -> list[str]:
    params = {p.name: p for p in OPS[node.op].attrs} if node.op in OPS else {}
    found = []
    for key, value in node.attrs.items():
        param = params.get(key)
        if param is None or value != param.default:
            chosen = param is not None and isinstance(param.type, Choice)
            found.append(f"{key}={value if chosen else value_text(value)}")
    return found


def value_text(value: Any) -> str:
    """A value so that it is read back as the very same."""
    if isinstance(value, tuple):
        pair = len(value) == 2 and all(type(v) is int and v >= 0 for v in value)
        return dims(value) if pair else "[" + ", ".join(map(value_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return float.__repr__(value)
    return json.dumps(value) if isinstance(value, str) else str(value)
