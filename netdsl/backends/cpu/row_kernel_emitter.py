"""Kernels over rows in LLVM's language: from expressions to vectors, one text for all shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from netdsl.backends.cpu import elementwise_functions as fn
from netdsl.backends.cpu.elementwise_functions import FUNCTIONS
from netdsl.backends.cpu.llvm_builder import (
    F32,
    F64,
    I1,
    I8,
    I32,
    I64,
    Float64Scalar,
    Lanes,
    LlvmFunction,
    Value,
    const_i64,
)
from netdsl.backends.cpu.memory_ref import DTYPE_BYTES, MemoryRef
from netdsl.backends.cpu.row_kernel_spec import (
    LLVM_TYPES,
    MemoryRefArgs,
    RowKernelArgs,
    RowKernelSpec,
)
from netdsl.backends.cpu.row_results import RowSums
from netdsl.lower.expression import Constant, DropoutMask, Expr, LinearIndex, Load, iter_expressions
from netdsl.lower.levels import Level
from netdsl.lower.trace import Accumulator


class _RowKernelEmitter:
    """What both functions share: expressions become vectors, scalars among them once."""

    def __init__(self, spec: RowKernelSpec, name: str) -> None:
        self.spec = spec
        self.f = LlvmFunction(name)
        self.scalars: dict[int, Value] = {}

    def load_args(self) -> None:
        self.args = self.f.record(RowKernelArgs)

    def load_ref(self, p: MemoryRef) -> Any:
        """The numbers of a place; see PlaceArgs."""
        return self.f.nth(MemoryRefArgs, self.args.places, const_i64(self.spec.number_ref(p)))

    def load_tile_address(self, number: int) -> Value:
        """Where a tile of channel vectors lies."""
        return self.f.load_i64(self.args.tiles, const_i64(number))

    def emit_scalars(self, roots: Sequence[Expr]) -> None:
        v = Lanes(self.f)
        for e in roots:
            if self.spec.levels[id(e)] == Level.FIXED:
                if id(e) not in self.scalars:
                    self.scalars[id(e)] = self.emit_expr(v, e, self._load_scalar)
            else:
                self.emit_scalars(e.args)

    def _load_scalar(self, v: Lanes, e: Expr) -> Value:
        ref = self.spec.body.refs[id(e)]
        return v.load_splat(self.load_ref(ref).address, LLVM_TYPES[ref.dtype])

    def emit_expr(
        self,
        v: Lanes,
        e: Expr,
        load_leaf: Callable[[Lanes, Expr], Value],
        emitted: dict[int, Value] | None = None,
    ) -> Value:
        emitted = {} if emitted is None else emitted
        if id(e) in self.scalars:
            return self.scalars[id(e)]
        if id(e) not in emitted:
            emitted[id(e)] = self._emit_uncached(v, e, load_leaf, emitted)
        return emitted[id(e)]

    def _emit_uncached(self, v: Lanes, e: Expr, load_leaf: Any, emitted: dict[int, Value]) -> Value:
        if isinstance(e, Load):
            return self._convert_condition(v, e, load_leaf(v, e))
        if isinstance(e, LinearIndex):
            rank = self.emit_expr(v, e.args[0], load_leaf, emitted)
            first = self.f.b.add(self._first_of_rank(rank), self.element_index())
            return self.f.b.add(v.splat(first), v.lane_indices(I64))
        lanes = Float64Scalar(self.f) if e.dtype == "float64" else v
        if isinstance(e, Constant):
            return _emit_constant(lanes, e)
        args = [self.emit_expr(v, a, load_leaf, emitted) for a in e.args]
        if isinstance(e, DropoutMask):
            index, seed, step = args
            return fn.dropout_mask(v, index, seed, step, e.key, e.threshold)
        if e.op == "cast":
            return _emit_cast(v, args[0], e)
        return FUNCTIONS[e.op](lanes, *args)

    def _convert_condition(self, v: Lanes, e: Expr, found: Value) -> Value:
        if e.dtype == "bool" and found.type != v.mask_type:
            return self.f.b.icmp_unsigned("!=", found, ir.Constant(found.type, None))
        return found

    def _first_of_rank(self, rank: Value) -> Value:
        """How many elements the ranks before this one have."""
        b = self.f.b
        first = b.sext(b.extract_element(rank, ir.Constant(I32, 0)), I64)
        return b.mul(first, self.args.elements)

    def element_index(self) -> Value:
        """The index of the first lane's element in what this rank has."""
        raise NotImplementedError


