"""What flows through the compiler: TensorType, Node, Graph."""

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
    """A shape (batch first, channels last) and the type of an element."""

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
    """A shape as the language writes it: `56x56x64`, and `scalar` for the empty one."""
    return "x".join(map(str, shape)) or "scalar"


def format_bytes(nbytes: int) -> str:
    """Bytes for people: `1.5 GB`."""
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
        """Of the dict itself, which `**attrs` asks for, at every node of every pass."""
        return self._data.keys()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attrs) and self._data == other._data

    def __repr__(self) -> str:
        return f"Attrs({self._data!r})"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and its one result; `name` is the value's name, `args` are names of values.

    Nodes of different `region` are never taken for one: what a backward pass computes again stays
    apart from what the forward pass computed.
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
    """The nodes of a `dag` by name, in the order in which they were added: a view of it."""

    __slots__ = ("_data", "dag")

    def __init__(self, dag: nx.DiGraph) -> None:
        self.dag = dag
        # `dag.nodes` is a view too, of twice the price where every operand is looked up
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
        """All nodes in their order."""
        return map(_get_node, self._data.values())


class _NodeValuesView(ValuesView[Node]):
    """At the speed of a dict's own."""

    _mapping: NodeView

    def __iter__(self) -> Iterator[Node]:
        return self._mapping.data()


class _NodeItemsView(ItemsView[str, Node]):
    """At the speed of a dict's own."""

    _mapping: NodeView

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        return zip(self._mapping, self._mapping.data(), strict=True)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run, what they give out and which states they renew.

    `outputs` maps a public name to a node, `updates` a state to the node that replaces it when
    the step is over. All nodes and edges lie in `dag`, a frozen networkx.DiGraph: its nodes are
    names, each carrying its Node as `node`, in the order of the graph; its edges lead from an
    operand to its reader. `Node.args` keeps the order of operands. `nodes` is a view of the dag;
    any other mapping that a Graph is made of is filled into a dag of its own.
    """

    nodes: Mapping[str, Node]
    outputs: Mapping[str, str]
    updates: Mapping[str, str] = field(default_factory=dict)
    name: str = "graph"
    dag: nx.DiGraph = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import networkx as nx  # a tenth of a second that only those pay who make a graph

        view = self.nodes if isinstance(self.nodes, NodeView) else NodeView(_build_dag(self.nodes))
        object.__setattr__(self, "nodes", view)
        object.__setattr__(self, "dag", nx.freeze(view.dag))

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def find_by_op(self, op: str) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes.values() if n.op == op)

    def backward_slice(self, *names: str) -> set[str]:
        """The names of these nodes and of all that they are computed from."""
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
        """The names of all that outputs and updates need, and of the states that are renewed."""
        return self.backward_slice(*self.roots) | self.updates.keys()


def _build_dag(nodes: Mapping[str, Node]) -> nx.DiGraph:
    """A dag of these nodes. An operand that is none of them has no edge, and no node either."""
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
    """These nodes of a dag and all that lies behind them: one search for all of them, where
    `nx.descendants` makes one for each."""
    import networkx as nx

    return {name for layer in nx.bfs_layers(dag, list(sources)) for name in layer}


class Emitter(Protocol):
    """What a `vjp` builds with: `b.mul(x, y)` emits the operator `mul` and returns its node."""

    def __getattr__(self, op: str) -> Callable[..., Node]: ...
