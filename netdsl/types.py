"""What flows through the compiler: TensorType, Node, Graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
FLOATS = ("float64", "float32", "float16", "bfloat16")
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


def sized(nbytes: int) -> str:
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


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run, what they give out and which states they renew.

    `outputs` maps a public name to a node, `updates` a state to the node that replaces it when
    the step is over. `Node.args` is the truth about edges; `digraph` is derived from it.
    """

    nodes: Mapping[str, Node]
    outputs: Mapping[str, str]
    updates: Mapping[str, str] = field(default_factory=dict)
    name: str = "graph"

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """The graph for networkx's algorithms: node names, each carrying its Node as `node`."""
        import networkx as nx  # a tenth of a second that only those pay who ask for it

        g = nx.DiGraph()
        g.add_nodes_from((n.name, {"node": n}) for n in self.nodes.values())
        g.add_edges_from((a, n.name) for n in self.nodes.values() for a in n.args)
        return g

    def of(self, op: str) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes.values() if n.op == op)

    def cone(self, *names: str) -> set[str]:
        """The names of these nodes and of all that they are computed from."""
        wanted = set(names)
        for node in reversed(list(self.nodes.values())):
            if node.name in wanted:
                wanted.update(node.args)
        return wanted

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.of("input")

    @property
    def states(self) -> tuple[Node, ...]:
        return self.of("state")

    @property
    def roots(self) -> tuple[str, ...]:
        """What must be computed: the outputs and the updates."""
        return (*self.outputs.values(), *self.updates.values())


class Emitter(Protocol):
    """What a `vjp` builds with: `b.mul(x, y)` emits the operator `mul` and returns its node."""

    def __getattr__(self, op: str) -> Callable[..., Node]: ...
