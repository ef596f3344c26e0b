"""The micro-kernel: a tile of results that stays in vector registers while its products are added.

C[i, j] (+)= sum over taps t and k of A[a_t + i*ai + k*ak] * B[b_t + k*bk + j]

for `rows` values of i and `vectors` vectors of j. Strides are bytes, a tap is a pair of offsets in
bytes. Every convolution and matrix product, forward and backward, is made of such tiles.

Meanwhile a tile asks for what the next one will read, one cache line with every k: 2^`ahead_shift`
of them in each of its rows, which lie `ahead_row` bytes apart.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir

from netdsl.backends.cpu.emit import F32, I64, Value, long
from netdsl.backends.cpu.target import compiled, width

_ROWS = {16: {4: 6, 3: 9, 2: 14, 1: 14}, 8: {2: 6, 1: 12}, 4: {4: 6, 2: 12, 1: 14}}
"""Rows that fill the registers beside the vectors of B: 32 of them, 16 with AVX2."""


def most_rows(vectors: int) -> int:
    return _ROWS[width()][vectors]


def widths() -> tuple[int, ...]:
    """The numbers of vectors that there are tiles of, the widest first."""
    return tuple(_ROWS[width()])


@cache
def tile(rows: int, vectors: int, ragged: bool) -> int:
    """The address of a tile; `ragged` ones write only `columns` columns."""
    return compiled("tile", _Tile(rows, vectors, ragged).text())


class _Tile:
    def __init__(self, rows: int, vectors: int, ragged: bool) -> None:
        self.rows, self.vectors, self.ragged = rows, vectors, ragged
        self.module = ir.Module("tile")
        kind = ir.FunctionType(ir.VoidType(), [I64] * 15)
        self.function = ir.Function(self.module, kind, "tile")
        self.b = ir.IRBuilder(self.function.append_basic_block())
        self.vector = ir.VectorType(F32, width())

    def text(self) -> str:
        a, ai, ak, b, bk, c, ci, taps, count, depth, add, columns, *ahead = self.function.args
        self.ahead = ahead
        self._prepare_mask(columns)
        zero = ir.Constant(self.vector, [0.0] * width())
        begin = self.b.block
        sums = [[zero] * self.vectors for _ in range(self.rows)]
        with self.b.if_then(self.b.icmp_signed("!=", add, long(0))):
            loaded = [[self._load_c(c, ci, i, j) for j in range(self.vectors)] for i in self._i()]
            there = self.b.block
        self._join(sums, loaded, begin, there)
        self._tap_loop(sums, a, ai, ak, b, bk, taps, count, depth)
        for i in self._i():
            for j in range(self.vectors):
                self._store_c(sums[i][j], c, ci, i, j)
        self.b.ret_void()
        return str(self.module)

    def _i(self) -> range:
        return range(self.rows)

    def _join(self, sums: Any, loaded: Any, begin: Any, there: Any) -> None:
        for i in self._i():
            for j in range(self.vectors):
                phi = self.b.phi(self.vector)
                phi.add_incoming(sums[i][j], begin)
                phi.add_incoming(loaded[i][j], there)
                sums[i][j] = phi

    def _tap_loop(
        self,
        sums: Any,
        a: Value,
        ai: Value,
        ak: Value,
        b: Value,
        bk: Value,
        taps: Value,
        count: Value,
        depth: Value,
    ) -> None:
        """for each tap, for each k: all rows times all vectors; `sums` becomes what comes out."""
        build = self.b
        before = build.block
        outer, inner, after, done = (self.function.append_basic_block() for _ in range(4))
        some = build.icmp_signed(">", build.mul(count, depth), long(0))
        build.cbranch(some, outer, done)
        build.position_at_end(outer)
        t = self._phi(I64, long(0), before)
        at_tap = self._phis(sums, before)
        place = build.add(taps, build.mul(t, long(16)))
        first_a = build.add(a, self._long(place))
        first_b = build.add(b, self._long(build.add(place, long(8))))
        build.branch(inner)
        build.position_at_end(inner)
        left = self._phi(I64, depth, outer)
        pa, pb = self._phi(I64, first_a, outer), self._phi(I64, first_b, outer)
        at_k = self._phis(at_tap, outer)
        self._ask(build.sub(depth, left))
        found = self._multiply(at_k, pa, ai, pb)
        self._again(left, build.sub(left, long(1)), inner)
        self._again(pa, build.add(pa, ak), inner)
        self._again(pb, build.add(pb, bk), inner)
        self._close(at_k, found, inner)
        build.cbranch(build.icmp_signed(">", left, long(1)), inner, after)
        build.position_at_end(after)
        following = build.add(t, long(1))
        self._again(t, following, after)
        self._close(at_tap, found, after)
        build.cbranch(build.icmp_signed("<", following, count), outer, done)
        build.position_at_end(done)
        for i in self._i():
            for j in range(self.vectors):
                phi = self._phi(self.vector, sums[i][j], before)
                phi.add_incoming(found[i][j], after)
                sums[i][j] = phi

    def _ask(self, k: Value) -> None:
        """Line k of what the next tile reads comes into the second cache."""
        b = self.b
        at, row, shift = self.ahead
        rows = b.mul(b.lshr(k, shift), row)
        line = b.and_(k, b.sub(b.shl(long(1), shift), long(1)))
        address = b.add(b.add(at, rows), b.mul(line, long(64)))
        pointer = b.inttoptr(address, ir.IntType(8).as_pointer())
        read, second, data = (ir.Constant(ir.IntType(32), n) for n in (0, 2, 1))
        self._intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, read, second, data)

    def _multiply(self, sums: Any, pa: Value, ai: Value, pb: Value) -> Any:
        wide = [self._load(self.b.add(pb, long(4 * width() * j))) for j in range(self.vectors)]
        found = []
        for i in self._i():
            address = self.b.add(pa, self.b.mul(ai, long(i))) if i else pa
            one = self._splat(address)
            found.append([self._fma(one, wide[j], sums[i][j]) for j in range(self.vectors)])
        return found

    # small parts

    def _phi(self, kind: Any, value: Value, block: Any) -> Value:
        phi = self.b.phi(kind)
        phi.add_incoming(value, block)
        return phi

    def _phis(self, values: Any, block: Any) -> Any:
        return [[self._phi(self.vector, v, block) for v in row] for row in values]

    def _again(self, phi: Value, value: Value, block: Any) -> None:
        phi.add_incoming(value, block)

    def _close(self, phis: Any, values: Any, block: Any) -> None:
        for row, new in zip(phis, values, strict=True):
            for phi, value in zip(row, new, strict=True):
                phi.add_incoming(value, block)

    def _long(self, address: Value) -> Value:
        return self.b.load(self.b.inttoptr(address, I64.as_pointer()), typ=I64)

    def _load(self, address: Value) -> Value:
        pointer = self.b.inttoptr(address, self.vector.as_pointer())
        found = self.b.load(pointer, typ=self.vector)
        found.align = 4
        return found

    def _splat(self, address: Value) -> Value:
        one = self.b.load(self.b.inttoptr(address, F32.as_pointer()), typ=F32)
        blank = ir.Constant(self.vector, ir.Undefined)
        first = self.b.insert_element(blank, one, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), width()), [0] * width())
        return self.b.shuffle_vector(first, blank, zeros)

    def _intrinsic(self, name: str, result: Any, *args: Value) -> Value:
        kind = ir.FunctionType(result, [x.type for x in args])
        known = self.module.globals.get(name)
        return self.b.call(known or ir.Function(self.module, kind, name), args)

    def _fma(self, x: Value, y: Value, z: Value) -> Value:
        return self._intrinsic(f"llvm.fma.v{width()}f32", self.vector, x, y, z)

    def _prepare_mask(self, columns: Value) -> None:
        """Which lanes of the last vector are written."""
        longs = ir.VectorType(I64, width())
        rest = self.b.sub(columns, long((self.vectors - 1) * width()))
        first = self.b.insert_element(
            ir.Constant(longs, ir.Undefined), rest, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), width()), [0] * width())
        spread = self.b.shuffle_vector(first, ir.Constant(longs, ir.Undefined), zeros)
        steps = ir.Constant(longs, list(range(width())))
        self.mask = self.b.icmp_signed("<", steps, spread)

    def _c(self, c: Value, ci: Value, i: int, j: int) -> Value:
        return self.b.add(self.b.add(c, self.b.mul(ci, long(i))), long(4 * width() * j))

    def _load_c(self, c: Value, ci: Value, i: int, j: int) -> Value:
        address = self._c(c, ci, i, j)
        if not self.ragged or j < self.vectors - 1:
            return self._load(address)
        pointer = self.b.inttoptr(address, self.vector.as_pointer())
        four = ir.Constant(ir.IntType(32), 4)
        zero = ir.Constant(self.vector, None)
        name = f"llvm.masked.load.v{width()}f32.p0"
        return self._intrinsic(name, self.vector, pointer, four, self.mask, zero)

    def _store_c(self, value: Value, c: Value, ci: Value, i: int, j: int) -> None:
        pointer = self.b.inttoptr(self._c(c, ci, i, j), self.vector.as_pointer())
        if not self.ragged or j < self.vectors - 1:
            self.b.store(value, pointer).align = 4
            return
        four = ir.Constant(ir.IntType(32), 4)
        name = f"llvm.masked.store.v{width()}f32.p0"
        self._intrinsic(name, ir.VoidType(), value, pointer, four, self.mask)
