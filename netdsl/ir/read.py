"""A graph read back from JSON, every word of it checked: the file may be anyone's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.errors import NetError, fail
from netdsl.ir.verify import verify
from netdsl.json_schema import (
    JsonArray,
    JsonInteger,
    JsonNumber,
    JsonObject,
    JsonString,
    Schema,
    SchemaError,
    read_json,
)
from netdsl.limits import MAX_AXES, MAX_TENSOR_SIZE
from netdsl.ops import OPS
from netdsl.ops.op import Op
from netdsl.parameter_types import AnyValue, Choice, TypeMismatch
from netdsl.signature import REQUIRED, Param
from netdsl.types import ITEMSIZE, Attrs, Graph, Node, TensorType
from netdsl.values import Symbol

MOST_CHARACTERS = 2**28
MOST_NODES = 500_000
MOST_OPERANDS = 10_000
LAWS = ("constant", "normal", "uniform")
"""What the first values of a state are drawn from."""


def read_graph(text: str | bytes, origin: str = "the text") -> Graph:
    """The graph that `netdsl compile --emit json` has written, verified. Raises NetError where the
    text is none: an unknown operator, attributes or operands that it does not take, types that
    are not those of its rule, an operand behind its reader."""
    try:
        if len(text) > MOST_CHARACTERS:
            raise SchemaError(f"it has over {MOST_CHARACTERS:,} characters")
        value = read_json(text)
        _GRAPH.check(value, "graph")
        return verify(_graph(value))
    except SchemaError as e:
        help = "`netdsl compile FILE --emit json` writes one"
        raise fail(f"{origin} is no graph: {e}", help=help) from None


def _graph(value: Mapping[str, Any]) -> Graph:
    if not value["directed"] or value["multigraph"]:
        raise SchemaError("its edges have no direction, or there are several from node to node")
    operands = _operands(value["edges"])
    nodes: dict[str, Node] = {}
    for entry in value["nodes"]:
        name = entry["id"]
        if name in nodes:
            raise SchemaError(f"two nodes are called `{name}`")
        nodes[name] = _node(entry, _in_order(name, operands.pop(name, {})), nodes)
    for name in operands:
        raise SchemaError(f"an edge leads to `{name}`, which is no node")
    about = value["graph"]
    _check_roots(about["outputs"], about["updates"], nodes)
    return Graph(nodes, about["outputs"], about["updates"], about["name"])


def _operands(edges: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, str]]:
    """What each node reads, by the place of the operand."""
    found: dict[str, dict[int, str]] = {}
    for edge in edges:
        args = found.setdefault(edge["target"], {})
        for place in edge["operands"]:
            if place in args:
                raise SchemaError(f"`{edge['target']}` has two operands {place}")
            args[place] = edge["source"]
    return found


def _in_order(name: str, args: Mapping[int, str]) -> tuple[str, ...]:
    if len(args) != max(args, default=-1) + 1:
        raise SchemaError(f"`{name}` lacks one of its first {max(args) + 1} operands")
    return tuple(args[place] for place in range(len(args)))


def _node(entry: Mapping[str, Any], args: tuple[str, ...], before: Mapping[str, Node]) -> Node:
    name, record = entry["id"], OPS.get(entry["op"])
    if record is None:
        raise SchemaError(f"no operator is called `{entry['op']}`")
    for arg in args:
        if arg not in before:
            raise SchemaError(f"`{name}` reads `{arg}`, which does not stand before it")
    takes = len(record.operands)
    if (len(args) < takes) if record.variadic else (len(args) != takes):
        raise SchemaError(f"`{record.name}` takes {takes} operands, `{name}` has {len(args)}")
    attrs = _attributes(record, name, entry["attrs"])
    try:
        kind = record.shape(*(before[a].type for a in args), **attrs)
    except NetError as e:
        raise SchemaError(f"`{name}`: {e.diagnostics[0].message}") from None
    if kind.size > MAX_TENSOR_SIZE:
        raise SchemaError(f"`{name}` has {kind.size:,} values, beyond any machine")
    declared = TensorType(tuple(entry["shape"]), entry["dtype"])
    if kind != declared:
        raise SchemaError(f"`{name}` is called {declared}, its operator gives {kind}")
    return Node(name, record.name, args, attrs, kind, region=entry.get("region", ""))


def _attributes(record: Op, name: str, given: Mapping[str, Any]) -> Attrs:
    found: dict[str, Any] = {}
    for param in record.attrs:
        place = f"{name}.{param.name}"
        if param.name in given:
            found[param.name] = _attribute(param, given[param.name], place)
        elif param.default is REQUIRED:
            raise SchemaError(f"there is no `{place}`")
        else:
            found[param.name] = param.default
    for extra in given.keys() - found.keys():
        raise SchemaError(f"`{record.name}` has no attribute `{extra}`")
    return Attrs(found)


def _attribute(param: Param, value: Any, place: str) -> Any:
    """An attribute's value as operators have it: tuples for lists."""
    if isinstance(param.type, AnyValue):
        FORMS[param.name].check(value, place)
        return _tuples(value)
    value = _tuples(value)
    if isinstance(value, str) and isinstance(param.type, Choice):
        value = Symbol(value)
    try:
        return param.type.accept(value)
    except TypeMismatch as wanted:
        raise SchemaError(f"`{place}` is not {wanted}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_roots(
    outputs: Mapping[str, str], updates: Mapping[str, str], nodes: Mapping[str, Node]
) -> None:
    for label, name in outputs.items():
        if name not in nodes:
            raise SchemaError(f"the output `{label}` is `{name}`, which is no node")
    for state, name in updates.items():
        if state not in nodes or nodes[state].op != "state":
            raise SchemaError(f"`{state}` is updated, and no state")
        if name not in nodes or nodes[name].type != nodes[state].type:
            raise SchemaError(f"the update of `{state}` does not have its type")


