"""Reductions of each row by itself: their sums stay in registers until the row ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from netdsl.backends.cpu.elementwise_functions import FUNCTIONS
from netdsl.backends.cpu.llvm_builder import (
    F32,
    F64,
    I32,
    Float64Scalar,
    Lanes,
    LlvmFunction,
    Value,
)
from netdsl.backends.cpu.memory_ref import MemoryRef
from netdsl.backends.cpu.reduction_finalizer import emit_result, reduction_signature
from netdsl.lower.reduction import ReductionResults
from netdsl.lower.trace import Accumulator, Reduction


@dataclass(frozen=True)
class RowResult:
    """A reduction over the last axes of a domain: where it writes what it finds for each row, and
    the variance that it reads."""

    reduction: Reduction
    targets: tuple[MemoryRef, ...]
    variance: MemoryRef | None

    @property
    def refs(self) -> list[MemoryRef]:
        return [*self.targets, *([self.variance] if self.variance else [])]

    def signature(self) -> Hashable:
        return reduction_signature(self.reduction)


class RowSums:
    """What is accumulated of one row: a vector for each number, and of moments the first element,
    from which differences are taken."""

    def __init__(self, f: LlvmFunction, accumulators: Sequence[Accumulator]) -> None:
        self.f, self.accumulators = f, accumulators
        self.lanes = Lanes(f)
        self.shifts: dict[int, Value] = {}
        self._joins = [
            "maximum" if a.kind == "max" else "add"
            for a in accumulators
            for _ in range(a.sum_count)
        ]
        self._cells = [f.b.alloca(self.lanes.float_type) for _ in self._joins]

    def begin_row(self, first_element: Callable[[Accumulator], Value]) -> None:
        for join, cell in zip(self._joins, self._cells, strict=True):
            start = -math.inf if join == "maximum" else 0.0
            self.f.b.store(self.lanes.const(start), cell)
        self.shifts = {id(a): first_element(a) for a in self.accumulators if a.kind == "moments"}

    def add(self, v: Lanes, which: int, x: Value) -> None:
        b, cell = self.f.b, self._cells[which]
        before = b.load(cell, typ=v.float_type)
        after = FUNCTIONS[self._joins[which]](v, before, x)
        b.store(after if v.mask is None else b.select(v.mask, after, before), cell)

    def end_row(
        self, row_results: Sequence[RowResult], count: Value, address: Callable[[MemoryRef], Value]
    ) -> None:
        """Writes the results of the row, whose place in memory is `address`."""
        b, v = self.f.b, Float64Scalar(self.f)
        totals = iter([self._total(i) for i in range(len(self._cells))])
        for r in row_results:
            results = ReductionResults(r.reduction)
            values = {id(e): next(totals) for e in results.sums} | {id(results.count): count}
            shift = self.shifts.get(id(r.reduction.accumulators[0]))
            if shift is not None:
                values[id(results.shift)] = b.fpext(_extract_first(self.f, shift), F64)
            if r.variance is not None:
                at = b.inttoptr(address(r.variance), F32.as_pointer())
                values[id(results.variance)] = b.fpext(b.load(at, typ=F32), F64)
            for e, target in zip(results.values, r.targets, strict=True):
                found = b.fptrunc(emit_result(v, e, values), F32)
                b.store(found, b.inttoptr(address(target), F32.as_pointer()))

    def _total(self, which: int) -> Value:
        """All lanes of a vector in one number, half by half."""
        b, n = self.f.b, self.lanes.count
        x, join = b.load(self._cells[which], typ=self.lanes.float_type), self._joins[which]
        while n > 1:
            n //= 2
            low, high = (_take_lanes(self.f, x, start, n) for start in (0, n))
            x = FUNCTIONS[join](self.lanes, low, high)
        return b.fpext(_extract_first(self.f, x), F64)


def _take_lanes(f: LlvmFunction, x: Value, start: int, count: int) -> Value:
    order = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
    return f.b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), order)


def _extract_first(f: LlvmFunction, x: Value) -> Value:
    return f.b.extract_element(x, ir.Constant(I32, 0))