def _emit_constant(v: Lanes, e: Constant) -> Value:
    if e.dtype in ("float32", "float64"):
        return v.const(e.value)
    kind = I1 if e.dtype == "bool" else LLVM_TYPES[e.dtype]
    return ir.Constant(v.vector_type(kind), [int(e.value)] * v.count)


def _emit_cast(v: Lanes, x: Value, e: Expr) -> Value:
    """Float64 is that of scalars alone."""
    b, source = v.f.b, e.args[0].dtype
    if e.dtype == "bool":
        is_float = source == "float32"
        compare = b.fcmp_unordered if is_float else b.icmp_unsigned
        return x if source == "bool" else compare("!=", x, ir.Constant(x.type, None))
    to_float = {"int32": b.sitofp, "float32": b.fpext}.get(source, b.uitofp)
    if e.dtype == "float64":
        return to_float(b.extract_element(x, ir.Constant(I32, 0)), F64)
    if source == "float64":
        return v.splat(b.fptrunc(x, F32))
    return to_float(x, v.float_type)


class RowsEmitter(_RowKernelEmitter):
    def __init__(self, spec: RowKernelSpec) -> None:
        super().__init__(spec, "rows")

    def text(self) -> str:
        f, b, t = self.f, self.f.b, self.spec
        self.load_args()
        roots = t.body.roots
        self.emit_scalars(roots)
        _, row0, row1, first, last, slot = f.args
        clears = b.icmp_signed("<", slot, const_i64(0))
        self.slot = b.select(clears, b.not_(slot), slot)
        self.accumulator_base = b.add(self.args.slots, b.mul(self.slot, self.args.slot))
        self.row_sums = RowSums(f, t.body.accumulators) if t.body.row_results else None
        count = b.sitofp(self.args.run, F64)
        if t.body.accumulators and not self.row_sums:
            with b.if_then(clears):
                self._emit_clear()
        places = self._collect_refs(roots)
        self.refs = {id(p): self.load_ref(p) for p in places}
        self.local_refs = {id(p) for p in places if p.is_local}
        self.padded_refs = {id(p) for p in places if p.padded_axes}
        self.tile_addresses = {
            k: self.load_tile_address(i) for k, i in (t.tile_indices | t.shift_tile_indices).items()
        }
        self.first_period_offset = b.srem(first, self.args.period)
        size = self.args.outer2
        ends = b.sdiv(b.sub(b.add(row1, size), const_i64(1)), size)
        with f.loop(b.sdiv(row0, size), ends, const_i64(1)) as line:
            self._locate_lines(line, first)
            begin = b.mul(line, size)
            low = f.max_i64(row0, begin)
            high = f.min_i64(row1, b.add(begin, size))
            with f.loop(low, high, const_i64(1)) as row:
                self._locate_row(row, b.sub(row, begin), b.sub(row, row0))
                self._emit_row_invariants(roots)
                if self.row_sums:
                    self.row_sums.begin_row(self._emit_first_element)
                self._emit_tiles(first, last)
                if self.row_sums:
                    self.row_sums.end_row(
                        t.body.row_results, count, lambda p: self.row_addresses[id(p)]
                    )
        return f.text()

    def _collect_refs(self, roots: Sequence[Expr]) -> list[MemoryRef]:
        """The memory of loads in the order in which they are met, then that of outputs and
        results."""
        body = self.spec.body
        found = [body.refs[id(e)] for e in iter_expressions(roots) if isinstance(e, Load)]
        return found + [p for _, p in body.outputs] + [p for r in body.row_results for p in r.refs]

    def _emit_clear(self) -> None:
        """Zeros in the slot, and where largest values are gathered what is less than all."""
        self._emit_fill(0, self.args.slot, 0.0)
        which = 0
        for a in self.spec.body.accumulators:
            if a.kind == "max":
                self._emit_fill(which, self.args.sum, -math.inf)
            which += a.sum_count

    def _emit_fill(self, which: int, nbytes: Value, number: float) -> None:
        b, v = self.f.b, Lanes(self.f)
        start = b.add(self.accumulator_base, b.mul(self.args.sum, const_i64(which)))
        with self.f.loop(const_i64(0), nbytes, const_i64(4 * v.count)) as at:
            v.store(v.const(number), b.add(start, at))

    def _emit_tiles(self, first: Value, last: Value) -> None:
        """Elements `first` to `last` of the row that has been found, tile by tile."""
        f, b, size = self.f, self.f.b, self.args.tile
        within = self.first_period_offset
        with f.loop(first, last, size) as begin:
            count = f.min_i64(b.sub(last, begin), size)
            whole = b.and_(count, const_i64(-Lanes(f).count))
            with f.loop(const_i64(0), whole, const_i64(Lanes(f).count)) as i:
                self._emit_body(Lanes(f), b.add(begin, i), b.add(within, i))
            left = b.sub(count, whole)
            with b.if_then(b.icmp_signed(">", left, const_i64(0))):
                v = Lanes(f)
                v.mask = v.prefix_mask(left)
                self._emit_body(v, b.add(begin, whole), b.add(within, whole))

    def _locate_lines(self, line: Value, first: Value) -> None:
        """Where each place has the rows of this line: those that differ in the last outer axis."""
        b = self.f.b
        self.outer_indices = (b.sdiv(line, self.args.outer1), b.srem(line, self.args.outer1))
        tile = b.add(self.args.local, b.mul(self.slot, self.args.local_size))
        self.line_addresses: dict[int, Value] = {}
        for key, spot in self.refs.items():
            address = (
                b.sub(tile, b.mul(first, const_i64(4))) if key in self.local_refs else spot.address
            )
            if key not in self.local_refs and key not in self.padded_refs:
                for i, stride in zip(self.outer_indices, (spot.outer0, spot.outer1), strict=True):
                    address = b.add(address, b.mul(i, stride))
            self.line_addresses[key] = address

    def _locate_row(self, row: Value, i2: Value, done: Value) -> None:
        """Where each place has this row; of padding, whether it has it at all."""
        b = self.f.b
        self.row = row
        self.row_addresses: dict[int, Value] = {}
        self.is_row_inside: dict[int, Value] = {}
        for key, spot in self.refs.items():
            start = self.line_addresses[key]
            if key in self.padded_refs:
                where, self.is_row_inside[key] = self._map_padded_row(
                    spot, (*self.outer_indices, i2)
                )
                outer = (spot.outer0, spot.outer1, spot.outer2)
                for i, stride in zip(where, outer, strict=True):
                    start = b.add(start, b.mul(i, stride))
            elif key in self.local_refs:
                start = b.add(start, b.mul(b.mul(done, self.args.local_pitch), const_i64(4)))
            else:
                start = b.add(start, b.mul(i2, spot.outer2))
            self.row_addresses[key] = start

    def _emit_row_invariants(self, roots: Sequence[Expr]) -> None:
        """What has one value in the row that has been found, once."""
        v = Lanes(self.f)
        for e in roots:
            if id(e) not in self.spec.row_invariants:
                self._emit_row_invariants(e.args)
            elif id(e) not in self.scalars:
                self.scalars[id(e)] = self.emit_expr(v, e, self._load_in_row)

    def _load_in_row(self, v: Lanes, e: Expr) -> Value:
        ref = self.spec.body.refs[id(e)]
        return v.load_splat(self.row_addresses[id(ref)], LLVM_TYPES[ref.dtype])

    def _emit_first_element(self, a: Accumulator) -> Value:
        """The first element of the row that has been found, in all lanes."""
        self.j = self.period_offset = const_i64(0)
        v = Lanes(self.f)
        v.mask = v.prefix_mask(const_i64(1))
        found = self.emit_expr(v, a.value, self._load_element, {})
        return v.splat(self.f.b.extract_element(found, ir.Constant(I32, 0)))

    def _map_padded_row(self, spot: Any, index: Sequence[Value]) -> tuple[Any, Value]:
        """Where a row of a padded place lies in what is padded, and whether it does."""
        b = self.f.b
        axes = (
            (spot.low0, spot.step0, spot.size0),
            (spot.low1, spot.step1, spot.size1),
            (spot.low2, spot.step2, spot.size2),
        )
        there: Value = ir.Constant(ir.IntType(1), 1)
        found = []
        for i, (low, step, size) in zip(index, axes, strict=True):
            q = b.sub(i, low)
            inner = b.sdiv(q, step)
            fits = b.and_(b.icmp_signed(">=", q, const_i64(0)), b.icmp_signed("<", inner, size))
            hit = b.icmp_signed("==", b.mul(inner, step), q)
            there = b.and_(there, b.and_(fits, hit))
            found.append(inner)
        return tuple(found), there

    def _emit_body(self, v: Lanes, j: Value, within: Value) -> None:
        self.j = j
        self.period_offset = within
        known: dict[int, Value] = {}
        body = self.spec.body
        values = [self.emit_expr(v, e, self._load_element, known) for e, _ in body.outputs]
        summed = [self.emit_expr(v, a.value, self._load_element, known) for a in body.accumulators]
        at = 0
        for a, x in zip(body.accumulators, summed, strict=True):
            if a.kind == "moments":
                x = fn.sub(v, x, self._load_shift(v, a))
            self._accumulate(v, at, x, fn.maximum if a.kind == "max" else fn.add)
            if a.kind == "moments":
                self._accumulate(v, at + 1, fn.mul(v, x, x))
            at += a.sum_count
        for (_, p), value in zip(body.outputs, values, strict=True):
            self._store_output(v, p, value)

    def _load_shift(self, v: Lanes, a: Accumulator) -> Value:
        """What differences of moments are taken from."""
        if self.row_sums:
            return self.row_sums.shifts[id(a)]
        return self._load_from_tile(v, self.tile_addresses[id(a)])

    def _accumulate(
        self, v: Lanes, which: int, x: Value, join: Callable[..., Value] = fn.add
    ) -> None:
        b = self.f.b
        if self.row_sums:
            self.row_sums.add(v, which, x)
            return
        at = b.add(self.accumulator_base, b.mul(self.args.sum, const_i64(which)))
        at = b.add(at, b.mul(self.period_offset, const_i64(4)))
        v.store(join(v, v.load(at), x), at)

    def emit_expr(
        self,
        v: Lanes,
        e: Expr,
        load_leaf: Callable[[Lanes, Expr], Value],
        emitted: dict[int, Value] | None = None,
    ) -> Value:
        if emitted is not None and id(e) in self.spec.hoisted_exprs:
            if id(e) not in emitted:
                emitted[id(e)] = self._load_from_tile(v, self.tile_addresses[id(e)])
            return emitted[id(e)]
        return super().emit_expr(v, e, load_leaf, emitted)

    def _load_from_tile(self, v: Lanes, tile: Value) -> Value:
        return v.load(self.f.b.add(tile, self.f.b.mul(self.period_offset, const_i64(4))))

    def _load_element(self, v: Lanes, e: Expr) -> Value:
        p = self.spec.body.refs[id(e)]
        b, kind = self.f.b, LLVM_TYPES[p.dtype]
        inner = self.spec.loop_nest.strides[id(p)][1]
        start, size = self.row_addresses[id(p)], DTYPE_BYTES[p.dtype]
        if p.padded_axes:
            return self._load_padded(v, p)
        if self.spec.levels[id(e)] == Level.LANE:
            return v.load(b.add(start, b.mul(self.period_offset, const_i64(size))), kind)
        if inner == 0:
            return v.load_splat(start, kind)
        if inner == 1:
            return v.load(b.add(start, b.mul(self.j, const_i64(size))), kind)
        step = self.refs[id(p)].inner
        return v.gather(b.add(start, b.mul(self.j, step)), step, kind)

    def _load_padded(self, v: Lanes, p: MemoryRef) -> Value:
        b = self.f.b
        spot = self.refs[id(p)]
        low, size = spot.run_low, spot.run_size
        at = b.sub(self.j, low)
        lane = b.add(v.splat(at), v.lane_indices())
        inside = b.and_(
            b.icmp_signed(">=", lane, v.splat(const_i64(0))),
            b.icmp_signed("<", lane, v.splat(size)),
        )
        mask = b.and_(inside, v.splat(self.is_row_inside[id(p)]))
        found = v.load(b.add(self.row_addresses[id(p)], b.mul(at, const_i64(4))), F32, mask)
        return found if p.fill == 0 else fn.select(v, mask, found, v.const(p.fill))

    def _store_output(self, v: Lanes, p: MemoryRef, value: Value) -> None:
        b, kind = self.f.b, LLVM_TYPES[p.dtype]
        if p.dtype == "bool":
            value = b.zext(value, v.vector_type(I8))
        inner = self.spec.loop_nest.strides[id(p)][1]
        start = self.row_addresses[id(p)]
        if inner == 1 or self.spec.loop_nest.run == 1:
            v.store(value, b.add(start, b.mul(self.j, const_i64(DTYPE_BYTES[p.dtype]))), kind)
        else:
            step = self.refs[id(p)].inner
            v.scatter(value, b.add(start, b.mul(self.j, step)), step, kind)

    def element_index(self) -> Value:
        return self.f.b.add(self.f.b.mul(self.row, self.args.run), self.j)


