"""Choosing examples: a seeded Draw, attributes over their whole range, arrays for operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from netdsl.ops.op import Draw, Example, Operand
from netdsl.parameter_types import Boolean, Float, Integer, ParameterType
from netdsl.signature import Param
from netdsl.types import Array

T = TypeVar("T")


class RandomDraw:
    """A Draw that follows a NumPy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]


_MARKS = (0.0, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.75, 0.9, 1.0, 1.5, 2.0, 3.0, 30.0, 1e3)
"""Sizes of numbers that formulas treat in their own way, and some whose reciprocal is not whole."""
_NEAR = 1e-6
"""How near an end of its range a number is drawn that may not be the end itself."""
_MOST = 6
"""The largest whole number that an example counts anything by."""


def drawn(draw: Draw, params: Sequence[Param], **narrower: ParameterType) -> dict[str, Any]:
    """Values for the numbers, counts and flags among parameters, over all that their kinds allow.

    `narrower` gives other kinds to draw from, by name, where a value at the end of its range makes
    numbers of which no finite difference is right.
    """
    found = {}
    for param in params:
        kind = narrower.get(param.name, param.type)
        if isinstance(kind, Float):
            found[param.name] = number(draw, kind)
        elif isinstance(kind, Integer):
            found[param.name] = draw.whole(kind.low, min(kind.high, max(kind.low, _MOST)))
        elif isinstance(kind, Boolean):
            found[param.name] = draw.pick((False, True))
    return found


def number(draw: Draw, kind: Float) -> float:
    """A number that a kind accepts: an end of its range, a plain one, or one of any size from a
    millionth to a thousand."""
    return draw.pick(_marks(kind)) if draw.pick((True, False)) else _anywhere(draw, kind)


def _marks(kind: Float) -> list[float]:
    ends = (kind.low, kind.high, kind.above + _NEAR, kind.below - _NEAR)
    signed = (*_MARKS, *(-x for x in _MARKS[1:]), *ends)
    return [x for x in dict.fromkeys(signed) if np.isfinite(x) and _holds(kind, x)]


def _anywhere(draw: Draw, kind: Float) -> float:
    low, high = max(kind.low, kind.above), min(kind.high, kind.below)
    if np.isfinite(high - low):
        return low + (high - low) * draw.whole(1, 9999) / 10000
    size = draw.whole(1000, 9999) * 10.0 ** draw.whole(-9, -1)
    if np.isfinite(low):
        return low + size
    return high - size if np.isfinite(high) else draw.pick((size, -size))


def _holds(kind: Float, x: float) -> bool:
    return kind.low <= x <= kind.high and kind.above < x < kind.below


def operand_array(operand: Operand, rng: np.random.Generator) -> Array:
    """Numbers for one operand, of the sort that its example asks for."""
    kind, how = operand.type, operand.values
    if how.startswith("below:"):
        return rng.integers(0, int(how.removeprefix("below:")), kind.shape).astype(kind.dtype)
    if how == "bool":
        return rng.random(kind.shape) < 0.5
    if how == "positive":
        return (0.5 + 1.5 * rng.random(kind.shape)).astype(kind.dtype)
    if how == "distinct":
        spread = rng.permutation(kind.size) + 0.5 * rng.random(kind.size)
        return (spread.reshape(kind.shape) / max(kind.size, 1) - 0.5).astype(kind.dtype)
    if how == "ties":
        return _with_ties(kind.shape, rng).astype(kind.dtype)
    return rng.standard_normal(kind.shape).astype(kind.dtype)


def _with_ties(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Whole numbers from -1 to 1, 0 with either sign; half of the rows hold NaN or infinity."""
    plain = rng.choice(np.array([-1.0, -0.0, 0.0, 1.0]), shape)
    odd = rng.choice(np.array([np.nan, np.inf, -np.inf]), shape)
    odd_rows = rng.random((*shape[:-1], 1)) < 0.5
    return np.where(odd_rows & (rng.random(shape) < 0.3), odd, plain)


def arrays(example: Example, rng: np.random.Generator) -> list[Array]:
    return [operand_array(o, rng) for o in example.operands]
