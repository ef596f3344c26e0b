"""The expression IR: what one element of a kernel's result is, as a graph of primitives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netdsl.lower.index_terms import Digit, Term
from netdsl.plan.placement import Placement

PRIMITIVES = {
    "add": 2,
    "sub": 2,
    "mul": 2,
    "div": 2,
    "fma": 3,
    "neg": 1,
    "abs": 1,
    "maximum": 2,
    "minimum": 2,
    "greater": 2,
    "equal": 2,
    "is_finite": 1,
    "select": 3,
    "cast": 1,
    "exp": 1,
    "expm1": 1,
    "log": 1,
    "log1p": 1,
    "sqrt": 1,
    "tanh": 1,
    "erf": 1,
    "pow": 2,
}
"""The functions of elements that every engine renders, and their numbers of operands.
`fma(x, y, z)` is x * y + z, rounded once; `pow`'s base or exponent is a constant."""


@dataclass(frozen=True, eq=False, slots=True)
class Expr:
    """A primitive applied to expressions; `dtype` is the element type of its value. Equal only to
    itself: whatever is computed once is one object."""

    op: str
    dtype: str
    args: tuple[Expr, ...] = ()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Constant(Expr):
    value: float


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class LinearIndex(Expr):
    """The row-major index of an element in its own value, behind those of the ranks before (int64):
    the argument is the rank, and each rank has `size` elements."""

    terms: tuple[Term, ...]
    size: int


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class DropoutMask(Expr):
    """Whether dropout keeps an element (bool): arguments are its `LinearIndex`, seed and step. An
    element is kept if its Philox word (`ops/dropout.py`) for `key` is at least `threshold`."""

    key: int
    threshold: int


@dataclass(frozen=True, slots=True)
class PaddedAxis:
    """An axis that is read through padding: coordinate c is element `(c - low) / step` if that is
    an integer from 0 to `size` - 1. With `inner_stride`, the remainder counts too, in steps of
    its own: an axis that lies in two. `axis` is its number in the padded value."""

    digits: tuple[Digit, ...]
    low: int
    step: int
    size: int
    stride: int
    inner_stride: int = 0
    axis: int = 0


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Load(Expr):
    """An element of a value in memory: `offset` plus its terms, in elements from the start of the
    buffer; `fill` where a padded axis leads outside."""

    place: Placement
    terms: tuple[Term, ...]
    offset: int
    padded_axes: tuple[PaddedAxis, ...] = ()
    fill: float = 0.0


def iter_expressions(roots: Iterable[Expr]) -> Iterator[Expr]:
    """All expressions below `roots` and these themselves, operands first, each once."""
    seen: set[int] = set()

    def visit(e: Expr) -> Iterator[Expr]:
        if id(e) in seen:
            return
        seen.add(id(e))
        for a in e.args:
            yield from visit(a)
        yield e

    for root in roots:
        yield from visit(root)
