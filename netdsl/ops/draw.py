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
    return rng.standard_normal(kind.shape).astype(kind.dtype)


def arrays(example: Example, rng: np.random.Generator) -> list[Array]:
    return [operand_array(o, rng) for o in example.operands]
