"""What reductions write, as expressions of what they have accumulated, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from netdsl.lower.expression import Expr
from netdsl.lower.formula import ElementSymbol, SymbolicNamespace
from netdsl.lower.trace import Reduction

Results = tuple[ElementSymbol, ...]


def _leaf(name: str) -> Expr:
    return Expr(name, "float64")


@dataclass(frozen=True)
class ReductionResults:
    """The results of one reduction at one place: a number, or the two rows of moments. An engine
    gives its leaves their values: `sums` (of moments: the sum and the sum of squares of differences
    from `shift`), the `count` of elements, and the `variance` of the moments that it reads."""

    reduction: Reduction

    @cached_property
    def sums(self) -> tuple[Expr, ...]:
        count = sum(a.sum_count for a in self.reduction.accumulators)
        return tuple(_leaf(f"sum{i}") for i in range(count))

    @cached_property
    def count(self) -> Expr:
        return _leaf("count")

    @cached_property
    def shift(self) -> Expr:
        return _leaf("shift")

    @cached_property
    def variance(self) -> Expr:
        return _leaf("variance")

    @cached_property
    def values(self) -> tuple[Expr, ...]:
        """What is written, one expression for each row."""
        node = self.reduction.node
        found = _RESULTS[node.op](SymbolicNamespace(), self, node.attrs)
        return tuple(s.expr for s in found)

    def symbols(self) -> list[ElementSymbol]:
        return [ElementSymbol(e) for e in self.sums]


def _total(f: SymbolicNamespace, r: ReductionResults, attrs: Mapping[str, Any]) -> Results:
    return tuple(r.symbols())


def _mean(f: SymbolicNamespace, r: ReductionResults, attrs: Mapping[str, Any]) -> Results:
    (total,) = r.symbols()
    return (total / ElementSymbol(r.count),)


def _moments(f: SymbolicNamespace, r: ReductionResults, attrs: Mapping[str, Any]) -> Results:
    total, squares = r.symbols()
    count = ElementSymbol(r.count)
    mean = total / count
    return ElementSymbol(r.shift) + mean, f.maximum(squares / count - mean * mean, 0)


def _normalize_dmoments(
    f: SymbolicNamespace, r: ReductionResults, attrs: Mapping[str, Any]
) -> Results:
    total, centred = r.symbols()
    rstd = 1 / f.sqrt(ElementSymbol(r.variance) + attrs["eps"])
    return -total * rstd, -0.5 * centred * rstd * rstd * rstd


def _trust_ratio(f: SymbolicNamespace, r: ReductionResults, attrs: Mapping[str, Any]) -> Results:
    weight_norm, gradient_norm = (f.sqrt(s) for s in r.symbols())
    scale = gradient_norm + attrs["weight_decay"] * weight_norm + attrs["eps"]
    ratio = attrs["trust"] * weight_norm / scale
    return (f.where(weight_norm > 0, f.where(gradient_norm > 0, ratio, 1.0), 1.0),)


_RESULTS: Mapping[str, Callable[..., Results]] = {
    "reduce_sum": _total,
    "reduce_mean": _mean,
    "reduce_max": _total,
    "moments": _moments,
    "normalize_dmoments": _normalize_dmoments,
    "trust_ratio": _trust_ratio,
}
