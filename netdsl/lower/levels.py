"""Hoisting levels: in which loop of a kernel's nest an expression is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum

from netdsl.lower.expression import Expr, LinearIndex, Load, iter_expressions


class Level(IntEnum):
    """What the value of an expression depends on. A kernel runs over rows, and in each row over
    lanes: what is `FIXED` is computed once, what is of a `LANE` (the scales and shifts of channels)
    once before the rows."""

    FIXED = 0
    LANE = 1
    ROW = 2


def assign_levels(
    roots: Iterable[Expr], level_of_leaf: Callable[[Load | LinearIndex], Level]
) -> dict[int, Level]:
    """Returns the level of every expression below `roots`, by its id: the highest of its operands';
    that of loads and indices depends on the engine's loops."""
    levels: dict[int, Level] = {}
    for e in iter_expressions(roots):
        if isinstance(e, Load | LinearIndex):
            levels[id(e)] = level_of_leaf(e)
        else:
            levels[id(e)] = max((levels[id(a)] for a in e.args), default=Level.FIXED)
    return levels
