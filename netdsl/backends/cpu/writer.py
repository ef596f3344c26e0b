"""Kernels over rows in LLVM's language: from expressions to vectors, one text for all shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from netdsl.backends.cpu import functions as fn
from netdsl.backends.cpu.emit import F32, F64, I8, I32, I64, Function, Lanes, Value, long
from netdsl.backends.cpu.expression import Expr, Place
from netdsl.backends.cpu.functions import FUNCTIONS
from netdsl.backends.cpu.outline import BYTES, KINDS, SCALAR, VECTOR, Outline, PlaceArgs, RowsArgs


class _Writer:
    """What both functions share: expressions become vectors, scalars among them once."""

    def __init__(self, outline: Outline, name: str) -> None:
        self.t = outline
        self.f = Function(name)
        self.scalars: dict[int, Value] = {}

    def numbers(self) -> None:
        self.head = self.f.record(RowsArgs)

    def spot(self, p: Place) -> Any:
        """The numbers of a place; see PlaceArgs."""
        return self.f.nth(PlaceArgs, self.head.places, long(self.t.spot(p)))

    def tile(self, number: int) -> Value:
        """Where a tile of channel vectors lies."""
        return self.f.long_nth(self.head.tiles, long(number))

    def find_scalars(self, roots: Sequence[Expr]) -> None:
        v = Lanes(self.f)
        for e in roots:
            if self.t.level_of[id(e)] == SCALAR:
                if id(e) not in self.scalars:
                    self.scalars[id(e)] = self.compute(v, e, self._scalar_place)
            else:
                self.find_scalars(e.args)

    def _scalar_place(self, v: Lanes, e: Expr) -> Value:
        assert e.place is not None
        return v.spread(self.spot(e.place).address, KINDS[e.place.dtype])

    def compute(
        self,
        v: Lanes,
        e: Expr,
        place: Callable[[Lanes, Expr], Value],
        known: dict[int, Value] | None = None,
    ) -> Value:
        known = {} if known is None else known
        if id(e) in self.scalars:
            return self.scalars[id(e)]
        if id(e) not in known:
            known[id(e)] = self._compute(v, e, place, known)
        return known[id(e)]

    def _compute(self, v: Lanes, e: Expr, place: Any, known: dict[int, Value]) -> Value:
        if e.op == "load":
            found = place(v, e)
            return self._as_condition(v, e, found)
        if e.op == "const":
            return v.const(float(e.attrs["value"]))
        args = [self.compute(v, a, place, known) for a in e.args]
        if e.op == "float":
            return _float(v, args[0])
        if e.op == "rstd":
            root = fn.sqrt(v, fn.add(v, args[0], v.const(e.attrs["eps"])))
            return fn.div(v, v.const(1), root)
        if e.op == "unbias":
            return self._unbias(v, e)
        if e.op == "dropout":
            x, seed, step = args
            return fn.dropout(v, x, seed, step, self.element(v), **e.attrs)
        return FUNCTIONS[e.op](v, *args, **e.attrs)

    def _as_condition(self, v: Lanes, e: Expr, found: Value) -> Value:
        if e.place is not None and e.place.dtype == "bool" and found.type != v.bits:
            return self.f.b.icmp_unsigned("!=", found, ir.Constant(found.type, None))
        return found

    def _unbias(self, v: Lanes, e: Expr) -> Value:
        """1 / (1 - beta^t), or its root, for the step that is counted from 0."""
        b = self.f.b
        place = e.args[0].place
        assert place is not None
        at = b.inttoptr(self.spot(place).address, I32.as_pointer())
        t = b.sitofp(b.add(b.load(at, typ=I32), ir.Constant(I32, 1)), F64)
        power = self.f.intrinsic("llvm.pow.f64", F64, ir.Constant(F64, e.attrs["beta"]), t)
        rest = b.fsub(ir.Constant(F64, 1.0), power)
        if e.attrs["root"]:
            rest = self.f.intrinsic("llvm.sqrt.f64", F64, rest)
        return v.splat(b.fptrunc(b.fdiv(ir.Constant(F64, 1.0), rest), F32))

    def element(self, v: Lanes) -> Value:
        raise NotImplementedError


def _float(v: Lanes, x: Value) -> Value:
    kind = x.type.element
    if kind == F32:
        return x
    signed = kind == I32
    return (v.f.b.sitofp if signed else v.f.b.uitofp)(x, v.floats)


class RowsFunction(_Writer):
    def __init__(self, outline: Outline) -> None:
        super().__init__(outline, "rows")

    def text(self) -> str:
        f, b, t = self.f, self.f.b, self.t
        self.numbers()
        roots = [e for e, _ in t.outputs] + [s.value for s in t.sums]
        self.find_scalars(roots)
        _, row0, row1, first, last, slot = f.args
        clears = b.icmp_signed("<", slot, long(0))
        self.slot = b.select(clears, b.not_(slot), slot)
        self.gather_at = b.add(self.head.slots, b.mul(self.slot, self.head.slot))
        if t.sums:
            with b.if_then(clears):
                self._clear()
        places = self._places(roots)
        self.spots = {id(p): self.spot(p) for p in places}
        self.local = {id(p) for p in places if p.local}
        self.padded = {id(p) for p in places if p.pad is not None}
        self.tiles = {k: self.tile(i) for k, i in (t.tiles | t.shifts).items()}
        self.first_within = b.srem(first, self.head.period)
        size = self.head.outer2
        ends = b.sdiv(b.sub(b.add(row1, size), long(1)), size)
        with f.loop(b.sdiv(row0, size), ends, long(1)) as line:
            self._find_lines(line, first)
            begin = b.mul(line, size)
            low = f.larger(row0, begin)
            high = f.smaller(row1, b.add(begin, size))
            with f.loop(low, high, long(1)) as row:
                self._find_rows(row, b.sub(row, begin), b.sub(row, row0))
                self._columns(first, last)
        return f.text()

    def _places(self, roots: Sequence[Expr]) -> list[Place]:
        found = {id(p): p for e in roots for p in e.leaves()}
        found |= {id(p): p for _, p in self.t.outputs}
        return list(found.values())

    def _clear(self) -> None:
        """Zeros in the slot, and where largest values are gathered what is less than all."""
        self._fill(0, self.head.slot, 0.0)
        which = 0
        for s in self.t.sums:
            if s.largest:
                self._fill(which, self.head.sum, -math.inf)
            which += s.count

    def _fill(self, which: int, nbytes: Value, number: float) -> None:
        b, v = self.f.b, Lanes(self.f)
        start = b.add(self.gather_at, b.mul(self.head.sum, long(which)))
        with self.f.loop(long(0), nbytes, long(4 * v.count)) as at:
            v.store(v.const(number), b.add(start, at))

    def _columns(self, first: Value, last: Value) -> None:
        """Elements `first` to `last` of the row that has been found, tile by tile."""
        f, b, size = self.f, self.f.b, self.head.tile
        within = self.first_within
        with f.loop(first, last, size) as begin:
            count = f.smaller(b.sub(last, begin), size)
            whole = b.and_(count, long(-Lanes(f).count))
            with f.loop(long(0), whole, long(Lanes(f).count)) as i:
                self._body(Lanes(f), b.add(begin, i), b.add(within, i))
            left = b.sub(count, whole)
            with b.if_then(b.icmp_signed(">", left, long(0))):
                v = Lanes(f)
                v.mask = v.first(left)
                self._body(v, b.add(begin, whole), b.add(within, whole))

    def _find_lines(self, line: Value, first: Value) -> None:
        """Where each place has the rows of this line: those that differ in the last outer axis."""
        b = self.f.b
        self.upper = (b.sdiv(line, self.head.outer1), b.srem(line, self.head.outer1))
        tile = b.add(self.head.local, b.mul(self.slot, self.head.local_size))
        self.line: dict[int, Value] = {}
        for key, spot in self.spots.items():
            address = b.sub(tile, b.mul(first, long(4))) if key in self.local else spot.address
            if key not in self.local and key not in self.padded:
                for i, stride in zip(self.upper, (spot.outer0, spot.outer1), strict=True):
                    address = b.add(address, b.mul(i, stride))
            self.line[key] = address

    def _find_rows(self, row: Value, i2: Value, done: Value) -> None:
        """Where each place has this row; of padding, whether it has it at all."""
        b = self.f.b
        self.row = row
        self.start: dict[int, Value] = {}
        self.there: dict[int, Value] = {}
        for key, spot in self.spots.items():
            start = self.line[key]
            if key in self.padded:
                where, self.there[key] = self._unpadded(spot, (*self.upper, i2))
                outer = (spot.outer0, spot.outer1, spot.outer2)
                for i, stride in zip(where, outer, strict=True):
                    start = b.add(start, b.mul(i, stride))
            elif key in self.local:
                start = b.add(start, b.mul(b.mul(done, self.head.local_pitch), long(4)))
            else:
                start = b.add(start, b.mul(i2, spot.outer2))
            self.start[key] = start

    def _unpadded(self, spot: Any, index: Sequence[Value]) -> tuple[Any, Value]:
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
            fits = b.and_(b.icmp_signed(">=", q, long(0)), b.icmp_signed("<", inner, size))
            hit = b.icmp_signed("==", b.mul(inner, step), q)
            there = b.and_(there, b.and_(fits, hit))
            found.append(inner)
        return tuple(found), there

    def _body(self, v: Lanes, j: Value, within: Value) -> None:
        self.j = j
        self.within = within
        known: dict[int, Value] = {}
        values = [self.compute(v, e, self._full_place, known) for e, _ in self.t.outputs]
        summed = [self.compute(v, s.value, self._full_place, known) for s in self.t.sums]
        at = 0
        for s, x in zip(self.t.sums, summed, strict=True):
            if s.squares:
                x = fn.sub(v, x, self._in_tile(v, self.tiles[id(s)]))
            self._gather(v, at, x, fn.maximum if s.largest else fn.add)
            if s.squares:
                self._gather(v, at + 1, fn.mul(v, x, x))
            at += s.count
        for (_, p), value in zip(self.t.outputs, values, strict=True):
            self._write(v, p, value)

    def _gather(self, v: Lanes, which: int, x: Value, join: Callable[..., Value] = fn.add) -> None:
        b = self.f.b
        at = b.add(self.gather_at, b.mul(self.head.sum, long(which)))
        at = b.add(at, b.mul(self.within, long(4)))
        v.store(join(v, v.load(at), x), at)

    def compute(
        self,
        v: Lanes,
        e: Expr,
        place: Callable[[Lanes, Expr], Value],
        known: dict[int, Value] | None = None,
    ) -> Value:
        if known is not None and id(e) in self.t.tiled:
            if id(e) not in known:
                known[id(e)] = self._in_tile(v, self.tiles[id(e)])
            return known[id(e)]
        return super().compute(v, e, place, known)

    def _in_tile(self, v: Lanes, tile: Value) -> Value:
        return v.load(self.f.b.add(tile, self.f.b.mul(self.within, long(4))))

    def _full_place(self, v: Lanes, e: Expr) -> Value:
        p = e.place
        assert p is not None
        b, kind = self.f.b, KINDS[p.dtype]
        inner = self.t.walk.strides[id(p)][1]
        start, size = self.start[id(p)], BYTES[p.dtype]
        if p.pad is not None:
            return self._padded(v, p)
        if self.t.level_of[id(e)] == VECTOR:
            return v.load(b.add(start, b.mul(self.within, long(size))), kind)
        if inner == 0:
            return v.spread(start, kind)
        if inner == 1:
            return v.load(b.add(start, b.mul(self.j, long(size))), kind)
        step = self.spots[id(p)].inner
        return v.gather(b.add(start, b.mul(self.j, step)), step, kind)

    def _padded(self, v: Lanes, p: Place) -> Value:
        b = self.f.b
        spot = self.spots[id(p)]
        low, size = spot.run_low, spot.run_size
        at = b.sub(self.j, low)
        lane = b.add(v.splat(at), v.steps())
        inside = b.and_(
            b.icmp_signed(">=", lane, v.splat(long(0))), b.icmp_signed("<", lane, v.splat(size))
        )
        mask = b.and_(inside, v.splat(self.there[id(p)]))
        found = v.load(b.add(self.start[id(p)], b.mul(at, long(4))), F32, mask)
        return found if p.fill == 0 else fn.select(v, mask, found, v.const(p.fill))

    def _write(self, v: Lanes, p: Place, value: Value) -> None:
        b, kind = self.f.b, KINDS[p.dtype]
        if p.dtype == "bool":
            value = b.zext(value, v.typed(I8))
        inner = self.t.walk.strides[id(p)][1]
        start = self.start[id(p)]
        if inner == 1 or self.t.walk.run == 1:
            v.store(value, b.add(start, b.mul(self.j, long(BYTES[p.dtype]))), kind)
        else:
            step = self.spots[id(p)].inner
            v.scatter(value, b.add(start, b.mul(self.j, step)), step, kind)

    def element(self, v: Lanes) -> Value:
        b = self.f.b
        first = b.add(b.mul(self.row, self.head.run), self.j)
        return b.add(v.splat(first), v.steps(I64))


class PrepareFunction(_Writer):
    """Channel vectors into tiles, and what moments are taken relative to."""

    def __init__(self, outline: Outline) -> None:
        super().__init__(outline, "prepare")

    def text(self) -> str:
        f, b, t = self.f, self.f.b, self.t
        self.numbers()
        shifted = [s for s in t.sums if s.squares]
        self.find_scalars([*t.tiled.values(), *(s.value for s in shifted)])
        pairs = [(e, self.tile(t.tiles[k])) for k, e in t.tiled.items()]
        pairs += [(s.value, self.tile(t.shifts[id(s)])) for s in shifted if not s.flat]
        flat = [(self._first(s.value), self.tile(t.shifts[id(s)])) for s in shifted if s.flat]
        lanes = Lanes(f).count
        with f.loop(long(0), self.head.period, long(lanes)) as j:
            self.j = j
            v = Lanes(f)
            v.mask = v.first(b.sub(self.head.period, j))
            known: dict[int, Value] = {}
            values = [self.compute(v, e, self._first_row, known) for e, _ in pairs]
            with f.loop(long(0), self.head.repeat, long(1)) as k:
                at = b.mul(b.add(b.mul(k, self.head.period), j), long(4))
                for (_, tile), value in zip(pairs, values, strict=True):
                    v.store(value, b.add(tile, at))
                for value, tile in flat:
                    v.store(value, b.add(tile, at))
        return f.text()

    def _first(self, e: Expr) -> Value:
        """The first element in all lanes."""
        self.j = long(0)
        v = Lanes(self.f)
        v.mask = v.first(self.head.period)
        found = self.compute(v, e, self._first_row, {})
        return v.splat(self.f.b.extract_element(found, ir.Constant(I32, 0)))

    def _first_row(self, v: Lanes, e: Expr) -> Value:
        p = e.place
        assert p is not None
        b, kind = self.f.b, KINDS[p.dtype]
        if p.pad is not None:
            return v.const(0)
        spot = self.spot(p)
        inner = self.t.walk.strides[id(p)][1]
        if inner == 0:
            return v.spread(spot.address, kind)
        if inner == 1:
            return v.load(b.add(spot.address, b.mul(self.j, long(BYTES[p.dtype]))), kind)
        return v.gather(b.add(spot.address, b.mul(self.j, spot.inner)), spot.inner, kind)

    def element(self, v: Lanes) -> Value:
        return self.f.b.add(v.splat(self.j), v.steps(I64))
