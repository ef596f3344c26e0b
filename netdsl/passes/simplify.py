"""Simplification: removes no-ops, folds constants, and merges views of views."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from netdsl.ir.builder import Builder, is_float
from netdsl.ops import OPS, ops_with
from netdsl.ops.op import broadcast_shapes
from netdsl.passes.rewrite import Rule, Rules, rewrite_graph
from netdsl.types import Graph, Node, TensorType


def simplify(graph: Graph) -> Graph:
    """Computes the same values with fewer nodes. Sums and products are never reordered, so no
    rounding changes; only a zero may lose its sign."""
    return rewrite_graph(graph, SIMPLIFY_RULES)


def _find_repeated_constant(b: Builder, x: Node) -> Node | None:
    """Returns the scalar constant that every element of `x` equals, if there is one. Rules turn
    other views of such a constant into its broadcast."""
    bare = b.nodes[x.args[0]] if x.op == "broadcast" else x
    return bare if bare.op == "const" and bare.type.rank == 0 else None


def _is_constant(b: Builder, x: Node, value: float) -> bool:
    constant = _find_repeated_constant(b, x)
    return constant is not None and constant.attrs["value"] == value


def _make_identity_rule(operand: int, value: float) -> Rule:
    """`x op value` is x, if the result has x's shape."""

    def rule(b: Builder, x: Node, z: Node) -> Node | None:
        operand_kept, other = (z, x) if operand == 0 else (x, z)
        wide = operand_kept.type.shape == _broadcast_shape(x, z)
        return operand_kept if wide and _is_constant(b, other, value) else None

    return rule


def _broadcast_shape(x: Node, z: Node) -> tuple[int, ...]:
    return broadcast_shapes(x.type.shape, z.type.shape)


def _make_broadcast_removal_rule(op: str) -> Rule:
    """An operator that broadcasts its operands itself needs no `broadcast` before it."""

    def rule(b: Builder, *args: Node) -> Node | None:
        bare = [b.nodes[a.args[0]] if a.op == "broadcast" else a for a in args]
        shape = broadcast_shapes(*(a.type.shape for a in args))
        same = broadcast_shapes(*(a.type.shape for a in bare)) == shape
        changed = any(n is not a for n, a in zip(bare, args, strict=True))
        return b.emit(op, *bare) if changed and same else None

    return rule


def _make_constant_folding_rule(op: str) -> Rule:
    """An elementwise operator on repeated constants is a repeated constant."""

    def rule(b: Builder, *args: Node, **attrs: Any) -> Node | None:
        constants = [c for a in args if (c := _find_repeated_constant(b, a)) and is_float(c.type)]
        if len(constants) < len(args):
            return None
        result = OPS[op].shape(*(a.type for a in args), **attrs)
        if not {result.dtype, *(c.type.dtype for c in constants)} <= _FOLDABLE_DTYPES:
            return None
        with np.errstate(all="ignore"):
            values = (np.asarray(c.attrs["value"], c.type.dtype) for c in constants)
            value = float(OPS[op].reference(np, *values, **attrs))
        return _repeat_constant(b, value, result) if math.isfinite(value) else None

    return rule


def _repeat_constant(b: Builder, value: float, kind: TensorType) -> Node:
    return b.broadcast(b.const(value, kind.dtype), shape=kind.shape)


def _make_repeated_view_rule(op: str) -> Rule:
    """A view of a repeated constant is a broadcast of it."""

    def rule(b: Builder, x: Node, **attrs: Any) -> Node | None:
        constant = _find_repeated_constant(b, x)
        if constant is None:
            return None
        return b.broadcast(constant, shape=OPS[op].shape(x.type, **attrs).shape)

    return rule


def _simplify_reshape(b: Builder, x: Node, shape: tuple[int, ...]) -> Node | None:
    if x.type.shape == tuple(shape):
        return x
    return b.reshape(b.nodes[x.args[0]], shape=shape) if x.op == "reshape" else None


def _simplify_transpose(b: Builder, x: Node, perm: tuple[int, ...]) -> Node | None:
    if perm == tuple(range(x.type.rank)):
        return x
    if x.op != "transpose":
        return None
    inner = x.attrs["perm"]
    return b.transpose(b.nodes[x.args[0]], perm=tuple(inner[p] for p in perm))


def _simplify_broadcast(b: Builder, x: Node, shape: tuple[int, ...]) -> Node | None:
    if x.type.shape == tuple(shape):
        return x
    return b.broadcast(b.nodes[x.args[0]], shape=shape) if x.op == "broadcast" else None


def _simplify_slice(b: Builder, x: Node, start: Any, stop: Any, step: Any) -> Node | None:
    whole = all(a == 0 for a in start) and tuple(stop) == x.type.shape and set(step) <= {1}
    return x if whole else _simplify_slice_of_concat(b, x, start, stop, step)


