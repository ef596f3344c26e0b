"""The compiler's core data types: TensorType, Node, Graph."""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from netdsl.errors import Span

if TYPE_CHECKING:
    import networkx as nx

ITEMSIZE = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "uint8": 1,
    "bool": 1,
}
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")
Array = Any


@dataclass(frozen=True, slots=True)
class TensorType:
    """A shape (batch first, channels last) and an element type."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * ITEMSIZE[self.dtype]

    def with_shape(self, shape: Iterable[int]) -> TensorType:
        return TensorType(tuple(shape), self.dtype)

    def __str__(self) -> str:
        return f"{dims(self.shape)} {self.dtype}"


def dims(shape: Iterable[int]) -> str:
    """Formats a shape as the language does: `56x56x64`, or `scalar` for the empty one."""
    return "x".join(map(str, shape)) or "scalar"


def format_bytes(nbytes: int) -> str:
    """Formats a byte count for people: `1.5 GB`."""
    size, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


class Attrs(Mapping[str, Any]):
    """A node's attributes: an immutable, hashable mapping."""

    __slots__ = ("_data", "_hash")

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        self._data = dict(data or {})
        self._hash = hash(frozenset(self._data.items()))

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def keys(self) -> KeysView[str]:
        """The keys of the dict itself; `**attrs` asks for them at every node of every pass."""
        return self._data.keys()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attrs) and self._data == other._data

    def __repr__(self) -> str:
        return f"Attrs({self._data!r})"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation with its single result; `name` is the value's name, `args` the names of its
    operands.

    Nodes of different regions are never merged: what a backward pass recomputes stays separate from
    what the forward pass computed.
    """

    name: str
    op: str
    args: tuple[str, ...]
    attrs: Attrs
    type: TensorType
    span: Span | None = field(default=None, compare=False)
    region: str = ""


_get_node = itemgetter("node")


class NodeView(Mapping[str, Node]):
    """A view of the nodes of `dag` by name, in insertion order."""

    __slots__ = ("_data", "dag")

    def __init__(self, dag: nx.DiGraph) -> None:
        self.dag = dag
        # `dag.nodes` is a view too, but costs twice as much, and every operand is looked up
        self._data: dict[str, dict[str, Any]] = dag._node

    def __getitem__(self, name: str) -> Node:
        return self._data[name]["node"]

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def values(self) -> ValuesView[Node]:
        return _NodeValuesView(self)

    def items(self) -> ItemsView[str, Node]:
        return _NodeItemsView(self)

    def data(self) -> Iterator[Node]:
        """Iterates over all nodes in order."""
        return map(_get_node, self._data.values())


class _NodeValuesView(ValuesView[Node]):
    """As fast as a dict's own view."""

    _mapping: NodeView

    def __iter__(self) -> Iterator[Node]:
        return self._mapping.data()


class _NodeItemsView(ItemsView[str, Node]):
    """As fast as a dict's own view."""

    _mapping: NodeView

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        return zip(self._mapping, self._mapping.data(), strict=True)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in executable order, the graph's outputs and its state updates.

    `outputs` maps a public name to a node, `updates` a state to the node that replaces it at the
    end of the step. `dag` is a frozen networkx.DiGraph of all nodes and edges: its nodes are names
    in graph order, each carrying its Node as `node`; its edges lead from an operand to its reader.
    `Node.args` keeps the order of operands. `nodes` is a view of the dag; if a Graph is created
    from any other mapping, a dag is built from it.
    """

    nodes: Mapping[str, Node]
    outputs: Mapping[str, str]
    updates: Mapping[str, str] = field(default_factory=dict)
    name: str = "graph"
    dag: nx.DiGraph = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import networkx as nx  # takes 0.1 s, needed only to create a graph

        view = self.nodes if isinstance(self.nodes, NodeView) else NodeView(_build_dag(self.nodes))
        object.__setattr__(self, "nodes", view)
        object.__setattr__(self, "dag", nx.freeze(view.dag))

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def find_by_op(self, op: str) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes.values() if n.op == op)

    def backward_slice(self, *names: str) -> set[str]:
        """Returns the names of these nodes and of everything that they are computed from."""
        return find_reachable(self.dag.reverse(copy=False), names)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.find_by_op("input")

    @property
    def states(self) -> tuple[Node, ...]:
        return self.find_by_op("state")

    @property
    def roots(self) -> tuple[str, ...]:
        """What must be computed: the outputs and the updates."""
        return (*self.outputs.values(), *self.updates.values())

    @property
    def live_names(self) -> set[str]:
        """The names of all nodes that outputs and updates need, and of the updated states."""
        return self.backward_slice(*self.roots) | self.updates.keys()


def _build_dag(nodes: Mapping[str, Node]) -> nx.DiGraph:
    """Builds a dag of these nodes. An operand that is not among them gets neither an edge nor a
    node."""
    import networkx as nx

    dag = nx.DiGraph()
    for name, node in nodes.items():
        dag.add_node(name, node=node)
    for name, node in nodes.items():
        for arg in node.args:
            if arg in nodes:
                dag.add_edge(arg, name)
    return dag


def find_reachable(dag: nx.DiGraph, sources: Iterable[Any]) -> set[Any]:
    """Returns these nodes of a dag and all their descendants, in a single search, where
    `nx.descendants` makes one per source."""
    import networkx as nx

    return {name for layer in nx.bfs_layers(dag, list(sources)) for name in layer}


class Emitter(Protocol):
    """What a `vjp` emits nodes with: `b.mul(x, y)` emits the operator `mul` and returns its
    node."""

    def __getattr__(self, op: str) -> Callable[..., Node]: ...
