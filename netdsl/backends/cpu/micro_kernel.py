"""The micro-kernel: a tile of results that stays in vector registers while its products are added.

C[i, j] (+)= sum over taps t and k of A[a_t + i*ai + k*ak] * B[b_t + k*bk + j]

for `rows` values of i and `vectors` vectors of j. Strides are bytes, a tap is a pair of offsets in
bytes. Every convolution and matrix product, forward and backward, is made of such tiles. Those that
are made for certain `steps`, ak and bk, have them in their instructions: with fewer of these, more
products are under way while what they read is on its way.

Meanwhile a tile asks for what the next one will read, some cache lines with every fourth k:
`times` as many of each row, and `jump` bytes further those of the next row. It asks for nothing
where `times` is 0.

With a `finish` (see register_epilogue.py) a tile passes its sums on through an expression, where it
is given the table of what that reads: with the last products that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from llvmlite import ir

from netdsl.backends.cpu.elementwise_functions import fma
from netdsl.backends.cpu.llvm_builder import I8, I32, I64, Lanes, LlvmFunction, Value, const_i64
from netdsl.backends.cpu.llvm_jit import compile_cached, vector_width
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.register_epilogue import EpilogueExpr, emit_epilogue, make_operand_loader

_TILE_ROWS = {16: {4: 6, 3: 9, 2: 14, 1: 14}, 8: {2: 6, 1: 12}, 4: {4: 6, 2: 12, 1: 14}}
"""Rows that fill the registers beside the vectors of B: 32 of them, 16 with AVX2."""
_ROWS_PER_POINTER = 7
"""Rows that one address reaches, each with its own distance from it."""
_UNROLL = 4
_CACHE_LINE = 64

Steps = tuple[int, int] | None


class TileTap(Record):
    """A tap: how many bytes after A and after B what is multiplied begins."""

    a: int
    b: int


def max_rows(vectors: int) -> int:
    return _TILE_ROWS[vector_width()][vectors]


def list_vector_counts() -> tuple[int, ...]:
    """The numbers of vectors that there are tiles of, the widest first."""
    return tuple(_TILE_ROWS[vector_width()])


def count_prefetch_lines(vectors: int) -> int:
    """Cache lines that a tile asks for with every fourth k: all of them, when it is done, that
    each of its rows has 16 elements in."""
    return -(-max_rows(vectors) // _UNROLL)


@cache
def compile_micro_kernel(
    rows: int,
    vectors: int,
    is_ragged: bool,
    steps: Steps = None,
    epilogue: EpilogueExpr | None = None,
) -> int:
    """The address of a tile; `is_ragged` ones write only `columns` columns."""
    key = (rows, vectors, is_ragged, steps, epilogue)
    return compile_cached("tile", key, lambda: _MicroKernelEmitter(*key).text())


class _MicroKernelEmitter:
    def __init__(
        self, rows: int, vectors: int, is_ragged: bool, steps: Steps, epilogue: EpilogueExpr | None
    ) -> None:
        self.rows, self.vectors, self.is_ragged, self.steps = rows, vectors, is_ragged, steps
        self.epilogue = epilogue
        self.f = LlvmFunction("tile", 16)
        self.b, self.v = self.f.b, Lanes(self.f)
        self.vector = self.v.float_type

    def text(self) -> str:
        a, ai, ak, b, bk, c, ci, taps, count, depth, add, columns, *prefetch_args = self.f.args
        prefetch_start, self.prefetch_jump, self.prefetches_per_row, reads = prefetch_args
        build = self.b
        self.tail_mask = self.v.prefix_mask(
            build.sub(columns, const_i64((self.vectors - 1) * vector_width()))
        )
        self.accumulators = [
            [build.alloca(self.vector) for _ in range(self.vectors)] for _ in self._row_range()
        ]
        self.a_pointers = [build.alloca(I64) for _ in range(0, self.rows, _ROWS_PER_POINTER)]
        self.b_pointer, self.prefetch_pointer, self.prefetches_left = (
            build.alloca(I64) for _ in range(3)
        )
        build.store(prefetch_start, self.prefetch_pointer)
        build.store(self.prefetches_per_row, self.prefetches_left)
        self.row_offsets = [
            const_i64(0),
            *(
                self._hide_from_optimizer(build.mul(ai, const_i64(i)))
                for i in range(1, _ROWS_PER_POINTER)
            ),
        ]
        self._initialize_accumulators(add, c, ci)
        group = build.mul(ai, const_i64(_ROWS_PER_POINTER))
        whole = build.and_(depth, const_i64(-_UNROLL))
        with self.f.loop(const_i64(0), count, const_i64(1)) as t:
            tap = self.f.nth(TileTap, taps, t)
            at = build.add(a, tap.a)
            for pa in self.a_pointers:
                build.store(at, pa)
                at = build.add(at, group)
            build.store(build.add(b, tap.b), self.b_pointer)
            with self.f.loop(const_i64(0), whole, const_i64(_UNROLL)):
                with build.if_then(build.icmp_signed("!=", self.prefetches_per_row, const_i64(0))):
                    self._emit_prefetch()
                self._emit_steps(ak, bk, _UNROLL)
            with self.f.loop(whole, depth, const_i64(1)):
                self._emit_steps(ak, bk, 1)
        if self.epilogue is None:
            self._store_results(c, ci)
        else:
            with build.if_else(build.icmp_signed("!=", reads, const_i64(0))) as (finishes, ends):
                with finishes:
                    self._store_with_epilogue(self.epilogue, c, ci, reads)
                with ends:
                    self._store_results(c, ci)
        return self.f.text()

    def _row_range(self) -> range:
        return range(self.rows)

    def _initialize_accumulators(self, add: Value, c: Value, ci: Value) -> None:
        zero = self.v.const(0)
        with self.b.if_else(self.b.icmp_signed("!=", add, const_i64(0))) as (adds, begins):
            with adds:
                self._set_accumulators(
                    lambda i, j: self._vector_lanes(j).load(self._output_address(c, ci, i, j))
                )
            with begins:
                self._set_accumulators(lambda i, j: zero)

    def _store_results(self, c: Value, ci: Value) -> None:
        for j in range(self.vectors):
            v = self._vector_lanes(j)
            for i in self._row_range():
                v.store(self._load_accumulator(i, j), self._output_address(c, ci, i, j))

    def _store_with_epilogue(self, recipe: EpilogueExpr, c: Value, ci: Value, reads: Value) -> None:
        for j in range(self.vectors):
            v = self._vector_lanes(j)
            read = make_operand_loader(v, recipe, reads, const_i64(4 * vector_width() * j))
            for i in self._row_range():
                to = self._output_address(c, ci, i, j)
                v.store(
                    emit_epilogue(v, recipe, self._load_accumulator(i, j), partial(read, to)), to
                )

    def _load_accumulator(self, i: int, j: int) -> Value:
        return self.b.load(self.accumulators[i][j], typ=self.vector)

    def _vector_lanes(self, j: int) -> Lanes:
        """A vector of results: of the last one of a ragged tile only some."""
        return Lanes(self.f, self.tail_mask if self.is_ragged and j == self.vectors - 1 else None)

    def _set_accumulators(self, value: Callable[[int, int], Value]) -> None:
        for i, row in enumerate(self.accumulators):
            for j, one in enumerate(row):
                self.b.store(value(i, j), one)

    def _hide_from_optimizer(self, value: Value) -> Value:
        """A value that stays in a register: the compiler knows no other way to come by it. Whole
        numbers take a turn of the ports that multiply, so that each k has to do with few."""
        same = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
        return self.b.call(same, [value])

    def _emit_prefetch(self) -> None:
        """What the next tile reads comes into the second cache: some lines, then the next ones of
        the row or the first ones of the next row."""
        b = self.b
        at, left = b.load(self.prefetch_pointer, typ=I64), b.load(self.prefetches_left, typ=I64)
        read, second, data = (ir.Constant(I32, n) for n in (0, 2, 1))
        lines = count_prefetch_lines(self.vectors)
        for i in range(lines):
            pointer = b.inttoptr(b.add(at, const_i64(_CACHE_LINE * i)), I8.as_pointer())
            self.f.call_intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, read, second, data)
        ends = b.icmp_signed("==", left, const_i64(1))
        b.store(
            b.add(at, b.select(ends, self.prefetch_jump, const_i64(_CACHE_LINE * lines))),
            self.prefetch_pointer,
        )
        b.store(
            b.select(ends, self.prefetches_per_row, b.sub(left, const_i64(1))), self.prefetches_left
        )

    def _emit_steps(self, ak: Value, bk: Value, count: int) -> None:
        """Some values of k."""
        if self.steps is None:
            for _ in range(count):
                self._emit_step(0, 0)
                self._advance_pointers(ak, bk)
            return
        ka, kb = self.steps
        for k in range(count):
            self._emit_step(k * ka, k * kb)
        self._advance_pointers(const_i64(count * ka), const_i64(count * kb))

    def _emit_step(self, behind_a: int, behind_b: int) -> None:
        """One k, so many bytes on: all rows times all vectors."""
        b = self.b
        pb = b.load(self.b_pointer, typ=I64)
        places = (behind_b + 4 * vector_width() * j for j in range(self.vectors))
        wide = [self.v.load(b.add(pb, const_i64(place))) for place in places]
        starts = [b.load(pa, typ=I64) for pa in self.a_pointers]
        for i, row in enumerate(self.accumulators):
            at = b.add(starts[i // _ROWS_PER_POINTER], self.row_offsets[i % _ROWS_PER_POINTER])
            one = self.v.load_splat(b.add(at, const_i64(behind_a)))
            for x, accumulator in zip(wide, row, strict=True):
                b.store(fma(self.v, one, x, b.load(accumulator, typ=self.vector)), accumulator)

    def _advance_pointers(self, a: Value, b: Value) -> None:
        for place, far in (*((pa, a) for pa in self.a_pointers), (self.b_pointer, b)):
            at = self.b.load(place, typ=I64)
            self.b.store(self._hide_from_optimizer(self.b.add(at, far)), place)

    def _output_address(self, c: Value, ci: Value, i: int, j: int) -> Value:
        return self.b.add(
            self.b.add(c, self.b.mul(ci, const_i64(i))), const_i64(4 * vector_width() * j)
        )