def _simplify_slice_of_concat(b: Builder, x: Node, start: Any, stop: Any, step: Any) -> Node | None:
    """A slice that takes exactly one branch of a concatenation is that branch."""
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


def _simplify_pad(
    b: Builder, x: Node, low: Any, high: Any, interior: Any, value: float
) -> Node | None:
    return x if not any((*low, *high, *interior)) else None


def _simplify_concat(b: Builder, *xs: Node, axis: int) -> Node | None:
    return xs[0] if len(xs) == 1 else None


def _simplify_select(b: Builder, condition: Node, x: Node, z: Node) -> Node | None:
    wide = broadcast_shapes(condition.type.shape, x.type.shape) == x.type.shape
    return x if x.name == z.name and wide else None


_WIDER_DTYPES = {
    "bfloat16": ("float32", "float64"),
    "float16": ("float32", "float64"),
    "float32": ("float64",),
}
"""The types that represent every number of a type exactly."""


def _simplify_cast(b: Builder, x: Node, dtype: str) -> Node | None:
    """Removes a cast to the same type, and a round trip through a wider one."""
    if x.type.dtype == dtype:
        return x
    inner = b.nodes[x.args[0]] if x.op == "cast" else None
    is_round_trip = inner is not None and inner.type.dtype == dtype
    return inner if is_round_trip and x.type.dtype in _WIDER_DTYPES.get(dtype, ()) else None


def _simplify_neg(b: Builder, x: Node) -> Node | None:
    return b.nodes[x.args[0]] if x.op == "neg" else None


def _simplify_add_of_neg(b: Builder, x: Node, z: Node) -> Node | None:
    return b.sub(x, b.nodes[z.args[0]]) if z.op == "neg" else None


def _simplify_power(b: Builder, x: Node, exponent: float) -> Node | None:
    return x if exponent == 1 else None


def _simplify_dropout(
    b: Builder, x: Node, seed: Node, step: Node, rank: Node, key: str, rate: float
) -> Node | None:
    return x if rate == 0 else None


def _reduce_repeated_constant(b: Builder, x: Node, **attrs: Any) -> Node | None:
    """The mean and the maximum of a repeated constant are that constant."""
    constant = _find_repeated_constant(b, x)
    if constant is None:
        return None
    return b.broadcast(constant, shape=OPS["reduce_max"].shape(x.type, **attrs).shape)


def _simplify_reduce(b: Builder, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node | None:
    """A sum or maximum over axes of size one only drops them."""
    if any(x.type.shape[a] != 1 for a in axes):
        return None
    shape = x.type.shape
    remaining_shape = shape if keepdims else tuple(s for a, s in enumerate(shape) if a not in axes)
    return b.reshape(x, shape=remaining_shape)


_FOLDABLE_DTYPES = {"float64", "float32", "float16"}
_BROADCASTING_OPS = ops_with("broadcasting")
_CONSTANT_FOLDED_OPS = ops_with("constant_folding")

_OP_RULES: dict[str, tuple[Rule, ...]] = {
    "add": (_make_identity_rule(0, 0.0), _make_identity_rule(1, 0.0), _simplify_add_of_neg),
    "sub": (_make_identity_rule(1, 0.0),),
    "mul": (_make_identity_rule(0, 1.0), _make_identity_rule(1, 1.0)),
    "div": (_make_identity_rule(1, 1.0),),
    "neg": (_simplify_neg,),
    "power": (_simplify_power,),
    "select": (_simplify_select,),
    "cast": (_simplify_cast,),
    "reshape": (_make_repeated_view_rule("reshape"), _simplify_reshape),
    "transpose": (_make_repeated_view_rule("transpose"), _simplify_transpose),
    "broadcast": (_simplify_broadcast,),
    "slice": (_make_repeated_view_rule("slice"), _simplify_slice),
    "pad": (_simplify_pad,),
    "concat": (_simplify_concat,),
    "dropout": (_simplify_dropout,),
    "reduce_sum": (_simplify_reduce,),
    "reduce_mean": (_reduce_repeated_constant, _simplify_reduce),
    "reduce_max": (_reduce_repeated_constant, _simplify_reduce),
}

SIMPLIFY_RULES: Rules = {
    op: (
        *((_make_broadcast_removal_rule(op),) if op in _BROADCASTING_OPS else ()),
        *((_make_constant_folding_rule(op),) if op in _CONSTANT_FOLDED_OPS else ()),
        *_OP_RULES.get(op, ()),
    )
    for op in {*_BROADCASTING_OPS, *_CONSTANT_FOLDED_OPS, *_OP_RULES}
}
