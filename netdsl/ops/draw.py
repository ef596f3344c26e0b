"""Choosing examples: a seeded Draw, and arrays for an example's operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from netdsl.ops.op import Example, Operand
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
