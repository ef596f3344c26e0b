"""What a kernel computes element by element, as expressions over places in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from netdsl.backends.cpu.elementwise_functions import FUNCTIONS
from netdsl.ops import OPS
from netdsl.plan.layout import IntTuple, Layout, compute_view_layout
from netdsl.types import Attrs, Node, TensorType

Views = tuple[tuple[str, IntTuple], ...]
DTYPES = ("float32", "uint8", "bool", "int32")


class UnsupportedKernelError(Exception):
    """A kernel that this engine has no code for: the reference computes it."""


@dataclass(frozen=True, eq=False)
class MemoryRef:
    """Elements in memory, aligned with a domain: a stride for each of its axes.

    `pad` is (low, interior, sizes) where a `pad` node reads through it; `is_local` is a tile that
    its producer has just left, with rows one behind the other."""

    address: int
    strides: IntTuple
    dtype: str = "float32"
    pad: tuple[IntTuple, IntTuple, IntTuple] | None = None
    fill: float = 0.0
    is_local: bool = False


@dataclass(frozen=True, eq=False)
class ElementExpr:
    """An operator on expressions; `load` of a place and `make_constant` are the leaves."""

    op: str
    args: tuple[ElementExpr, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    ref: MemoryRef | None = None

    def iter_refs(self) -> Iterator[MemoryRef]:
        if self.ref is not None:
            yield self.ref
        for a in self.args:
            yield from a.iter_refs()


def make_constant(value: float) -> ElementExpr:
    return ElementExpr("const", attrs={"value": value})


@dataclass(frozen=True)
class KernelOperand:
    """What a kernel may read: the address of the buffer, the layout in it, the element type."""

    address: int
    layout: Layout
    dtype: str
    is_local: bool = False


class ExpressionBuilder:
    """Turns the nodes of a kernel into expressions over one domain.

    A value reaches the domain through views (`reshape` and `broadcast`), of the nodes and of
    NumPy's rule; those of operands become strides.
    """

    def __init__(
        self, nodes: Mapping[str, Node], operands: Mapping[str, KernelOperand], domain: IntTuple
    ) -> None:
        self.nodes = nodes
        self.operands = operands
        self.domain = domain
        self._cache: dict[tuple[Any, ...], ElementExpr] = {}

    def build(self, name: str, views: Views = ()) -> ElementExpr:
        """A value as the domain sees it."""
        key = (name, views)
        if key not in self._cache:
            self._cache[key] = self._build_uncached(name, views)
        return self._cache[key]

    def _build_uncached(self, name: str, views: Views) -> ElementExpr:
        if name in self.operands:
            operand = self.operands[name]
            return self._build_load(operand, operand.layout, views)
        node = self.nodes[name]
        if node.op in ("reshape", "broadcast"):
            return self.build(node.args[0], ((node.op, tuple(node.attrs["shape"])), *views))
        build_special = getattr(self, f"_{node.op}", None)
        if build_special is not None:
            return build_special(node, views)
        if node.op not in FUNCTIONS:
            raise UnsupportedKernelError(node.op)
        if node.type.dtype not in ("float32", "bool"):
            raise UnsupportedKernelError(f"{node.op} on {node.type.dtype}")
        return ElementExpr(node.op, tuple(self._build_operands(node, views)), dict(node.attrs))

    def _build_operands(self, node: Node, views: Views) -> Iterator[ElementExpr]:
        for arg in node.args:
            yield self._build_broadcast(arg, node.type.shape, views)

    def _build_broadcast(self, arg: str, shape: IntTuple, views: Views) -> ElementExpr:
        stored_shape = self.operands[arg].layout.shape if arg in self.operands else None
        operand_shape = stored_shape if stored_shape is not None else self.nodes[arg].type.shape
        return self.build(arg, views if operand_shape == shape else (("broadcast", shape), *views))

    def _build_load(self, operand: KernelOperand, layout: Layout, views: Views) -> ElementExpr:
        if operand.dtype not in DTYPES:
            raise UnsupportedKernelError(operand.dtype)
        place = MemoryRef(
            operand.address + layout.offset * _DTYPE_BYTES[operand.dtype],
            self.align_strides(layout, views),
            operand.dtype,
            is_local=operand.is_local,
        )
        return ElementExpr("load", ref=place)

    def align_strides(self, layout: Layout, views: Views) -> IntTuple:
        """The strides of a layout, seen through views, along the axes of the domain."""
        for op, shape in (*views, ("broadcast", self.domain)):
            if op == "broadcast" and math.prod(shape) == math.prod(layout.shape):
                op = "reshape"
            lower = op == "broadcast" and len(shape) < len(layout.shape)
            if lower or math.prod(shape) < math.prod(layout.shape):
                raise UnsupportedKernelError("values of a larger domain")
            kind = TensorType(shape)
            view_layout = compute_view_layout(
                layout, Node("", op, (), Attrs({"shape": shape}), kind)
            )
            if view_layout is None:
                raise UnsupportedKernelError("a view that no strides express")
            layout = view_layout
        return tuple(0 if s == 1 else t for s, t in zip(layout.shape, layout.strides, strict=True))

    # operators that are more than a function of elements

    def _cast(self, node: Node, views: Views) -> ElementExpr:
        (x,) = self._build_operands(node, views)
        if node.attrs["dtype"] != "float32":
            raise UnsupportedKernelError(f"cast to {node.attrs['dtype']}")
        return ElementExpr("float", (x,))

    def _load_moment(self, node: Node, name: str, index: int, views: Views) -> ElementExpr:
        """Mean (0) or variance (1) of `[2, kept axes]`, spread to the node's shape."""
        if name not in self.operands:
            raise UnsupportedKernelError("moments that are not in memory")
        operand = self.operands[name]
        layout, axes, shape = operand.layout, node.attrs["axes"], node.type.shape
        if OPS[node.op].kind == "reduce":
            shape = self._shape(node.args[1])
        kept = iter(layout.strides[1:])
        strides = tuple(0 if a in axes else next(kept) for a in range(len(shape)))
        offset = layout.offset + index * layout.strides[0]
        return self._build_load(operand, Layout(shape, strides, offset), views)

    def _shape(self, name: str) -> IntTuple:
        if name in self.operands:
            return self.operands[name].layout.shape
        return self.nodes[name].type.shape

    def _reciprocal_std(self, node: Node, name: str, views: Views) -> ElementExpr:
        return ElementExpr(
            "rstd", (self._load_moment(node, name, 1, views),), {"eps": node.attrs["eps"]}
        )

    def _normalize(self, node: Node, views: Views) -> ElementExpr:
        x, m = node.args
        centred = ElementExpr(
            "sub",
            (
                self._build_broadcast(x, node.type.shape, views),
                self._load_moment(node, m, 0, views),
            ),
        )
        return ElementExpr("mul", (centred, self._reciprocal_std(node, m, views)))

    def _rescale(self, node: Node, views: Views) -> ElementExpr:
        g, m = node.args
        return ElementExpr(
            "mul",
            (
                self._build_broadcast(g, node.type.shape, views),
                self._reciprocal_std(node, m, views),
            ),
        )

    def _moments_grad(self, node: Node, views: Views) -> ElementExpr:
        g, x, m = node.args
        count = math.prod(node.type.shape[a] for a in node.attrs["axes"])
        slope = ElementExpr("mul", (self._load_moment(node, g, 1, views), make_constant(2 / count)))
        level = ElementExpr("mul", (self._load_moment(node, g, 0, views), make_constant(1 / count)))
        image = self._build_broadcast(x, node.type.shape, views)
        centred = ElementExpr("sub", (image, self._load_moment(node, m, 0, views)))
        return ElementExpr("add", (ElementExpr("mul", (centred, slope)), level))

    def _adam_direction(self, node: Node, views: Views) -> ElementExpr:
        m, v, step = (self._build_broadcast(a, node.type.shape, views) for a in node.args)
        scale = ElementExpr("unbias", (step,), {"beta": node.attrs["beta1"], "root": False})
        root = ElementExpr("unbias", (step,), {"beta": node.attrs["beta2"], "root": True})
        denominator = ElementExpr("mul", (ElementExpr("sqrt", (v,)), root))
        return ElementExpr(
            "div",
            (
                ElementExpr("mul", (m, scale)),
                ElementExpr("add", (denominator, make_constant(node.attrs["eps"]))),
            ),
        )

    def _dropout(self, node: Node, views: Views) -> ElementExpr:
        if math.prod(node.type.shape) != math.prod(self.domain):
            raise UnsupportedKernelError("dropout of a value that is stretched afterwards")
        args = tuple(self._build_operands(node, views))
        return ElementExpr("dropout", args, dict(node.attrs))

    def _pad(self, node: Node, views: Views) -> ElementExpr:
        name, a = node.args[0], node.attrs
        if views or node.type.shape != self.domain or name not in self.operands:
            raise UnsupportedKernelError("padding of a value that is seen through views")
        operand = self.operands[name]
        layout, low, interior = operand.layout, a["low"], a["interior"]
        last = layout.strides[-1] == 1 or layout.shape[-1] == 1
        if operand.dtype != "float32" or len(low) > 4 or interior[-1] or not last:
            raise UnsupportedKernelError("padding between channels")
        address = operand.address + 4 * layout.offset
        place = MemoryRef(
            address, layout.strides, pad=(low, interior, layout.shape), fill=a["value"]
        )
        return ElementExpr("load", ref=place)


_DTYPE_BYTES = {"float32": 4, "uint8": 1, "bool": 1, "int32": 4}
