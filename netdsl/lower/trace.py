"""Tracing: from the nodes of a kernel to the expressions of what it stores and reduces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from netdsl.lower.expression import Constant, DropoutMask, Expr, LinearIndex, Load, PaddedAxis
from netdsl.lower.formula import ElementSymbol, SymbolicNamespace, trace_formula
from netdsl.lower.index_terms import (
    Coordinates,
    Term,
    UnsupportedKernelError,
    address_terms,
    broadcast_coordinates,
    domain_coordinates,
    reshape_coordinates,
)
from netdsl.ops import OPS
from netdsl.ops.dropout import dropout_key
from netdsl.plan.layout import IntTuple, row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Graph, Node

AccumulatorKind = Literal["sum", "max", "moments"]


@dataclass(frozen=True)
class Store:
    """An element that a kernel writes, and where."""

    value: Expr
    place: Placement
    terms: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Accumulator:
    """A value that a kernel adds up, or of which it keeps the largest; of `moments`, the sum and
    the sum of squares of its difference from the first element, so that nothing cancels."""

    value: Expr
    kind: AccumulatorKind

    @property
    def sum_count(self) -> int:
        """How many numbers are accumulated."""
        return 2 if self.kind == "moments" else 1


@dataclass(frozen=True)
class Reduction:
    """A node that reduces its accumulators over axes of its operand, over the digits that
    `result_terms` leave out; `moments`
    are those that the node reads besides."""

    node: Node
    axes: tuple[int, ...]
    accumulators: tuple[Accumulator, ...]
    result_terms: tuple[Term, ...]
    place: Placement
    moments: Placement | None = None


@dataclass(frozen=True)
class TracedKernel:
    """A kernel as expressions over a domain of `size` elements."""

    size: int
    stores: tuple[Store, ...]
    reductions: tuple[Reduction, ...]

    @property
    def roots(self) -> list[Expr]:
        """What is computed of each element of the domain."""
        return [s.value for s in self.stores] + [a.value for a in self.accumulators]

    @property
    def accumulators(self) -> list[Accumulator]:
        return [a for r in self.reductions for a in r.accumulators]


def trace(
    graph: Graph,
    places: Mapping[str, Placement],
    inputs: Iterable[str],
    nodes: Iterable[str],
    outputs: Iterable[str],
) -> TracedKernel:
    """Returns the expressions of a kernel. Raises UnsupportedKernelError if there are none."""
    tracer = _Tracer(graph, places, set(inputs) - set(nodes), set(nodes))
    outputs = list(outputs)
    size = max(_domain_size(graph, graph[o]) for o in outputs)
    stores, reductions = [], []
    for name in outputs:
        node = graph[name]
        if _domain_size(graph, node) != size:
            raise UnsupportedKernelError(f"{name} is smaller than its kernel's domain")
        if OPS[node.op].kind == "reduce":
            reductions.append(tracer.trace_reduction(node))
            continue
        coordinates, place = domain_coordinates(node.type.shape), places[name]
        terms = address_terms(coordinates, place.layout.strides)
        stores.append(Store(tracer.trace_value(name, coordinates), place, terms))
    return TracedKernel(size, tuple(stores), tuple(reductions))


def trace_copy(source: Placement, target: Placement) -> TracedKernel:
    """Returns the kernel that writes a value to another place of the same shape."""
    coordinates = domain_coordinates(target.layout.shape)
    load = _make_load(source, coordinates)
    store = Store(load, target, address_terms(coordinates, target.layout.strides))
    return TracedKernel(math.prod(target.layout.shape), (store,), ())


def _domain_size(graph: Graph, node: Node) -> int:
    """How many elements a kernel goes over for a node: a reduction's are its first operand's.
    Beside a single one, moments are more."""
    return graph[node.args[0]].type.size if OPS[node.op].kind == "reduce" else node.type.size


def _make_load(place: Placement, coordinates: Coordinates) -> Load:
    terms = address_terms(coordinates, place.layout.strides)
    return Load("load", place.dtype, place=place, terms=terms, offset=place.layout.offset)


def _apply(op: str, *args: Expr) -> Expr:
    return Expr(op, args[0].dtype, args)


def _scale(x: Expr, factor: float) -> Expr:
    return _apply("mul", x, Constant("const", x.dtype, value=factor))


class _Tracer:
    """Expressions by value and coordinates, each made once."""

    def __init__(
        self, graph: Graph, places: Mapping[str, Placement], inputs: set[str], nodes: set[str]
    ) -> None:
        self.graph = graph
        self.places = places
        self.inputs = inputs
        self.nodes = nodes
        self._expressions: dict[tuple[object, ...], Expr] = {}

    def trace_value(self, name: str, coordinates: Coordinates) -> Expr:
        key = (name, coordinates)
        if key not in self._expressions:
            self._expressions[key] = self._make_expression(self.graph[name], coordinates)
        return self._expressions[key]

    def _make_expression(self, node: Node, coordinates: Coordinates) -> Expr:
        if node.op == "const" and node.type.rank == 0:
            return Constant("const", node.type.dtype, value=float(node.attrs["value"]))
        if node.name in self.inputs or node.name not in self.nodes:
            return _make_load(self.places[node.name], coordinates)
        if OPS[node.op].kind == "view":
            return self._trace_view(node, coordinates)
        return self._trace_op(node, coordinates)

    def _trace_view(self, node: Node, coordinates: Coordinates) -> Expr:
        (arg,) = node.args
        shape = self.graph[arg].type.shape
        if node.op == "broadcast":
            return self.trace_value(arg, broadcast_coordinates(coordinates, shape))
        if node.op == "reshape":
            return self.trace_value(arg, reshape_coordinates(coordinates, shape))
        # a view that no strides can express is a kernel of its own, and reads memory
        if node.op == "transpose":
            perm = node.attrs["perm"]
            order = [perm.index(a) for a in range(len(perm))]
            return self.trace_value(arg, tuple(coordinates[a] for a in order))
        raise UnsupportedKernelError(f"{node.name} is a {node.op} inside a kernel")

    def _trace_operand(self, name: str, coordinates: Coordinates, shape: IntTuple) -> Expr:
        """An operand of a value of a shape, broadcast to it."""
        own_shape = self.graph[name].type.shape
        if own_shape != shape:
            coordinates = broadcast_coordinates(coordinates, own_shape)
        return self.trace_value(name, coordinates)

    def _trace_op(self, node: Node, coordinates: Coordinates) -> Expr:
        if node.op == "pad":
            return self._trace_pad(node, coordinates)
        if node.op in ("normalize", "rescale", "moments_grad"):
            return self._trace_normalization(node, coordinates)
        args = [self._trace_operand(a, coordinates, node.type.shape) for a in node.args]
        if node.op == "dropout":
            return self._trace_dropout(node, coordinates, args)
        if OPS[node.op].kind != "elementwise":
            raise UnsupportedKernelError(f"{node.op} is not computed element by element")
        return trace_formula(node.op, node.type.dtype, args, node.attrs)

    def _trace_dropout(self, node: Node, coordinates: Coordinates, args: list[Expr]) -> Expr:
        """The element scaled where it is kept, else times 0: NaN stays NaN."""
        x, seed, step, rank = args
        terms = address_terms(coordinates, row_major_strides(node.type.shape))
        index = LinearIndex("index", "int64", (rank,), terms=terms, size=node.type.size)
        rate = node.attrs["rate"]
        key, threshold = dropout_key(node.attrs["key"]), round(rate * 2**32)
        mask = DropoutMask(
            "dropout_mask", "bool", (index, seed, step), key=key, threshold=threshold
        )
        value = ElementSymbol(x)
        factor = SymbolicNamespace().where(ElementSymbol(mask), value.lift(1 / (1 - rate)), 0.0)
        return (value * factor).expr

    def _trace_pad(self, node: Node, coordinates: Coordinates) -> Expr:
        (arg,) = node.args
        if arg in self.nodes:
            raise UnsupportedKernelError("padding of a value that is not in memory")
        place = self.places[arg]
        a, shape = node.attrs, self.graph[arg].type.shape
        terms: list[Term] = []
        padded_axes = []
        for axis, (digits, size, stride) in enumerate(
            zip(coordinates, shape, place.layout.strides, strict=True)
        ):
            low, step = a["low"][axis], a["interior"][axis] + 1
            if low or a["high"][axis] or step > 1:
                padded_axes.append(PaddedAxis(digits, low, step, size, stride, axis=axis))
            else:
                terms += address_terms((digits,), (stride,))
        return Load(
            "load",
            place.dtype,
            place=place,
            terms=tuple(terms),
            offset=place.layout.offset,
            padded_axes=tuple(padded_axes),
            fill=a["value"],
        )

    def _load_moment(
        self, name: str, index: int, coordinates: Coordinates, axes: tuple[int, ...]
    ) -> Expr:
        """Mean (0) or variance (1), or their gradients, of the group that an element belongs to."""
        key = (name, index, coordinates, axes)
        if key not in self._expressions:
            if name in self.nodes:
                raise UnsupportedKernelError("moments that are not in memory")
            place = self.places[name]
            group = tuple(axis for a, axis in enumerate(coordinates) if a not in axes)
            self._expressions[key] = Load(
                "load",
                place.dtype,
                place=place,
                terms=address_terms(group, place.layout.strides[1:]),
                offset=place.layout.offset + index * place.layout.strides[0],
            )
        return self._expressions[key]

    def _trace_inverse_std(self, node: Node, name: str, coordinates: Coordinates) -> Expr:
        axes, eps = node.attrs["axes"], node.attrs["eps"]
        key = ("inverse_std", name, coordinates, axes, eps)
        if key not in self._expressions:
            variance = ElementSymbol(self._load_moment(name, 1, coordinates, axes))
            self._expressions[key] = (1 / SymbolicNamespace().sqrt(variance + eps)).expr
        return self._expressions[key]

    def _trace_normalization(self, node: Node, coordinates: Coordinates) -> Expr:
        """`normalize`, its gradient by x (`rescale`), and that by moments (`moments_grad`)."""
        axes = node.attrs["axes"]
        if node.op == "rescale":
            g, m = node.args
            value = self._trace_operand(g, coordinates, node.type.shape)
            return _apply("mul", value, self._trace_inverse_std(node, m, coordinates))
        *gradient, x, m = node.args
        mean = self._load_moment(m, 0, coordinates, axes)
        centred = _apply("sub", self._trace_operand(x, coordinates, node.type.shape), mean)
        if node.op == "normalize":
            return _apply("mul", centred, self._trace_inverse_std(node, m, coordinates))
        count = math.prod(self.graph[x].type.shape[a] for a in axes)
        dmean, dvar = (self._load_moment(gradient[0], i, coordinates, axes) for i in (0, 1))
        slope, level = _scale(dvar, 2 / count), _scale(dmean, 1 / count)
        return _apply("add", _apply("mul", centred, slope), level)

    def trace_reduction(self, node: Node) -> Reduction:
        """Returns what a reduction accumulates, and which digits number its results."""
        domain = self.graph[node.args[0]].type
        axes = node.attrs.get("axes", tuple(range(domain.rank)))
        coordinates = domain_coordinates(domain.shape)
        kept = tuple(axis for a, axis in enumerate(coordinates) if a not in axes)
        shape = tuple(s for a, s in enumerate(domain.shape) if a not in axes)
        operands = node.args[:2] if node.op == "normalize_dmoments" else node.args
        values = [self._trace_operand(a, coordinates, domain.shape) for a in operands]
        moments = None
        if node.op == "normalize_dmoments":
            mean = self._load_moment(node.args[2], 0, coordinates, axes)
            values[1] = _apply("mul", values[0], _apply("sub", values[1], mean))
            moments = self.places[node.args[2]]
        elif node.op == "trust_ratio":
            values = [_apply("mul", v, v) for v in values]
        elif node.op not in ("reduce_sum", "reduce_mean", "reduce_max", "moments"):
            raise UnsupportedKernelError(f"{node.op} is not computed by accumulators")
        kind = _ACCUMULATION.get(node.op, "sum")
        accumulators = tuple(Accumulator(v, kind) for v in values)
        terms = address_terms(kept, row_major_strides(shape))
        return Reduction(node, axes, accumulators, terms, self.places[node.name], moments)


_ACCUMULATION: Mapping[str, AccumulatorKind] = {"reduce_max": "max", "moments": "moments"}
