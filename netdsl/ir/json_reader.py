"""Reads a graph back from JSON and validates all of it, since the file is untrusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.errors import NetError, fail
from netdsl.ir.verifier import verify_graph
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
from netdsl.ops.distributions import DISTRIBUTIONS
from netdsl.ops.op import Op
from netdsl.parameter_types import AnyValue, TypeMismatch, accepts_words
from netdsl.signature import REQUIRED, Param
from netdsl.types import ITEMSIZE, Attrs, Graph, Node, TensorType
from netdsl.values import Symbol

MAX_CHARACTERS = 2**28
MAX_NODES = 500_000
MAX_OPERANDS = 10_000


def read_graph(text: str | bytes, origin: str = "the text") -> Graph:
    """Returns the verified graph that `netdsl compile --emit json` wrote. Raises NetError if the
    text is not a graph: an unknown operator, attributes or operands that it does not take, types
    that differ from those of its rule, an operand that comes after its reader."""
    try:
        if len(text) > MAX_CHARACTERS:
            raise SchemaError(f"it has more than {MAX_CHARACTERS:,} characters")
        value = read_json(text)
        _GRAPH_SCHEMA.check(value, "graph")
        return verify_graph(_build_graph(value))
    except SchemaError as e:
        help = "`netdsl compile FILE --emit json` writes one"
        raise fail(f"{origin} is not a graph: {e}", help=help) from None


def _build_graph(value: Mapping[str, Any]) -> Graph:
    if not value["directed"] or value["multigraph"]:
        raise SchemaError("its edges are undirected, or it has several edges between two nodes")
    operands = _collect_operands(value["edges"])
    nodes: dict[str, Node] = {}
    for entry in value["nodes"]:
        name = entry["id"]
        if name in nodes:
            raise SchemaError(f"two nodes are named `{name}`")
        nodes[name] = _build_node(entry, _order_operands(name, operands.pop(name, {})), nodes)
    for name in operands:
        raise SchemaError(f"an edge leads to `{name}`, which is not a node")
    header = value["graph"]
    _check_roots(header["outputs"], header["updates"], nodes)
    return Graph(nodes, header["outputs"], header["updates"], header["name"])


def _collect_operands(edges: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, str]]:
    """Returns the operands of each node by position."""
    found: dict[str, dict[int, str]] = {}
    for edge in edges:
        args = found.setdefault(edge["target"], {})
        for position in edge["operands"]:
            if position in args:
                raise SchemaError(f"`{edge['target']}` has two operands {position}")
            args[position] = edge["source"]
    return found


def _order_operands(name: str, args: Mapping[int, str]) -> tuple[str, ...]:
    if len(args) != max(args, default=-1) + 1:
        raise SchemaError(f"`{name}` lacks one of its first {max(args) + 1} operands")
    return tuple(args[position] for position in range(len(args)))


def _build_node(
    entry: Mapping[str, Any], args: tuple[str, ...], earlier_nodes: Mapping[str, Node]
) -> Node:
    name, operator = entry["id"], OPS.get(entry["op"])
    if operator is None:
        raise SchemaError(f"there is no operator `{entry['op']}`")
    for arg in args:
        if arg not in earlier_nodes:
            raise SchemaError(f"`{name}` reads `{arg}`, which does not come before it")
    arity = len(operator.operands)
    if (len(args) < arity) if operator.is_variadic else (len(args) != arity):
        raise SchemaError(f"`{operator.name}` takes {arity} operands, `{name}` has {len(args)}")
    attrs = _read_attributes(operator, name, entry["attrs"])
    try:
        inferred = operator.shape(*(earlier_nodes[a].type for a in args), **attrs)
    except NetError as e:
        raise SchemaError(f"`{name}`: {e.diagnostics[0].message}") from None
    if inferred.size > MAX_TENSOR_SIZE:
        raise SchemaError(f"`{name}` has {inferred.size:,} values, beyond any machine")
    declared = TensorType(tuple(entry["shape"]), entry["dtype"])
    if inferred != declared:
        raise SchemaError(f"`{name}` is declared {declared}, but its operator gives {inferred}")
    return Node(name, operator.name, args, attrs, inferred, region=entry.get("region", ""))


def _read_attributes(record: Op, name: str, given: Mapping[str, Any]) -> Attrs:
    found: dict[str, Any] = {}
    for param in record.attrs:
        path = f"{name}.{param.name}"
        if param.name in given:
            found[param.name] = _read_attribute(param, given[param.name], path)
        elif param.default is REQUIRED:
            raise SchemaError(f"there is no `{path}`")
        else:
            found[param.name] = param.default
    for extra in given.keys() - found.keys():
        raise SchemaError(f"`{record.name}` has no attribute `{extra}`")
    return Attrs(found)


def _read_attribute(param: Param, value: Any, path: str) -> Any:
    """Returns an attribute's value in the form that operators expect: tuples instead of lists."""
    if isinstance(param.type, AnyValue):
        ATTRIBUTE_SCHEMAS[param.name].check(value, path)
        return _to_tuples(value)
    value = _to_tuples(value)
    if isinstance(value, str) and accepts_words(param.type):
        value = Symbol(value)
    try:
        return param.type.accept(value)
    except TypeMismatch as wanted:
        raise SchemaError(f"`{path}` is not {wanted}") from None


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _check_roots(
    outputs: Mapping[str, str], updates: Mapping[str, str], nodes: Mapping[str, Node]
) -> None:
    for label, name in outputs.items():
        if name not in nodes:
            raise SchemaError(f"the output `{label}` is `{name}`, which is not a node")
    for state, name in updates.items():
        if state not in nodes or nodes[state].op != "state":
            raise SchemaError(f"`{state}` is updated but is not a state")
        if name not in nodes or nodes[name].type != nodes[state].type:
            raise SchemaError(f"the update of `{state}` does not have its type")