@dataclass(frozen=True)
class _Among:
    """One of a few texts."""

    names: tuple[str, ...]

    def check(self, value: Any, place: str) -> None:
        JsonString(100).check(value, place)
        if value not in self.names:
            raise SchemaError(f"`{place}` is {value}, not one of {', '.join(self.names)}")


@dataclass(frozen=True)
class _Flag:
    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, bool):
            raise SchemaError(f"`{place}` is neither true nor false")


@dataclass(frozen=True)
class _Constant:
    """A number, or a list of them."""

    def check(self, value: Any, place: str) -> None:
        form: Schema = (
            JsonArray(JsonNumber(), 10**6, min_length=1)
            if isinstance(value, list)
            else JsonNumber()
        )
        form.check(value, place)


@dataclass(frozen=True)
class _Law:
    """A distribution and its parameter."""

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) != 2:
            raise SchemaError(f"`{place}` is no distribution with its parameter")
        _Among(LAWS).check(value[0], place)
        JsonNumber().check(value[1], place)


FORMS: Mapping[str, Schema] = {"value": _Constant(), "init": _Law()}
"""The attributes whose kind says nothing of them: those of constants and states."""

_DTYPE = _Among(tuple(ITEMSIZE))
_NAME = JsonString(100_000, is_one_line=True)
_NODE = JsonObject(
    {
        "id": _NAME,
        "op": JsonString(100),
        "shape": JsonArray(JsonInteger(1), MAX_AXES),
        "dtype": _DTYPE,
        "attrs": JsonObject(),
    },
    {"region": _NAME, "place": JsonString(100_000)},
)
_EDGE = JsonObject(
    {
        "source": _NAME,
        "target": _NAME,
        "operands": JsonArray(JsonInteger(0, MOST_OPERANDS), MOST_OPERANDS, min_length=1),
    }
)
_NAMES = JsonObject(additional=_NAME, max_entries=MOST_NODES)
_GRAPH = JsonObject(
    {
        "directed": _Flag(),
        "multigraph": _Flag(),
        "graph": JsonObject({"name": _NAME, "outputs": _NAMES, "updates": _NAMES}),
        "nodes": JsonArray(_NODE, MOST_NODES),
        "edges": JsonArray(_EDGE, 4 * MOST_NODES),
    }
)
