"""Tracing: from the nodes of a kernel to the expressions of what it stores and sums up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netdsl.backends.cuda.expression import REGISTER, Expr, Load, Number, Window, literal
from netdsl.backends.cuda.formulas import FORMULAS, dropout, rescaling
from netdsl.backends.cuda.index import At, Term, Unmappable, regrouped, stretched, terms, whole
from netdsl.ops import OPS
from netdsl.plan.layout import row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Graph, Node


@dataclass(frozen=True)
class Store:
    """An element that a kernel writes, and where."""

    value: Expr
    place: Placement
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Reduction:
    """A node that adds up `values` over the digits that `kept` leaves out."""

    node: Node
    values: tuple[Expr, ...]
    kept: tuple[Term, ...]
    place: Placement
    moments: Placement | None = None


@dataclass(frozen=True)
class Traced:
    """A kernel as expressions over a domain of `size` elements."""

    size: int
    stores: tuple[Store, ...]
    reductions: tuple[Reduction, ...]


def trace(
    graph: Graph,
    places: Mapping[str, Placement],
    inputs: Iterable[str],
    nodes: Iterable[str],
    outputs: Iterable[str],
) -> Traced:
    """The expressions of a kernel. Raises Unmappable where there is no pattern for it."""
    tracer = _Tracer(graph, places, set(inputs) - set(nodes), set(nodes))
    outputs = list(outputs)
    size = max(_domain(graph, graph[o]) for o in outputs)
    stores, reductions = [], []
    for name in outputs:
        node = graph[name]
        if OPS[node.op].kind == "reduce":
            reductions.append(tracer.reduction(node))
            continue
        if node.type.size != size:
            raise Unmappable(f"{name} is smaller than its kernel's domain")
        at = whole(node.type.shape)
        place = places[name]
        stores.append(Store(tracer.value(name, at), place, terms(at, place.layout.strides)))
    return Traced(size, tuple(stores), tuple(reductions))


def copied(source: Placement, target: Placement) -> Traced:
    """A value written to another place."""
    at = whole(target.layout.shape)
    load = _load(source, at)
    size = math.prod(target.layout.shape)
    return Traced(size, (Store(load, target, terms(at, target.layout.strides)),), ())


def _domain(graph: Graph, node: Node) -> int:
    """How many elements a kernel goes over for a node. Those that a reduction adds up are its first
    operand's: beside a single one, moments are more."""
    return graph[node.args[0]].type.size if OPS[node.op].kind == "reduce" else node.type.size


def _load(place: Placement, at: At) -> Load:
    address = terms(at, place.layout.strides)
    return Load(REGISTER[place.dtype], "", (), place, address, place.layout.offset)


