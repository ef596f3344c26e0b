"""Functions that array modules lack, for references."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from netdsl.types import Array

_CENTRE = 0.46875
_NEAR_NUMERATOR = (
    *(1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2),
    3.20937758913846947e3,
)
_NEAR_DENOMINATOR = (
    *(1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3),
    2.84423683343917062e3,
)
_FAR_NUMERATOR = (
    *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1),
    *(2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3),
    1.23033935479799725e3,
)
_FAR_DENOMINATOR = (
    *(1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2),
    *(1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3),
    1.23033935480374942e3,
)


class SpecialFunctions(ABC):
    """What a namespace inherits that has these functions itself, unlike an array module."""

    @abstractmethod
    def erf(self, x: Any) -> Any: ...


def erf(xp: Any, x: Array) -> Array:
    """The error function, computed in float64 to 4 units in the last place by the first two of
    Cody's rational approximations (Math. Comp. 23, 1969, 631-637)."""
    if isinstance(xp, SpecialFunctions):
        return xp.erf(x)
    wide = x.astype("float64")
    magnitude = xp.minimum(xp.abs(wide), 6.0)  # beyond, float64 has nothing between erf and 1
    square = magnitude * magnitude
    near = wide * _horner(square, _NEAR_NUMERATOR) / _horner(square, _NEAR_DENOMINATOR)
    rest = _horner(magnitude, _FAR_NUMERATOR) / _horner(magnitude, _FAR_DENOMINATOR)
    far = xp.copysign(1 - xp.exp(-square) * rest, wide)
    return xp.where(magnitude <= _CENTRE, near, far).astype(x.dtype)


def _horner(x: Array, coefficients: Sequence[float]) -> Array:
    first, second, *rest = coefficients
    total = first * x + second
    for c in rest:  # in place: half of the time of a large array is that of new memory
        total *= x
        total += c
    return total