class PrepareEmitter(_RowKernelEmitter):
    """Channel vectors into tiles, and what moments are taken relative to."""

    def __init__(self, spec: RowKernelSpec) -> None:
        super().__init__(spec, "prepare")

    def text(self) -> str:
        f, b, t = self.f, self.f.b, self.spec
        self.load_args()
        shifted = [a for a in t.body.accumulators if id(a) in t.shift_tile_indices]
        self.emit_scalars([*t.hoisted_exprs.values(), *(a.value for a in shifted)])
        pairs = [(e, self.load_tile_address(t.tile_indices[k])) for k, e in t.hoisted_exprs.items()]
        tiles = [(a.value, self.load_tile_address(t.shift_tile_indices[id(a)])) for a in shifted]
        flat = []
        if t.body.is_flat:
            flat = [(self._emit_first_element(e), tile) for e, tile in tiles]
        else:
            pairs += tiles
        lanes = Lanes(f).count
        with f.loop(const_i64(0), self.args.period, const_i64(lanes)) as j:
            self.j = j
            v = Lanes(f)
            v.mask = v.prefix_mask(b.sub(self.args.period, j))
            known: dict[int, Value] = {}
            values = [self.emit_expr(v, e, self._load_first_row, known) for e, _ in pairs]
            with f.loop(const_i64(0), self.args.repeat, const_i64(1)) as k:
                at = b.mul(b.add(b.mul(k, self.args.period), j), const_i64(4))
                for (_, tile), value in zip(pairs, values, strict=True):
                    v.store(value, b.add(tile, at))
                for value, tile in flat:
                    v.store(value, b.add(tile, at))
        return f.text()

    def _emit_first_element(self, e: Expr) -> Value:
        """The first element in all lanes."""
        self.j = const_i64(0)
        v = Lanes(self.f)
        v.mask = v.prefix_mask(self.args.period)
        found = self.emit_expr(v, e, self._load_first_row, {})
        return v.splat(self.f.b.extract_element(found, ir.Constant(I32, 0)))

    def _load_first_row(self, v: Lanes, e: Expr) -> Value:
        p = self.spec.body.refs[id(e)]
        b, kind = self.f.b, LLVM_TYPES[p.dtype]
        if p.padded_axes:
            return v.const(0)
        spot = self.load_ref(p)
        inner = self.spec.loop_nest.strides[id(p)][1]
        if inner == 0:
            return v.load_splat(spot.address, kind)
        if inner == 1:
            return v.load(b.add(spot.address, b.mul(self.j, const_i64(DTYPE_BYTES[p.dtype]))), kind)
        return v.gather(b.add(spot.address, b.mul(self.j, spot.inner)), spot.inner, kind)

    def element_index(self) -> Value:
        return self.j
