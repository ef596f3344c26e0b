"""Expressions of elementwise operators, by calling their references with symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.lower.expression import Constant, Expr
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.ops import OPS
from netdsl.ops.special import SpecialFunctions


def trace_formula(op: str, dtype: str, args: Sequence[Expr], attrs: Mapping[str, Any]) -> Expr:
    """Returns what an elementwise operator computes of one element of each operand; `dtype` is its
    result's. Raises UnsupportedKernelError if its reference calls a function that no primitive
    stands for.

    A product that is an operand of a sum in the same reference becomes one `fma`. The rule looks at
    one operator at a time, so that a value that two kernels compute has the same bits in both."""
    symbols = [ElementSymbol(a) for a in args]
    found = OPS[op].reference(SymbolicNamespace(), *symbols, **attrs)
    if not isinstance(found, ElementSymbol):
        return Constant("const", dtype, value=float(found))
    return found.expr


@dataclass(frozen=True, eq=False)
class ElementSymbol:
    """An array of any shape in a reference, standing for one of its elements."""

    expr: Expr
    is_product: bool = False

    @property
    def dtype(self) -> str:
        return self.expr.dtype

    def __add__(self, other: Any) -> ElementSymbol:
        other = self.lift(other)
        if self.is_product:
            return _apply("fma", *self._factors(), other)
        if other.is_product:
            return _apply("fma", *other._factors(), self)
        return _apply("add", self, other)

    def __radd__(self, other: Any) -> ElementSymbol:
        return self.lift(other) + self

    def __sub__(self, other: Any) -> ElementSymbol:
        return _apply("sub", self, self.lift(other))

    def __rsub__(self, other: Any) -> ElementSymbol:
        return _apply("sub", self.lift(other), self)

    def __mul__(self, other: Any) -> ElementSymbol:
        return ElementSymbol(_apply("mul", self, self.lift(other)).expr, is_product=True)

    def __rmul__(self, other: Any) -> ElementSymbol:
        return self.lift(other) * self

    def __truediv__(self, other: Any) -> ElementSymbol:
        return _apply("div", self, self.lift(other))

    def __rtruediv__(self, other: Any) -> ElementSymbol:
        return _apply("div", self.lift(other), self)

    def __neg__(self) -> ElementSymbol:
        return _apply("neg", self)

    def __pow__(self, exponent: float) -> ElementSymbol:
        """Exponents that are simpler operations are computed by those."""
        if exponent == 2:
            return self * self
        if exponent == 1:
            return self
        if exponent == -1:
            return 1 / self
        if exponent == 0.5:
            return _apply("sqrt", self)
        return _apply("pow", self, self.lift(exponent))

    def __rpow__(self, base: float) -> ElementSymbol:
        return _apply("pow", self.lift(base), self)

    def __gt__(self, other: Any) -> ElementSymbol:
        return _compare("greater", self, self.lift(other))

    def __lt__(self, other: Any) -> ElementSymbol:
        return _compare("greater", self.lift(other), self)

    def __eq__(self, other: object) -> Any:
        return _compare("equal", self, self.lift(other))

    __hash__ = None  # type: ignore[assignment]

    def astype(self, dtype: Any) -> ElementSymbol:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        return self if name == self.dtype else ElementSymbol(Expr("cast", name, (self.expr,)))

    def copy(self) -> ElementSymbol:
        return self

    def lift(self, other: Any) -> ElementSymbol:
        """A number as a constant of this symbol's type."""
        if isinstance(other, ElementSymbol):
            return other
        return ElementSymbol(Constant("const", self.dtype, value=float(other)))

    def _factors(self) -> tuple[ElementSymbol, ElementSymbol]:
        x, z = self.expr.args
        return ElementSymbol(x), ElementSymbol(z)


def _apply(op: str, *args: ElementSymbol) -> ElementSymbol:
    return ElementSymbol(Expr(op, args[0].dtype, tuple(a.expr for a in args)))


def _compare(op: str, x: ElementSymbol, z: ElementSymbol) -> ElementSymbol:
    return ElementSymbol(Expr(op, "bool", (x.expr, z.expr)))


class SymbolicNamespace(SpecialFunctions):
    """The functions of an array module that a reference may call on symbols."""

    def where(self, condition: ElementSymbol, x: Any, z: Any) -> ElementSymbol:
        typed = x if isinstance(x, ElementSymbol) else z
        if not isinstance(typed, ElementSymbol):
            raise UnsupportedKernelError("its reference selects from numbers without a type")
        args = (condition.expr, typed.lift(x).expr, typed.lift(z).expr)
        return ElementSymbol(Expr("select", typed.dtype, args))

    def maximum(self, x: Any, z: Any) -> ElementSymbol:
        return _commute("maximum", x, z)

    def minimum(self, x: Any, z: Any) -> ElementSymbol:
        return _commute("minimum", x, z)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """Numbers stay numbers: they take the type of what they meet."""
        return x.astype(dtype) if isinstance(x, ElementSymbol) and dtype is not None else x

    def isfinite(self, x: ElementSymbol) -> ElementSymbol:
        return ElementSymbol(Expr("is_finite", "bool", (x.expr,)))

    def abs(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("abs", x)

    def exp(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("exp", x)

    def expm1(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("expm1", x)

    def log(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("log", x)

    def log1p(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("log1p", x)

    def erf(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("erf", x)

    def sqrt(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("sqrt", x)

    def tanh(self, x: ElementSymbol) -> ElementSymbol:
        return _apply("tanh", x)

    def __getattr__(self, name: str) -> Any:
        raise UnsupportedKernelError(f"its reference calls `{name}`, which is not a primitive")


def _commute(op: str, x: Any, z: Any) -> ElementSymbol:
    """A constant operand comes last: engines have shorter code for it."""
    if not isinstance(x, ElementSymbol):
        x, z = z, x
    return _apply(op, x, x.lift(z))
