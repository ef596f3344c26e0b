"""Simplify: what changes nothing goes, what is known is computed, views of views become one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from netdsl.ir.builder import Builder, float_of
from netdsl.ops import OPS
from netdsl.ops.op import broadcast_shapes
from netdsl.passes.rewrite import Rule, Rules, rewrite
from netdsl.types import Graph, Node


def simplify(graph: Graph) -> Graph:
    """The same values from fewer nodes; sums and products are never reordered, so no
    rounding changes; only a zero may lose its sign."""
    return rewrite(graph, RULES)


def _is(node: Node, value: float) -> bool:
    return node.op == "const" and node.attrs["value"] == value


def _neutral(operand: int, value: float) -> Rule:
    """`x op value` is x, where the result has x's shape."""

    def rule(b: Builder, x: Node, z: Node) -> Node | None:
        kept, other = (z, x) if operand == 0 else (x, z)
        wide = kept.type.shape == _joined(x, z)
        return kept if _is(other, value) and wide else None

    return rule


def _joined(x: Node, z: Node) -> tuple[int, ...]:
    return broadcast_shapes(x.type.shape, z.type.shape)


def _unstretched(op: str) -> Rule:
    """An operator that stretches its operands itself needs no `broadcast` before it."""

    def rule(b: Builder, *args: Node) -> Node | None:
        bare = [b.nodes[a.args[0]] if a.op == "broadcast" else a for a in args]
        shape = broadcast_shapes(*(a.type.shape for a in args))
        same = broadcast_shapes(*(a.type.shape for a in bare)) == shape
        changed = any(n is not a for n, a in zip(bare, args, strict=True))
        return b.emit(op, *bare) if changed and same else None

    return rule


def _known(op: str) -> Rule:
    """An operator on scalar constants is a constant."""

    def rule(b: Builder, *args: Node, **attrs: Any) -> Node | None:
        scalar = all(a.op == "const" and a.type.rank == 0 and float_of(a.type) for a in args)
        kind = OPS[op].shape(*(a.type for a in args), **attrs) if scalar else None
        if kind is None or not {kind.dtype, *(a.type.dtype for a in args)} <= _COMPUTED:
            return None
        with np.errstate(all="ignore"):
            values = (np.asarray(a.attrs["value"], a.type.dtype) for a in args)
            value = float(OPS[op].reference(np, *values, **attrs))
        return b.const(value, kind.dtype) if math.isfinite(value) else None

    return rule


def _reshape(b: Builder, x: Node, shape: tuple[int, ...]) -> Node | None:
    if x.type.shape == tuple(shape):
        return x
    return b.reshape(b.nodes[x.args[0]], shape=shape) if x.op == "reshape" else None


def _transpose(b: Builder, x: Node, perm: tuple[int, ...]) -> Node | None:
    if perm == tuple(range(x.type.rank)):
        return x
    if x.op != "transpose":
        return None
    inner = x.attrs["perm"]
    return b.transpose(b.nodes[x.args[0]], perm=tuple(inner[p] for p in perm))


def _broadcast(b: Builder, x: Node, shape: tuple[int, ...]) -> Node | None:
    if x.type.shape == tuple(shape):
        return x
    return b.broadcast(b.nodes[x.args[0]], shape=shape) if x.op == "broadcast" else None


def _slice(b: Builder, x: Node, start: Any, stop: Any, step: Any) -> Node | None:
    whole = all(a == 0 for a in start) and tuple(stop) == x.type.shape and set(step) <= {1}
    return x if whole else _sliced_concat(b, x, start, stop, step)


def _sliced_concat(b: Builder, x: Node, start: Any, stop: Any, step: Any) -> Node | None:
    """A slice that takes exactly one branch out of a concatenation is that branch."""
    if x.op != "concat" or set(step) != {1}:
        return None
    axis, at = x.attrs["axis"], 0
    rest = all(
        (a, z) == (0, s)
        for i, (a, z, s) in enumerate(zip(start, stop, x.type.shape, strict=True))
        if i != axis
    )
    for name in x.args:
        size = b.nodes[name].type.shape[axis]
        if rest and (start[axis], stop[axis]) == (at, at + size):
            return b.nodes[name]
        at += size
    return None


def _pad(b: Builder, x: Node, low: Any, high: Any, interior: Any, value: float) -> Node | None:
    return x if not any((*low, *high, *interior)) else None


def _concat(b: Builder, *xs: Node, axis: int) -> Node | None:
    return xs[0] if len(xs) == 1 else None


def _select(b: Builder, condition: Node, x: Node, z: Node) -> Node | None:
    wide = broadcast_shapes(condition.type.shape, x.type.shape) == x.type.shape
    return x if x.name == z.name and wide else None


_WIDER = {
    "bfloat16": ("float32", "float64"),
    "float16": ("float32", "float64"),
    "float32": ("float64",),
}
"""Types that hold every number of a type."""


def _cast(b: Builder, x: Node, dtype: str) -> Node | None:
    """A cast to the own type, and the way there and back through a wider one."""
    if x.type.dtype == dtype:
        return x
    inner = b.nodes[x.args[0]] if x.op == "cast" else None
    back = inner is not None and inner.type.dtype == dtype
    return inner if back and x.type.dtype in _WIDER.get(dtype, ()) else None


def _neg(b: Builder, x: Node) -> Node | None:
    return b.nodes[x.args[0]] if x.op == "neg" else None


def _add_negative(b: Builder, x: Node, z: Node) -> Node | None:
    return b.sub(x, b.nodes[z.args[0]]) if z.op == "neg" else None


def _power(b: Builder, x: Node, exponent: float) -> Node | None:
    return x if exponent == 1 else None


def _dropout(b: Builder, x: Node, seed: Node, step: Node, key: str, rate: float) -> Node | None:
    return x if rate == 0 else None


def _reduced(b: Builder, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node | None:
    """A sum or maximum over axes of one element only drops them."""
    if any(x.type.shape[a] != 1 for a in axes):
        return None
    shape = x.type.shape
    kept = shape if keepdims else tuple(s for a, s in enumerate(shape) if a not in axes)
    return b.reshape(x, shape=kept)


_COMPUTED = {"float64", "float32", "float16"}
_STRETCHING = ("add", "sub", "mul", "div", "maximum", "minimum", "equal", "greater", "select")
_FOLDED = ("add", "sub", "mul", "div", "maximum", "minimum", "neg", "sqrt", "power", "cast")

_OWN: dict[str, tuple[Rule, ...]] = {
    "add": (_neutral(0, 0.0), _neutral(1, 0.0), _add_negative),
    "sub": (_neutral(1, 0.0),),
    "mul": (_neutral(0, 1.0), _neutral(1, 1.0)),
    "div": (_neutral(1, 1.0),),
    "neg": (_neg,),
    "power": (_power,),
    "select": (_select,),
    "cast": (_cast,),
    "reshape": (_reshape,),
    "transpose": (_transpose,),
    "broadcast": (_broadcast,),
    "slice": (_slice,),
    "pad": (_pad,),
    "concat": (_concat,),
    "dropout": (_dropout,),
    "reduce_sum": (_reduced,),
    "reduce_mean": (_reduced,),
    "reduce_max": (_reduced,),
}

RULES: Rules = {
    op: (
        *((_unstretched(op),) if op in _STRETCHING else ()),
        *((_known(op),) if op in _FOLDED else ()),
        *_OWN.get(op, ()),
    )
    for op in {*_STRETCHING, *_FOLDED, *_OWN}
}
