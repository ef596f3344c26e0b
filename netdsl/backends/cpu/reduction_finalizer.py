"""Compiles the last stage of reductions: partial sums are added up, and results written."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from netdsl.backends.cpu.elementwise_functions import FUNCTIONS
from netdsl.backends.cpu.llvm_builder import (
    F32,
    F64,
    Float64Scalar,
    LlvmFunction,
    Value,
    const_i64,
)
from netdsl.backends.cpu.llvm_jit import compile_cached
from netdsl.backends.cpu.record import Record
from netdsl.lower.expression import Constant, Expr
from netdsl.lower.reduction import ReductionResults
from netdsl.lower.trace import Reduction


class ReductionArgs(Record):
    """Where sums were accumulated: bytes of a slot and of a sum in it; parts of a group; channels
    of a group, and bytes to the next one; a channel's sums lie in `repeat` runs of `width`
    elements, `period` bytes apart. `count` elements were summed up for each result."""

    slots: int
    slot: int
    sum: int
    parts: int
    channels: int
    repeat: int
    period: int
    width: int
    count: int
    results: int


class ReductionResultArgs(Record):
    """Where a reduction writes, with bytes to the next channel, group and second row; where the
    shift of moments lies, channel by channel, and the variance of those that it reads."""

    target: int
    channel: int
    group: int
    second: int
    shift: int
    variance: int
    variance_channel: int
    variance_group: int


def compile_finalizer(reductions: Sequence[Reduction]) -> int:
    """The function that finishes groups `first` to `last` of reductions over one domain:
    `finalize(args, first, last, ...)`, args: ReductionArgs."""
    key = tuple(reduction_signature(r) for r in reductions)
    return compile_cached("finalize", key, lambda: _emit(reductions))


def reduction_signature(reduction: Reduction) -> Hashable:
    """What the text of its results depends on."""
    attrs = tuple(sorted((k, v) for k, v in reduction.node.attrs.items() if k != "axes"))
    return reduction.node.op, attrs


def _emit(reductions: Sequence[Reduction]) -> str:
    f = LlvmFunction("finalize")
    b, v = f.b, Float64Scalar(f)
    kinds = [a.kind for r in reductions for a in r.accumulators for _ in range(a.sum_count)]
    totals = [b.alloca(F64) for _ in kinds]
    a = f.record(ReductionArgs)
    _, first, last, *_ = f.args
    with (
        f.loop(first, last, const_i64(1)) as group,
        f.loop(const_i64(0), a.channels, const_i64(1)) as channel,
    ):
        for kind, total in zip(kinds, totals, strict=True):
            b.store(v.const(-math.inf if kind == "max" else 0.0), total)
        start = b.add(a.slots, b.mul(b.mul(group, a.parts), a.slot))
        start = b.add(start, b.mul(channel, const_i64(4)))
        with (
            f.loop(const_i64(0), a.parts, const_i64(1)) as part,
            f.loop(const_i64(0), a.repeat, const_i64(1)) as repeat,
            f.loop(const_i64(0), a.width, const_i64(1)) as element,
        ):
            at = b.add(b.add(start, b.mul(part, a.slot)), b.mul(repeat, a.period))
            at = b.add(at, b.mul(element, const_i64(4)))
            for i, (kind, total) in enumerate(zip(kinds, totals, strict=True)):
                value = _load(f, b.add(at, b.mul(const_i64(i), a.sum)))
                join = FUNCTIONS["maximum" if kind == "max" else "add"]
                b.store(join(v, value, b.load(total, typ=F64)), total)
        sums = iter([b.load(total, typ=F64) for total in totals])
        count = b.sitofp(a.count, F64)
        for i, reduction in enumerate(reductions):
            r = f.nth(ReductionResultArgs, a.results, const_i64(i))
            results = ReductionResults(reduction)
            values = {id(e): next(sums) for e in results.sums} | {id(results.count): count}
            _write_results(v, results, values, r, group, channel)
    return f.text()


def _write_results(
    v: Float64Scalar,
    results: ReductionResults,
    values: dict[int, Value],
    r: Any,
    group: Value,
    channel: Value,
) -> None:
    f, b = v.f, v.f.b
    if results.reduction.node.op == "moments":
        values[id(results.shift)] = _load(f, b.add(r.shift, b.mul(channel, const_i64(4))))
    if results.reduction.node.op == "normalize_dmoments":
        by_channel, by_group = b.mul(channel, r.variance_channel), b.mul(group, r.variance_group)
        values[id(results.variance)] = _load(f, b.add(b.add(r.variance, by_channel), by_group))
    row = b.add(b.add(r.target, b.mul(channel, r.channel)), b.mul(group, r.group))
    for e in results.values:
        found = b.fptrunc(emit_result(v, e, values), F32)
        b.store(found, b.inttoptr(row, F32.as_pointer()))
        row = b.add(row, r.second)


def emit_result(v: Float64Scalar, e: Expr, values: dict[int, Value]) -> Value:
    """What a reduction writes, of the `values` of its leaves by their id."""
    if isinstance(e, Constant):
        return v.const(e.value)
    if id(e) not in values:
        values[id(e)] = FUNCTIONS[e.op](v, *(emit_result(v, a, values) for a in e.args))
    return values[id(e)]


def _load(f: LlvmFunction, address: Value) -> Value:
    """A float32 in memory, in float64."""
    found = f.b.load(f.b.inttoptr(address, F32.as_pointer()), typ=F32)
    return f.b.fpext(found, F64)
