"""The operator table: every operator of the IR by name."""

from __future__ import annotations

from netdsl.ops import (
    activation,
    collective,
    conv,
    dropout,
    elementwise,
    leaf,
    linear,
    loss,
    norm,
    optimizer,
    pool,
    reduce,
    shape,
)
from netdsl.ops.op import Op, Trait

_FAMILIES = (
    leaf,
    elementwise,
    activation,
    reduce,
    shape,
    linear,
    conv,
    pool,
    norm,
    loss,
    dropout,
    optimizer,
    collective,
)

OPS: dict[str, Op] = {op.name: op for family in _FAMILIES for op in family.OPS}


def ops_with(trait: Trait) -> tuple[str, ...]:
    """The names of the operators that have a trait, in the order of the table."""
    return tuple(name for name, op in OPS.items() if trait in op.traits)
