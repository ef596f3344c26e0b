"""The distributions of initial values: how each is drawn, and its standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.types import Array

Ints = tuple[int, ...]
_PANEL_ROWS = 32
_TRUNCATED_DEVIATION = 0.8796256610342398
"""Of a standard normal distribution that ends at -2 and 2."""


@dataclass(frozen=True)
class Distribution:
    """`draw(rng, shape, scale, dtype)` returns an array, `deviation(shape, scale)` the standard
    deviation of its elements; `scale` is the distribution's parameter."""

    draw: Callable[[np.random.Generator, Ints, float, Any], Array]
    deviation: Callable[[Ints, float], float]


def _draw_normal(rng: np.random.Generator, shape: Ints, scale: float, dtype: Any) -> Array:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(scale)
    return values.astype(dtype, copy=False)


def _draw_uniform(rng: np.random.Generator, shape: Ints, scale: float, dtype: Any) -> Array:
    values = rng.random(shape, dtype=np.float32)
    values *= np.float32(2 * scale)
    values -= np.float32(scale)
    return values.astype(dtype, copy=False)


def _draw_truncated(rng: np.random.Generator, shape: Ints, scale: float, dtype: Any) -> Array:
    """A normal distribution, drawn again where it is more than two deviations from 0."""
    values = rng.standard_normal(shape, dtype=np.float32)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(np.count_nonzero(outside), dtype=np.float32)
    values *= np.float32(scale)
    return values.astype(dtype, copy=False)


def _draw_orthogonal(rng: np.random.Generator, shape: Ints, scale: float, dtype: Any) -> Array:
    """Saxe et al. 2014: the Q of a QR decomposition of normal values whose R has a positive
    diagonal, which makes it unique."""
    size = math.prod(shape)
    rows = shape[0] if shape else 1
    values = rng.standard_normal((rows, size // rows))
    is_tall = rows > size // rows
    vectors = np.ascontiguousarray(values.T) if is_tall else values
    _orthonormalize_rows(vectors)
    found = vectors.T if is_tall else vectors
    return (scale * found).reshape(shape).astype(dtype)


def _orthonormalize_rows(a: Array) -> None:
    """Gram-Schmidt in panels, in place. Not by LAPACK, whose last digits depend on the number of
    threads; the sums of `einsum` do not."""
    for start in range(0, len(a), _PANEL_ROWS):
        panel, after = a[start : start + _PANEL_ROWS], a[start + _PANEL_ROWS :]
        for i, row in enumerate(panel):
            row /= np.sqrt(np.einsum("j,j->", row, row))
            below = panel[i + 1 :]
            below -= np.einsum("i,j->ij", np.einsum("ij,j->i", below, row), row)
        after -= np.einsum("ik,kj->ij", np.einsum("ij,kj->ik", after, panel), panel)


def _orthogonal_deviation(shape: Ints, scale: float) -> float:
    """Each of the shorter side's vectors has the length `scale`."""
    return scale / math.sqrt(max(shape[0], math.prod(shape[1:])))


DISTRIBUTIONS: dict[str, Distribution] = {
    "constant": Distribution(
        lambda rng, shape, scale, dtype: np.full(shape, scale, dtype=dtype),
        lambda shape, scale: 0.0,
    ),
    "normal": Distribution(_draw_normal, lambda shape, scale: scale),
    "uniform": Distribution(_draw_uniform, lambda shape, scale: scale / math.sqrt(3)),
    "trunc_normal": Distribution(
        _draw_truncated, lambda shape, scale: scale * _TRUNCATED_DEVIATION
    ),
    "orthogonal": Distribution(_draw_orthogonal, _orthogonal_deviation),
}