class _Tracer:
    """Expressions by value and coordinates, each made once."""

    def __init__(
        self, graph: Graph, places: Mapping[str, Placement], inputs: set[str], nodes: set[str]
    ) -> None:
        self.graph = graph
        self.places = places
        self.inputs = inputs
        self.nodes = nodes
        self._known: dict[tuple[object, ...], Expr] = {}

    def value(self, name: str, at: At) -> Expr:
        key = (name, at)
        if key not in self._known:
            self._known[key] = self._made(self.graph[name], at)
        return self._known[key]

    def _made(self, node: Node, at: At) -> Expr:
        if node.op == "const" and node.type.rank == 0:
            return literal(node.attrs["value"], REGISTER[node.type.dtype])
        if node.name in self.inputs or node.name not in self.nodes:
            return _load(self.places[node.name], at)
        if OPS[node.op].kind == "view":
            return self._view(node, at)
        return self._computed(node, at)

    def _view(self, node: Node, at: At) -> Expr:
        (arg,) = node.args
        shape = self.graph[arg].type.shape
        if node.op == "broadcast":
            return self.value(arg, stretched(at, shape))
        if node.op == "reshape":
            return self.value(arg, regrouped(at, shape))
        # a view that no strides can express is a kernel of its own, and reads memory
        if node.op == "transpose":
            perm = node.attrs["perm"]
            return self.value(arg, tuple(at[perm.index(a)] for a in range(len(perm))))
        raise Unmappable(f"{node.name} is a {node.op} inside a kernel")

    def _operand(self, name: str, at: At) -> Expr:
        return self.value(name, stretched(at, self.graph[name].type.shape))

    def _computed(self, node: Node, at: At) -> Expr:
        ctype = REGISTER[node.type.dtype]
        if node.op == "pad":
            return self._padded(node, at)
        if node.op in ("normalize", "rescale", "moments_grad"):
            return self._normal(node, at, ctype)
        args = [self._operand(a, at) for a in node.args]
        if node.op == "dropout":
            x, seed, step = args
            number = self._number(at, node.type.shape)
            return dropout(ctype, x, seed, step, number, node.attrs)
        if node.op not in FORMULAS:
            raise Unmappable(f"there is no formula for {node.op}")
        return FORMULAS[node.op](ctype, args, node.attrs)

    def _number(self, at: At, shape: tuple[int, ...]) -> Expr:
        return Number("long long", "", (), terms(at, row_major_strides(shape)))

    def _padded(self, node: Node, at: At) -> Expr:
        (arg,) = node.args
        place = self.places[arg]
        a, shape = node.attrs, self.graph[arg].type.shape
        plain: list[Term] = []
        windows = []
        for axis, (pieces, size, stride) in enumerate(
            zip(at, shape, place.layout.strides, strict=True)
        ):
            low, step = a["low"][axis], a["interior"][axis] + 1
            if low or a["high"][axis] or step > 1:
                windows.append(Window(pieces, low, step, size, stride))
            else:
                plain += terms((pieces,), (stride,))
        ctype = REGISTER[place.dtype]
        offset, fill = place.layout.offset, a["value"]
        return Load(ctype, "", (), place, tuple(plain), offset, tuple(windows), fill)

    def _moment(self, name: str, which: int, at: At, axes: tuple[int, ...]) -> Expr:
        """Mean or variance (or their gradients) of the group that an element belongs to."""
        key = (name, which, at, axes)
        if key not in self._known:
            place = self.places[name]
            inner = tuple(axis for a, axis in enumerate(at) if a not in axes)
            address = terms(inner, place.layout.strides[1:])
            offset = place.layout.offset + which * place.layout.strides[0]
            self._known[key] = Load(REGISTER[place.dtype], "", (), place, address, offset)
        return self._known[key]

    def _deviation(self, name: str, at: At, node: Node, ctype: str) -> Expr:
        axes, eps = node.attrs["axes"], node.attrs["eps"]
        key = ("deviation", name, at, axes, eps)
        if key not in self._known:
            self._known[key] = rescaling(ctype, self._moment(name, 1, at, axes), eps)
        return self._known[key]

    def _normal(self, node: Node, at: At, ctype: str) -> Expr:
        axes = node.attrs["axes"]
        if node.op == "moments_grad":
            g, x, m = node.args
            size = math.prod(self.graph[x].type.shape[a] for a in axes)
            scale = literal(1 / size, ctype).text
            mean = self._moment(m, 0, at, axes)
            args = (self._moment(g, 0, at, axes), self._moment(g, 1, at, axes))
            text = f"(({{0}} + 2 * ({{2}} - {{3}}) * {{1}}) * {scale})"
            return Expr(ctype, text, (*args, self.value(x, at), mean))
        x, m = node.args
        value, inverse = self.value(x, at), self._deviation(m, at, node, ctype)
        if node.op == "rescale":
            return Expr(ctype, "({0} * {1})", (value, inverse))
        return Expr(ctype, "(({0} - {1}) * {2})", (value, self._moment(m, 0, at, axes), inverse))

    def reduction(self, node: Node) -> Reduction:
        """What a reduction adds up, and which digits number its results."""
        kind = self.graph[node.args[0]].type
        axes = node.attrs.get("axes", tuple(range(kind.rank)))
        at = whole(kind.shape)
        kept = tuple(axis for a, axis in enumerate(at) if a not in axes)
        shape = tuple(s for a, s in enumerate(kind.shape) if a not in axes)
        args = node.args[:2] if node.op == "normalize_dmoments" else node.args
        values = [self._operand(a, at) for a in args]
        moments = None
        if node.op == "normalize_dmoments":
            mean = self._moment(node.args[2], 0, at, axes)
            g, x = values
            values = [g, Expr(g.ctype, "({0} * ({1} - {2}))", (g, x, mean))]
            moments = self.places[node.args[2]]
        elif node.op == "trust_ratio":
            values = [Expr(v.ctype, "({0} * {0})", (v,)) for v in values]
        elif node.op not in ("reduce_sum", "reduce_mean", "reduce_max", "moments"):
            raise Unmappable(f"there is no pattern for {node.op}")
        address = terms(kept, row_major_strides(shape))
        return Reduction(node, tuple(values), address, self.places[node.name], moments)
