"""Collective operators: values that all ranks of a run compute together."""

from __future__ import annotations

from typing import Any

from netdsl.ops.op import Draw, Example, Op, draw_shape, float_operands
from netdsl.parameter_types import Integer
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType


def _all_reduce_shape(x: TensorType, bucket: int) -> TensorType:
    return x


def _all_reduce(xp: Any, x: Array, bucket: int) -> Array:
    """What a single rank computes. With more of them, a backend asks its communicator."""
    return x


def _all_reduce_vjp(b: Emitter, g: Node, y: Node, x: Node) -> Node:
    """Every rank's loss depends on the sum, so the gradients are summed as well."""
    return b.all_reduce(g, bucket=0)


def _example(draw: Draw) -> Example:
    return Example(float_operands(draw_shape(draw)), {"bucket": draw.integer(0, 3)})


OPS = (
    Op(
        name="all_reduce",
        kind="collective",
        operands=("x",),
        shape=_all_reduce_shape,
        reference=_all_reduce,
        draw_example=_example,
        attrs=(Param("bucket", Integer(0), 0),),
        vjp=(_all_reduce_vjp,),
        doc="the sum over all ranks of a run, of which each computes its own `x`; those of one "
        "`bucket` (from 1) are reduced at a time (Li et al. 2020, PyTorch Distributed)",
    ),
)
