"""What a kernel computes element by element, as expressions over places in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from netdsl.backends.cpu.functions import FUNCTIONS
from netdsl.ops import OPS
from netdsl.plan.layout import IntTuple, Layout, compute_view_layout
from netdsl.types import Attrs, Node, TensorType

Views = tuple[tuple[str, IntTuple], ...]
DTYPES = ("float32", "uint8", "bool", "int32")


class Unsupported(Exception):
    """A kernel that this engine has no code for: the reference computes it."""


@dataclass(frozen=True, eq=False)
class Place:
    """Elements in memory, aligned with a domain: a stride for each of its axes.

    `pad` is (low, interior, sizes) where a `pad` node reads through it; `local` is a tile that its
    producer has just left, with rows one behind the other.
    """

    address: int
    strides: IntTuple
    dtype: str = "float32"
    pad: tuple[IntTuple, IntTuple, IntTuple] | None = None
    fill: float = 0.0
    local: bool = False


@dataclass(frozen=True, eq=False)
class Expr:
    """An operator on expressions; `load` of a place and `const` are the leaves."""

    op: str
    args: tuple[Expr, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    place: Place | None = None

    def leaves(self) -> Iterator[Place]:
        if self.place is not None:
            yield self.place
        for a in self.args:
            yield from a.leaves()


def const(value: float) -> Expr:
    return Expr("const", attrs={"value": value})


@dataclass(frozen=True)
class Operand:
    """What a kernel may read: the address of the buffer, the layout in it, the element type."""

    address: int
    layout: Layout
    dtype: str
    local: bool = False


class Reader:
    """Turns the nodes of a kernel into expressions over one domain.

    A value reaches the domain through views (`reshape` and `broadcast`), of the nodes and of
    NumPy's rule; those of operands become strides.
    """

    def __init__(
        self, nodes: Mapping[str, Node], operands: Mapping[str, Operand], domain: IntTuple
    ) -> None:
        self.nodes = nodes
        self.operands = operands
        self.domain = domain
        self._known: dict[tuple[Any, ...], Expr] = {}

    def value(self, name: str, views: Views = ()) -> Expr:
        """A value as the domain sees it."""
        key = (name, views)
        if key not in self._known:
            self._known[key] = self._value(name, views)
        return self._known[key]

    def _value(self, name: str, views: Views) -> Expr:
        if name in self.operands:
            operand = self.operands[name]
            return self._load(operand, operand.layout, views)
        node = self.nodes[name]
        if node.op in ("reshape", "broadcast"):
            return self.value(node.args[0], ((node.op, tuple(node.attrs["shape"])), *views))
        special = getattr(self, f"_{node.op}", None)
        if special is not None:
            return special(node, views)
        if node.op not in FUNCTIONS:
            raise Unsupported(node.op)
        if node.type.dtype not in ("float32", "bool"):
            raise Unsupported(f"{node.op} on {node.type.dtype}")
        return Expr(node.op, tuple(self._operands(node, views)), dict(node.attrs))

    def _operands(self, node: Node, views: Views) -> Iterator[Expr]:
        for arg in node.args:
            yield self._stretched(arg, node.type.shape, views)

    def _stretched(self, arg: str, shape: IntTuple, views: Views) -> Expr:
        known = self.operands[arg].layout.shape if arg in self.operands else None
        own = known if known is not None else self.nodes[arg].type.shape
        return self.value(arg, views if own == shape else (("broadcast", shape), *views))

    def _load(self, operand: Operand, layout: Layout, views: Views) -> Expr:
        if operand.dtype not in DTYPES:
            raise Unsupported(operand.dtype)
        place = Place(
            operand.address + layout.offset * _SIZES[operand.dtype],
            self.aligned(layout, views),
            operand.dtype,
            local=operand.local,
        )
        return Expr("load", place=place)

    def aligned(self, layout: Layout, views: Views) -> IntTuple:
        """The strides of a layout, seen through views, along the axes of the domain."""
        for op, shape in (*views, ("broadcast", self.domain)):
            if op == "broadcast" and math.prod(shape) == math.prod(layout.shape):
                op = "reshape"
            lower = op == "broadcast" and len(shape) < len(layout.shape)
            if lower or math.prod(shape) < math.prod(layout.shape):
                raise Unsupported("values of a larger domain")
            kind = TensorType(shape)
            found = compute_view_layout(layout, Node("", op, (), Attrs({"shape": shape}), kind))
            if found is None:
                raise Unsupported("a view that no strides express")
            layout = found
        return tuple(0 if s == 1 else t for s, t in zip(layout.shape, layout.strides, strict=True))

    # operators that are more than a function of elements

    def _cast(self, node: Node, views: Views) -> Expr:
        (x,) = self._operands(node, views)
        if node.attrs["dtype"] != "float32":
            raise Unsupported(f"cast to {node.attrs['dtype']}")
        return Expr("float", (x,))

    def _moment(self, node: Node, name: str, which: int, views: Views) -> Expr:
        """Mean (0) or variance (1) of `[2, kept axes]`, spread to the node's shape."""
        if name not in self.operands:
            raise Unsupported("moments that are not in memory")
        operand = self.operands[name]
        layout, axes, shape = operand.layout, node.attrs["axes"], node.type.shape
        if OPS[node.op].kind == "reduce":
            shape = self._shape(node.args[1])
        kept = iter(layout.strides[1:])
        strides = tuple(0 if a in axes else next(kept) for a in range(len(shape)))
        offset = layout.offset + which * layout.strides[0]
        return self._load(operand, Layout(shape, strides, offset), views)

    def _shape(self, name: str) -> IntTuple:
        if name in self.operands:
            return self.operands[name].layout.shape
        return self.nodes[name].type.shape

    def _root(self, node: Node, name: str, views: Views) -> Expr:
        return Expr("rstd", (self._moment(node, name, 1, views),), {"eps": node.attrs["eps"]})

    def _normalize(self, node: Node, views: Views) -> Expr:
        x, m = node.args
        centred = Expr(
            "sub",
            (self._stretched(x, node.type.shape, views), self._moment(node, m, 0, views)),
        )
        return Expr("mul", (centred, self._root(node, m, views)))

    def _rescale(self, node: Node, views: Views) -> Expr:
        g, m = node.args
        return Expr("mul", (self._stretched(g, node.type.shape, views), self._root(node, m, views)))

    def _moments_grad(self, node: Node, views: Views) -> Expr:
        g, x, m = node.args
        count = math.prod(node.type.shape[a] for a in node.attrs["axes"])
        slope = Expr("mul", (self._moment(node, g, 1, views), const(2 / count)))
        level = Expr("mul", (self._moment(node, g, 0, views), const(1 / count)))
        image = self._stretched(x, node.type.shape, views)
        centred = Expr("sub", (image, self._moment(node, m, 0, views)))
        return Expr("add", (Expr("mul", (centred, slope)), level))

    def _adam_direction(self, node: Node, views: Views) -> Expr:
        m, v, step = (self._stretched(a, node.type.shape, views) for a in node.args)
        scale = Expr("unbias", (step,), {"beta": node.attrs["beta1"], "root": False})
        root = Expr("unbias", (step,), {"beta": node.attrs["beta2"], "root": True})
        below = Expr("mul", (Expr("sqrt", (v,)), root))
        return Expr(
            "div", (Expr("mul", (m, scale)), Expr("add", (below, const(node.attrs["eps"]))))
        )

    def _dropout(self, node: Node, views: Views) -> Expr:
        if math.prod(node.type.shape) != math.prod(self.domain):
            raise Unsupported("dropout of a value that is stretched afterwards")
        args = tuple(self._operands(node, views))
        return Expr("dropout", args, dict(node.attrs))

    def _pad(self, node: Node, views: Views) -> Expr:
        name, a = node.args[0], node.attrs
        if views or node.type.shape != self.domain or name not in self.operands:
            raise Unsupported("padding of a value that is seen through views")
        operand = self.operands[name]
        layout, low, interior = operand.layout, a["low"], a["interior"]
        last = layout.strides[-1] == 1 or layout.shape[-1] == 1
        if operand.dtype != "float32" or len(low) > 4 or interior[-1] or not last:
            raise Unsupported("padding between channels")
        address = operand.address + 4 * layout.offset
        place = Place(address, layout.strides, pad=(low, interior, layout.shape), fill=a["value"])
        return Expr("load", place=place)


_SIZES = {"float32": 4, "uint8": 1, "bool": 1, "int32": 4}
