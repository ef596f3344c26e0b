"""Draws examples: a seeded Draw, attributes over their whole range, arrays for operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from netdsl.ops.op import Draw, Example, Operand
from netdsl.parameter_types import (
    Boolean,
    Choice,
    Float,
    Integer,
    NoneLiteral,
    OneOf,
    ParameterType,
)
from netdsl.signature import Param
from netdsl.types import Array

T = TypeVar("T")


class RandomDraw:
    """A Draw from a NumPy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]


_SPECIAL_VALUES = (0.0, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.75, 0.9, 1.0, 1.5, 2.0, 3.0, 30.0, 1e3)
"""Magnitudes that formulas treat specially, and some whose reciprocal is not an integer."""
_ENDPOINT_MARGIN = 1e-6
"""Distance of a drawn number from an excluded end of its range."""
_MAX_INTEGER = 6
"""The largest integer drawn for an attribute, unless its range starts above."""


def draw_attributes(
    draw: Draw, params: Sequence[Param], **kind_overrides: ParameterType
) -> dict[str, Any]:
    """Draws values for the parameters that are numbers, booleans or words, over the whole range of
    their types.

    `kind_overrides` replaces types, by parameter name, if values at the ends of their range make
    finite differences inaccurate."""
    attributes: dict[str, Any] = {}
    for param in params:
        kind = kind_overrides.get(param.name, param.type)
        if isinstance(kind, OneOf):
            kind = draw.choice(kind.alternatives)
        match kind:
            case Float():
                attributes[param.name] = draw_number(draw, kind)
            case Integer(low, high):
                attributes[param.name] = draw.integer(low, min(high, max(low, _MAX_INTEGER)))
            case Boolean():
                attributes[param.name] = draw.choice((False, True))
            case Choice(names):
                attributes[param.name] = draw.choice(names)
            case NoneLiteral():
                attributes[param.name] = None
    return attributes


def draw_number(draw: Draw, kind: Float) -> float:
    """Draws a number that a type accepts: an end of its range, a special value, or one of any
    magnitude from 1e-6 to 1e3."""
    return (
        draw.choice(_special_values(kind))
        if draw.choice((True, False))
        else _draw_in_range(draw, kind)
    )


def _special_values(kind: Float) -> list[float]:
    ends = (kind.low, kind.high, kind.above + _ENDPOINT_MARGIN, kind.below - _ENDPOINT_MARGIN)
    signed = (*_SPECIAL_VALUES, *(-x for x in _SPECIAL_VALUES[1:]), *ends)
    return [x for x in dict.fromkeys(signed) if np.isfinite(x) and _is_in_range(kind, x)]


def _draw_in_range(draw: Draw, kind: Float) -> float:
    low, high = max(kind.low, kind.above), min(kind.high, kind.below)
    if np.isfinite(high - low):
        return low + (high - low) * draw.integer(1, 9999) / 10000
    size = draw.integer(1000, 9999) * 10.0 ** draw.integer(-9, -1)
    if np.isfinite(low):
        return low + size
    return high - size if np.isfinite(high) else draw.choice((size, -size))


def _is_in_range(kind: Float, x: float) -> bool:
    return kind.low <= x <= kind.high and kind.above < x < kind.below


def draw_operand(operand: Operand, rng: np.random.Generator) -> Array:
    """Draws an array for one operand, from the distribution that its example specifies."""
    kind, distribution = operand.type, operand.distribution
    if distribution.startswith("below:"):
        return rng.integers(0, int(distribution.removeprefix("below:")), kind.shape).astype(
            kind.dtype
        )
    if distribution == "bool":
        return rng.random(kind.shape) < 0.5
    if distribution == "positive":
        return (0.5 + 1.5 * rng.random(kind.shape)).astype(kind.dtype)
    if distribution == "distinct":
        spread = rng.permutation(kind.size) + 0.5 * rng.random(kind.size)
        return (spread.reshape(kind.shape) / max(kind.size, 1) - 0.5).astype(kind.dtype)
    if distribution == "ties":
        return _draw_ties(kind.shape, rng).astype(kind.dtype)
    return rng.standard_normal(kind.shape).astype(kind.dtype)


def _draw_ties(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Integers from -1 to 1, with 0 of either sign; half of the rows hold NaN or infinity."""
    plain = rng.choice(np.array([-1.0, -0.0, 0.0, 1.0]), shape)
    odd = rng.choice(np.array([np.nan, np.inf, -np.inf]), shape)
    odd_rows = rng.random((*shape[:-1], 1)) < 0.5
    return np.where(odd_rows & (rng.random(shape) < 0.3), odd, plain)


def draw_operands(example: Example, rng: np.random.Generator) -> list[Array]:
    return [draw_operand(o, rng) for o in example.operands]
