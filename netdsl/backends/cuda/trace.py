"""Traces the nodes of a kernel to expressions of what it stores and reduces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netdsl.backends.cuda.c_expression import (
    REGISTER_TYPES,
    CExpr,
    LinearIndex,
    Load,
    PaddedAxis,
    literal,
)
from netdsl.backends.cuda.formulas import FORMULAS, dropout, inverse_std
from netdsl.backends.cuda.index_terms import (
    Coordinates,
    Term,
    UnsupportedKernelError,
    address_terms,
    broadcast_coordinates,
    domain_coordinates,
    reshape_coordinates,
)
from netdsl.ops import OPS
from netdsl.plan.layout import row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Graph, Node


@dataclass(frozen=True)
class Store:
    """An element that a kernel writes, and its address."""

    value: CExpr
    place: Placement
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Reduction:
    """A node that reduces `values` over the digits that are not in `result_terms`."""

    node: Node
    values: tuple[CExpr, ...]
    result_terms: tuple[Term, ...]
    place: Placement
    moments: Placement | None = None


@dataclass(frozen=True)
class TracedKernel:
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
) -> TracedKernel:
    """Returns the expressions of a kernel. Raises UnsupportedKernelError if it cannot be traced."""
    tracer = _Tracer(graph, places, set(inputs) - set(nodes), set(nodes))
    outputs = list(outputs)
    size = max(_domain_size(graph, graph[o]) for o in outputs)
    stores, reductions = [], []
    for name in outputs:
        node = graph[name]
        if OPS[node.op].kind == "reduce":
            reductions.append(tracer.trace_reduction(node))
            continue
        if node.type.size != size:
            raise UnsupportedKernelError(f"{name} is smaller than its kernel's domain")
        coordinates = domain_coordinates(node.type.shape)
        place = places[name]
        stores.append(
            Store(
                tracer.trace_value(name, coordinates),
                place,
                address_terms(coordinates, place.layout.strides),
            )
        )
    return TracedKernel(size, tuple(stores), tuple(reductions))


def trace_copy(source: Placement, target: Placement) -> TracedKernel:
    """Returns a kernel that copies a value to another placement."""
    coordinates = domain_coordinates(target.layout.shape)
    load = _make_load(source, coordinates)
    size = math.prod(target.layout.shape)
    return TracedKernel(
        size, (Store(load, target, address_terms(coordinates, target.layout.strides)),), ()
    )


def _domain_size(graph: Graph, node: Node) -> int:
    """Returns the number of elements that a kernel iterates over for a node: for a reduction, those
    of its first operand."""
    return graph[node.args[0]].type.size if OPS[node.op].kind == "reduce" else node.type.size


def _make_load(place: Placement, coordinates: Coordinates) -> Load:
    address = address_terms(coordinates, place.layout.strides)
    return Load(REGISTER_TYPES[place.dtype], "", (), place, address, place.layout.offset)


class _Tracer:
    """Makes the expression of each value at given coordinates once."""

    def __init__(
        self, graph: Graph, places: Mapping[str, Placement], inputs: set[str], nodes: set[str]
    ) -> None:
        self.graph = graph
        self.places = places
        self.inputs = inputs
        self.nodes = nodes
        self._expressions: dict[tuple[object, ...], CExpr] = {}

    def trace_value(self, name: str, coordinates: Coordinates) -> CExpr:
        key = (name, coordinates)
        if key not in self._expressions:
            self._expressions[key] = self._make_expression(self.graph[name], coordinates)
        return self._expressions[key]

    def _make_expression(self, node: Node, coordinates: Coordinates) -> CExpr:
        if node.op == "const" and node.type.rank == 0:
            return literal(node.attrs["value"], REGISTER_TYPES[node.type.dtype])
        if node.name in self.inputs or node.name not in self.nodes:
            return _make_load(self.places[node.name], coordinates)
        if OPS[node.op].kind == "view":
            return self._trace_view(node, coordinates)
        return self._trace_op(node, coordinates)

    def _trace_view(self, node: Node, coordinates: Coordinates) -> CExpr:
        (arg,) = node.args
        shape = self.graph[arg].type.shape
        if node.op == "broadcast":
            return self.trace_value(arg, broadcast_coordinates(coordinates, shape))
        if node.op == "reshape":
            return self.trace_value(arg, reshape_coordinates(coordinates, shape))
        # a view that strides cannot express is a separate kernel
        if node.op == "transpose":
            perm = node.attrs["perm"]
            return self.trace_value(
                arg, tuple(coordinates[perm.index(a)] for a in range(len(perm)))
            )
        raise UnsupportedKernelError(f"{node.name} is a {node.op} inside a kernel")

    def _trace_operand(self, name: str, coordinates: Coordinates) -> CExpr:
        return self.trace_value(
            name, broadcast_coordinates(coordinates, self.graph[name].type.shape)
        )

    def _trace_op(self, node: Node, coordinates: Coordinates) -> CExpr:
        ctype = REGISTER_TYPES[node.type.dtype]
        if node.op == "pad":
            return self._trace_pad(node, coordinates)
        if node.op in ("normalize", "rescale", "moments_grad"):
            return self._trace_normalization(node, coordinates, ctype)
        args = [self._trace_operand(a, coordinates) for a in node.args]
        if node.op == "dropout":
            x, seed, step = args
            number = self._linear_index(coordinates, node.type.shape)
            return dropout(ctype, x, seed, step, number, node.attrs)
        if node.op not in FORMULAS:
            raise UnsupportedKernelError(f"there is no formula for {node.op}")
        return FORMULAS[node.op](ctype, args, node.attrs)

    def _linear_index(self, coordinates: Coordinates, shape: tuple[int, ...]) -> CExpr:
        return LinearIndex(
            "long long", "", (), address_terms(coordinates, row_major_strides(shape))
        )

    def _trace_pad(self, node: Node, coordinates: Coordinates) -> CExpr:
        (arg,) = node.args
        place = self.places[arg]
        a, shape = node.attrs, self.graph[arg].type.shape
        plain_terms: list[Term] = []
        padded_axes = []
        for axis, (digits, size, stride) in enumerate(
            zip(coordinates, shape, place.layout.strides, strict=True)
        ):
            low, step = a["low"][axis], a["interior"][axis] + 1
            if low or a["high"][axis] or step > 1:
                padded_axes.append(PaddedAxis(digits, low, step, size, stride))
            else:
                plain_terms += address_terms((digits,), (stride,))
        ctype = REGISTER_TYPES[place.dtype]
        offset, fill = place.layout.offset, a["value"]
        return Load(ctype, "", (), place, tuple(plain_terms), offset, tuple(padded_axes), fill)

    def _load_moment(
        self, name: str, index: int, coordinates: Coordinates, axes: tuple[int, ...]
    ) -> CExpr:
        """Loads the mean or the variance (or a gradient of these) of an element's group."""
        key = (name, index, coordinates, axes)
        if key not in self._expressions:
            place = self.places[name]
            inner = tuple(axis for a, axis in enumerate(coordinates) if a not in axes)
            address = address_terms(inner, place.layout.strides[1:])
            offset = place.layout.offset + index * place.layout.strides[0]
            self._expressions[key] = Load(
                REGISTER_TYPES[place.dtype], "", (), place, address, offset
            )
        return self._expressions[key]

    def _inverse_std(self, name: str, coordinates: Coordinates, node: Node, ctype: str) -> CExpr:
        axes, eps = node.attrs["axes"], node.attrs["eps"]
        key = ("deviation", name, coordinates, axes, eps)
        if key not in self._expressions:
            self._expressions[key] = inverse_std(
                ctype, self._load_moment(name, 1, coordinates, axes), eps
            )
        return self._expressions[key]

    def _trace_normalization(self, node: Node, coordinates: Coordinates, ctype: str) -> CExpr:
        axes = node.attrs["axes"]
        if node.op == "moments_grad":
            g, x, m = node.args
            size = math.prod(self.graph[x].type.shape[a] for a in axes)
            scale = literal(1 / size, ctype).text
            mean = self._load_moment(m, 0, coordinates, axes)
            args = (
                self._load_moment(g, 0, coordinates, axes),
                self._load_moment(g, 1, coordinates, axes),
            )
            text = f"(({{0}} + 2 * ({{2}} - {{3}}) * {{1}}) * {scale})"
            return CExpr(ctype, text, (*args, self.trace_value(x, coordinates), mean))
        x, m = node.args
        value, inverse = (
            self.trace_value(x, coordinates),
            self._inverse_std(m, coordinates, node, ctype),
        )
        if node.op == "rescale":
            return CExpr(ctype, "({0} * {1})", (value, inverse))
        return CExpr(
            ctype,
            "(({0} - {1}) * {2})",
            (value, self._load_moment(m, 0, coordinates, axes), inverse),
        )

    def trace_reduction(self, node: Node) -> Reduction:
        """Returns what a reduction reduces, and which digits number its results."""
        kind = self.graph[node.args[0]].type
        axes = node.attrs.get("axes", tuple(range(kind.rank)))
        coordinates = domain_coordinates(kind.shape)
        result_coordinates = tuple(axis for a, axis in enumerate(coordinates) if a not in axes)
        shape = tuple(s for a, s in enumerate(kind.shape) if a not in axes)
        args = node.args[:2] if node.op == "normalize_dmoments" else node.args
        values = [self._trace_operand(a, coordinates) for a in args]
        moments = None
        if node.op == "normalize_dmoments":
            mean = self._load_moment(node.args[2], 0, coordinates, axes)
            g, x = values
            values = [g, CExpr(g.ctype, "({0} * ({1} - {2}))", (g, x, mean))]
            moments = self.places[node.args[2]]
        elif node.op == "trust_ratio":
            values = [CExpr(v.ctype, "({0} * {0})", (v,)) for v in values]
        elif node.op not in ("reduce_sum", "reduce_mean", "reduce_max", "moments"):
            raise UnsupportedKernelError(f"there is no pattern for {node.op}")
        address = address_terms(result_coordinates, row_major_strides(shape))
        return Reduction(node, tuple(values), address, self.places[node.name], moments)