@dataclass(frozen=True)
class _StringChoice:
    """One of a few strings."""

    names: tuple[str, ...]

    def check(self, value: Any, path: str) -> None:
        JsonString(100).check(value, path)
        if value not in self.names:
            raise SchemaError(f"`{path}` is {value}, not one of {', '.join(self.names)}")


@dataclass(frozen=True)
class _JsonBoolean:
    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, bool):
            raise SchemaError(f"`{path}` is neither true nor false")


@dataclass(frozen=True)
class _ConstantValue:
    """A number, or a list of them."""

    def check(self, value: Any, path: str) -> None:
        schema: Schema = (
            JsonArray(JsonNumber(), 10**6, min_length=1)
            if isinstance(value, list)
            else JsonNumber()
        )
        schema.check(value, path)


@dataclass(frozen=True)
class _Initializer:
    """A distribution and its parameter."""

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, list) or len(value) != 2:
            raise SchemaError(f"`{path}` is not a distribution with its parameter")
        _StringChoice(tuple(DISTRIBUTIONS)).check(value[0], path)
        JsonNumber().check(value[1], path)


ATTRIBUTE_SCHEMAS: Mapping[str, Schema] = {"value": _ConstantValue(), "init": _Initializer()}
"""Schemas of the attributes whose type is AnyValue: those of constants and states."""

_DTYPE_SCHEMA = _StringChoice(tuple(ITEMSIZE))
_NAME_SCHEMA = JsonString(100_000, is_one_line=True)
_NODE_SCHEMA = JsonObject(
    {
        "id": _NAME_SCHEMA,
        "op": JsonString(100),
        "shape": JsonArray(JsonInteger(1), MAX_AXES),
        "dtype": _DTYPE_SCHEMA,
        "attrs": JsonObject(),
    },
    {"region": _NAME_SCHEMA, "place": JsonString(100_000)},
)
_EDGE_SCHEMA = JsonObject(
    {
        "source": _NAME_SCHEMA,
        "target": _NAME_SCHEMA,
        "operands": JsonArray(JsonInteger(0, MAX_OPERANDS), MAX_OPERANDS, min_length=1),
    }
)
_NAMES_SCHEMA = JsonObject(additional=_NAME_SCHEMA, max_entries=MAX_NODES)
_GRAPH_SCHEMA = JsonObject(
    {
        "directed": _JsonBoolean(),
        "multigraph": _JsonBoolean(),
        "graph": JsonObject(
            {"name": _NAME_SCHEMA, "outputs": _NAMES_SCHEMA, "updates": _NAMES_SCHEMA}
        ),
        "nodes": JsonArray(_NODE_SCHEMA, MAX_NODES),
        "edges": JsonArray(_EDGE_SCHEMA, 4 * MAX_NODES),
    }
)
