"""The micro-kernel: a tile of results that stays in vector registers while its products are added.

C[i, j] (+)= sum over taps t and k of A[a_t + i*ai + k*ak] * B[b_t + k*bk + j]

for `rows` values of i and `vectors` vectors of j. Strides are bytes, a tap is a pair of offsets in
bytes. Every convolution and matrix product, forward and backward, is made of such tiles. Those that
are made for certain `steps`, ak and bk, have them in their instructions: with fewer of these, more
products are under way while what they read is on its way.

Meanwhile a tile asks for what the next one will read, some cache lines with every fourth k:
`times` as many of each row, and `jump` bytes further those of the next row. It asks for nothing
where `times` is 0.

With a `finish` (see finish.py) a tile passes its sums on through an expression, where it is given
the table of what that reads: with the last products that belong to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from llvmlite import ir

from netdsl.backends.cpu.emit import I8, I32, I64, Function, Lanes, Value, long
from netdsl.backends.cpu.finish import Recipe, finished, reader
from netdsl.backends.cpu.functions import fma
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.target import width, written

_ROWS = {16: {4: 6, 3: 9, 2: 14, 1: 14}, 8: {2: 6, 1: 12}, 4: {4: 6, 2: 12, 1: 14}}
"""Rows that fill the registers beside the vectors of B: 32 of them, 16 with AVX2."""
_APART = 7
"""Rows that one address reaches, each with its own distance from it."""
_UNROLLED = 4
_LINE = 64

Steps = tuple[int, int] | None


class TileTap(Record):
    """A tap: how many bytes after A and after B what is multiplied begins."""

    a: int
    b: int


def most_rows(vectors: int) -> int:
    return _ROWS[width()][vectors]


def widths() -> tuple[int, ...]:
    """The numbers of vectors that there are tiles of, the widest first."""
    return tuple(_ROWS[width()])


def asked(vectors: int) -> int:
    """Cache lines that a tile asks for with every fourth k: all of them, when it is done, that
    each of its rows has 16 elements in."""
    return -(-most_rows(vectors) // _UNROLLED)


@cache
def tile(
    rows: int, vectors: int, ragged: bool, steps: Steps = None, finish: Recipe | None = None
) -> int:
    """The address of a tile; `ragged` ones write only `columns` columns."""
    recipe = (rows, vectors, ragged, steps, finish)
    return written("tile", recipe, lambda: _Tile(*recipe).text())


class _Tile:
    def __init__(
        self, rows: int, vectors: int, ragged: bool, steps: Steps, finish: Recipe | None
    ) -> None:
        self.rows, self.vectors, self.ragged, self.steps = rows, vectors, ragged, steps
        self.finish = finish
        self.f = Function("tile", 16)
        self.b, self.v = self.f.b, Lanes(self.f)
        self.vector = self.v.floats

    def text(self) -> str:
        a, ai, ak, b, bk, c, ci, taps, count, depth, add, columns, *ahead = self.f.args
        ahead_at, self.jump, self.times, reads = ahead
        build = self.b
        self.rest = self.v.first(build.sub(columns, long((self.vectors - 1) * width())))
        self.sums = [[build.alloca(self.vector) for _ in range(self.vectors)] for _ in self._i()]
        self.pa = [build.alloca(I64) for _ in range(0, self.rows, _APART)]
        self.pb, self.at, self.left = (build.alloca(I64) for _ in range(3))
        build.store(ahead_at, self.at)
        build.store(self.times, self.left)
        self.apart = [long(0), *(self._opaque(build.mul(ai, long(i))) for i in range(1, _APART))]
        self._begin(add, c, ci)
        group = build.mul(ai, long(_APART))
        whole = build.and_(depth, long(-_UNROLLED))
        with self.f.loop(long(0), count, long(1)) as t:
            tap = self.f.nth(TileTap, taps, t)
            at = build.add(a, tap.a)
            for pa in self.pa:
                build.store(at, pa)
                at = build.add(at, group)
            build.store(build.add(b, tap.b), self.pb)
            with self.f.loop(long(0), whole, long(_UNROLLED)):
                with build.if_then(build.icmp_signed("!=", self.times, long(0))):
                    self._ask()
                self._steps(ak, bk, _UNROLLED)
            with self.f.loop(whole, depth, long(1)):
                self._steps(ak, bk, 1)
        if self.finish is None:
            self._end(c, ci)
        else:
            with build.if_else(build.icmp_signed("!=", reads, long(0))) as (finishes, ends):
                with finishes:
                    self._finish(self.finish, c, ci, reads)
                with ends:
                    self._end(c, ci)
        return self.f.text()

    def _i(self) -> range:
        return range(self.rows)

    def _begin(self, add: Value, c: Value, ci: Value) -> None:
        zero = self.v.const(0)
        with self.b.if_else(self.b.icmp_signed("!=", add, long(0))) as (adds, begins):
            with adds:
                self._set(lambda i, j: self._lanes(j).load(self._c(c, ci, i, j)))
            with begins:
                self._set(lambda i, j: zero)

    def _end(self, c: Value, ci: Value) -> None:
        for j in range(self.vectors):
            v = self._lanes(j)
            for i in self._i():
                v.store(self._sum(i, j), self._c(c, ci, i, j))

    def _finish(self, recipe: Recipe, c: Value, ci: Value, reads: Value) -> None:
        for j in range(self.vectors):
            v = self._lanes(j)
            read = reader(v, recipe, reads, long(4 * width() * j))
            for i in self._i():
                to = self._c(c, ci, i, j)
                v.store(finished(v, recipe, self._sum(i, j), partial(read, to)), to)

    def _sum(self, i: int, j: int) -> Value:
        return self.b.load(self.sums[i][j], typ=self.vector)

    def _lanes(self, j: int) -> Lanes:
        """A vector of results: of the last one of a ragged tile only some."""
        return Lanes(self.f, self.rest if self.ragged and j == self.vectors - 1 else None)

    def _set(self, value: Callable[[int, int], Value]) -> None:
        for i, row in enumerate(self.sums):
            for j, one in enumerate(row):
                self.b.store(value(i, j), one)

    def _opaque(self, value: Value) -> Value:
        """A value that stays in a register: the compiler knows no other way to come by it. Whole
        numbers take a turn of the ports that multiply, so that each k has to do with few."""
        same = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
        return self.b.call(same, [value])

    def _ask(self) -> None:
        """What the next tile reads comes into the second cache: some lines, then the next ones of
        the row or the first ones of the next row."""
        b = self.b
        at, left = b.load(self.at, typ=I64), b.load(self.left, typ=I64)
        read, second, data = (ir.Constant(I32, n) for n in (0, 2, 1))
        lines = asked(self.vectors)
        for i in range(lines):
            pointer = b.inttoptr(b.add(at, long(_LINE * i)), I8.as_pointer())
            self.f.intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, read, second, data)
        ends = b.icmp_signed("==", left, long(1))
        b.store(b.add(at, b.select(ends, self.jump, long(_LINE * lines))), self.at)
        b.store(b.select(ends, self.times, b.sub(left, long(1))), self.left)

    def _steps(self, ak: Value, bk: Value, count: int) -> None:
        """Some values of k."""
        if self.steps is None:
            for _ in range(count):
                self._step(0, 0)
                self._go_on(ak, bk)
            return
        ka, kb = self.steps
        for k in range(count):
            self._step(k * ka, k * kb)
        self._go_on(long(count * ka), long(count * kb))

    def _step(self, behind_a: int, behind_b: int) -> None:
        """One k, so many bytes on: all rows times all vectors."""
        b = self.b
        pb = b.load(self.pb, typ=I64)
        places = (behind_b + 4 * width() * j for j in range(self.vectors))
        wide = [self.v.load(b.add(pb, long(place))) for place in places]
        starts = [b.load(pa, typ=I64) for pa in self.pa]
        for i, row in enumerate(self.sums):
            at = b.add(starts[i // _APART], self.apart[i % _APART])
            one = self.v.spread(b.add(at, long(behind_a)))
            for x, there in zip(wide, row, strict=True):
                b.store(fma(self.v, one, x, b.load(there, typ=self.vector)), there)

    def _go_on(self, a: Value, b: Value) -> None:
        for place, far in (*((pa, a) for pa in self.pa), (self.pb, b)):
            at = self.b.load(place, typ=I64)
            self.b.store(self._opaque(self.b.add(at, far)), place)

    def _c(self, c: Value, ci: Value, i: int, j: int) -> Value:
        return self.b.add(self.b.add(c, self.b.mul(ci, long(i))), long(4 * width() * j))
