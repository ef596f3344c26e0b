"""Builder: emits nodes, infers and checks their types, and merges equal nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import networkx as nx

from netdsl.errors import NetError, Span, internal_error
from netdsl.ir.views import slice_axis
from netdsl.ops import OPS
from netdsl.signature import REQUIRED
from netdsl.types import FLOAT_DTYPES, Attrs, Graph, Node, NodeView, TensorType, find_reachable

_MAX_SUMMED_SLICES = 16
_NO_ATTRIBUTES = Attrs()
"""Shared by all nodes without attributes."""


class Builder:
    """Builds the dag of a Graph. `b.mul(x, y)` emits `mul`; `at` sets the span of emitted nodes.

    Equal nodes (operator, operands, attributes) are emitted once, so work that two gradients share
    is computed once. Raises NetError, with its location, if a shape rule rejects the operands.
    """

    def __init__(self, graph: Graph | None = None, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.dag = nx.DiGraph()
        self.nodes = NodeView(self.dag)
        self.span: Span | None = None
        self.region = ""
        self._name_hint: str | None = None
        self._known_nodes: dict[tuple[Any, ...], Node] = {}
        self._name_counts: dict[str, int] = {}
        if graph is not None:
            for node in graph.nodes.values():
                self.insert(node)

    def __getattr__(self, op: str) -> Callable[..., Node]:
        if op.startswith("_") or op not in OPS:
            raise AttributeError(op)
        return lambda *args, **attrs: self.emit(op, *args, **attrs)

    @contextmanager
    def at(self, span: Span | None, hint: str | None = None, region: str = "") -> Iterator[None]:
        """Nodes emitted inside this context have `span`, are named after `hint` and belong to
        `region`."""
        previous = self.span, self._name_hint, self.region
        self.span, self._name_hint, self.region = span, hint, region
        try:
            yield
        finally:
            self.span, self._name_hint, self.region = previous

    def emit(self, op: str, *args: Node, name: str | None = None, **attrs: Any) -> Node:
        """Returns the node of `op` on `args`; `name` is a preference, made unique if it is
        taken."""
        operator = OPS[op]
        if not operator.is_variadic and len(args) != len(operator.operands):
            raise internal_error(f"{op} takes {len(operator.operands)} operands, not {len(args)}")
        full = self._complete_attributes(op, attrs)
        operands = tuple(a.name for a in args)
        key = (op, operands, full, self.region)
        if operator.kind != "leaf" or op == "const":
            known = self._known_nodes.get(key)
            if known is not None:
                return known
        try:
            tensor_type = operator.shape(*(a.type for a in args), **full)
        except NetError as e:
            raise e.with_default_span(self.span) from None
        unique_name = self._make_unique(name or self._default_name(op))
        return self.insert(
            Node(unique_name, op, operands, full, tensor_type, self.span, self.region)
        )

    def insert(self, node: Node) -> Node:
        """Adds a node as it is; its name must be new and its operands must exist."""
        self.dag.add_node(node.name, node=node)
        for arg in node.args:
            self.dag.add_edge(arg, node.name)
        self._known_nodes.setdefault((node.op, node.args, node.attrs, node.region), node)
        return node

    def _complete_attributes(self, op: str, given: Mapping[str, Any]) -> Attrs:
        params = OPS[op].attrs
        if not params and not given:
            return _NO_ATTRIBUTES
        full: dict[str, Any] = {}
        for param in params:
            value = given.get(param.name, param.default)
            if value is REQUIRED:
                raise internal_error(f"{op} needs the attribute {param.name}")
            full[param.name] = value
        extra = given.keys() - full.keys()
        if extra:
            raise internal_error(f"{op} has no attribute {', '.join(sorted(extra))}")
        return Attrs(full)

    def _default_name(self, op: str) -> str:
        return f"{self._name_hint}.{op}" if self._name_hint else op

    def _make_unique(self, name: str) -> str:
        if name not in self.nodes:
            return name
        base = re.sub(r"~\d+$", "", name)
        while True:
            self._name_counts[base] = self._name_counts.get(base, 1) + 1
            fresh = f"{base}~{self._name_counts[base]}"
            if fresh not in self.nodes:
                return fresh

    def input(self, name: str, tensor_type: TensorType) -> Node:
        """Returns the input of this name, a value supplied at every run; emits it unless it
        exists."""
        return self._find_or_emit("input", name, shape=tensor_type.shape, dtype=tensor_type.dtype)

    def state(
        self, name: str, tensor_type: TensorType, init: tuple[str, float], trainable: bool = True
    ) -> Node:
        """Returns the state of this name, a value that persists between runs; emits it unless it
        exists."""
        return self._find_or_emit(
            "state",
            name,
            shape=tensor_type.shape,
            dtype=tensor_type.dtype,
            init=init,
            trainable=trainable,
        )

    def _find_or_emit(self, op: str, name: str, **attrs: Any) -> Node:
        node = self.nodes.get(name)
        if node is None:
            return self.emit(op, name=name, **attrs)
        if node.op != op or node.attrs != self._complete_attributes(op, attrs):
            raise internal_error(f"{name} is already another {node.op}")
        return node

    def const(self, value: float | tuple[float, ...], dtype: str | None = None) -> Node:
        """Emits a constant scalar or vector, of the builder's float type by default."""
        floats = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
        return self.emit("const", value=floats, dtype=dtype or self.dtype)

    def sum_to(self, x: Node, shape: tuple[int, ...]) -> Node:
        """Sums `x` over the axes along which `shape` was broadcast to it."""
        if x.type.shape == shape:
            return x
        extra = x.type.rank - len(shape)
        full = (1,) * extra + shape
        axes = tuple(a for a, s in enumerate(full) if s != x.type.shape[a] or a < extra)
        if all(a < extra for a in axes):
            return self.reduce_sum(x, axes=axes)
        if _are_few_between(x.type.shape, axes):
            for axis in axes:
                x = self._add_slices(x, axis)
            return self.reshape(x, shape=shape)
        return self.reshape(self.reduce_sum(x, axes=axes, keepdims=True), shape=shape)

    def _add_slices(self, x: Node, axis: int) -> Node:
        """The sum over an axis, which keeps the size 1, of one slice after the other."""
        size = x.type.shape[axis]
        return reduce(self.add, [slice_axis(self, x, axis, i, i + 1) for i in range(size)])

    def build(
        self,
        outputs: Mapping[str, Node],
        updates: Mapping[str, Node] | None = None,
        name: str = "graph",
        prune: bool = False,
    ) -> Graph:
        """Returns the graph of all nodes emitted so far or, with `prune`, of those that its roots
        need. It takes over the dag: nothing can be emitted afterwards."""
        output_names = {k: n.name for k, n in outputs.items()}
        update_names = {k: n.name for k, n in (updates or {}).items()}
        if prune:
            roots = (*output_names.values(), *update_names.values())
            needed = find_reachable(self.dag.reverse(copy=False), roots) | update_names.keys()
            self.dag.remove_nodes_from([name for name in self.dag if name not in needed])
        return Graph(self.nodes, output_names, update_names, name)


def _are_few_between(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Whether a sum is over a few neighbours between axes that stay, such as the pixels that an
    upsampling made of one. It is cheaper as an elementwise sum of slices than as a reduction."""
    kept = [a for a, size in enumerate(shape) if a not in axes and size > 1]
    is_between = len(kept) > 1 and kept[-1] > max(axes) and any(a > 0 for a in kept[:-1])
    return is_between and all(shape[a] <= _MAX_SUMMED_SLICES for a in axes)


def is_float(tensor_type: TensorType) -> bool:
    return tensor_type.dtype in FLOAT_DTYPES
