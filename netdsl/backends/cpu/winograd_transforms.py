"""Minimal filtering: m x m results of an r x r convolution from (m + r - 1)^2 products a channel.

Y = A [(G g G') * (B d B')] A' for a tile d of the image and weights g: A, B and G evaluate
polynomials at some points, multiply them there and find the product's coefficients again (Toom and
Cook; Winograd 1980; for convolutional networks Lavin and Gray, arXiv:1509.09308). Here are the
matrices, and machine code that applies them to vectors of channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial

from llvmlite import ir

from netdsl.backends.cpu import elementwise_functions as fn
from netdsl.backends.cpu.llvm_builder import I32, I64, Lanes, LlvmFunction, Value, const_i64
from netdsl.backends.cpu.llvm_jit import compile_cached, vector_width
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.register_epilogue import EpilogueExpr, emit_epilogue, make_operand_loader

FractionMatrix = tuple[tuple[Fraction, ...], ...]

TILE_SIZE = 6
"""Pixels along a tile of the image: five points and infinity."""
TILE_POINTS = TILE_SIZE * TILE_SIZE
_INTERPOLATION_POINTS = tuple(Fraction(n, 4) for n in (0, 3, -3, 6, -6))
"""Among points of few bits those with the least error: twice that of a plain sum, where 1 and 2
make it five times as large."""


@dataclass(frozen=True)
class WinogradMatrices:
    """The matrices of F(m, r): `image` (SIZE x SIZE), `weight` (SIZE x r), `result` (m x SIZE)."""

    image: FractionMatrix
    weight: FractionMatrix
    result: FractionMatrix


@cache
def make_winograd_matrices(r: int) -> WinogradMatrices:
    """For kernels of r x r: m is what is left of a tile, SIZE + 1 - r."""
    m = TILE_SIZE + 1 - r
    others = [[b for b in _INTERPOLATION_POINTS if b != a] for a in _INTERPOLATION_POINTS]
    scale = [
        math.prod((a - b for b in rest), start=Fraction(1))
        for a, rest in zip(_INTERPOLATION_POINTS, others, strict=True)
    ]
    image = [_polynomial_from_roots(rest) for rest in (*others, _INTERPOLATION_POINTS)]
    weight = [
        [a**k / s for k in range(r)] for a, s in zip(_INTERPOLATION_POINTS, scale, strict=True)
    ]
    weight.append([Fraction(k == r - 1) for k in range(r)])
    result = [[*(a**k for a in _INTERPOLATION_POINTS), Fraction(k == m - 1)] for k in range(m)]
    return WinogradMatrices(_freeze(image), _freeze(weight), _freeze(result))


def _freeze(rows: Sequence[Sequence[Fraction]]) -> FractionMatrix:
    return tuple(tuple(row) for row in rows)


def _polynomial_from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of the polynomial with these roots, lowest first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [a - root * b for a, b in zip(shifted, [*found, Fraction(0)], strict=True)]
    return found + [Fraction(0)] * (TILE_SIZE - len(found))


# matrices applied to vectors


def apply_matrix(v: Lanes, matrix: FractionMatrix, xs: Sequence[Value]) -> list[Value]:
    """A matrix times vectors. As points come in pairs, a and -a, so do rows, which are alike but
    for the signs of every other number, or columns: what such ones share is computed once."""
    parts: dict[tuple[tuple[int, Fraction], ...], Value] = {}

    def part(terms: tuple[tuple[int, Fraction], ...]) -> Value:
        if terms not in parts:
            parts[terms] = _sum_products(v, [(xs[k], c) for k, c in terms])
        return parts[terms]

    if paired := _combine_pairs(v, matrix, xs):
        matrix, xs = paired
    found = []
    for row in matrix:
        even, odd = (tuple((k, c) for k, c in enumerate(row) if c and k % 2 == p) for p in (0, 1))
        is_negated = bool(even and odd) and odd[0][1] < 0
        if is_negated:
            odd = tuple((k, -c) for k, c in odd)
        if not (even and odd):
            found.append(part(even or odd))
        else:
            found.append((fn.sub if is_negated else fn.add)(v, part(even), part(odd), fn.CONTRACT))
    return found


def _combine_pairs(
    v: Lanes, matrix: FractionMatrix, xs: Sequence[Value]
) -> tuple[FractionMatrix, list[Value]] | None:
    """With the sum and the difference of two vectors in their place where every row has both of
    them with the same number, or with opposite ones."""
    rows, values = [list(row) for row in matrix], list(xs)
    found = False
    for j in range(1, len(values) - 2, 2):
        if all(abs(row[j]) == abs(row[j + 1]) for row in rows):
            found = True
            pair = xs[j], xs[j + 1], fn.CONTRACT
            values[j], values[j + 1] = fn.add(v, *pair), fn.sub(v, *pair)
            for row in rows:
                same = row[j] == row[j + 1]
                row[j], row[j + 1] = (row[j], Fraction(0)) if same else (Fraction(0), row[j])
    return (_freeze(rows), values) if found else None


def _sum_products(v: Lanes, terms: Sequence[tuple[Value, Fraction]]) -> Value:
    """Of products; those with 1 first, which need none."""
    first, *rest = sorted(terms, key=lambda t: t[1] != 1)
    total = (
        first[0] if first[1] == 1 else fn.mul(v, first[0], v.const(float(first[1])), fn.CONTRACT)
    )
    for x, c in rest:
        total = (
            fn.add(v, total, x, fn.CONTRACT) if c == 1 else fn.fma(v, x, v.const(float(c)), total)
        )
    return total


def _apply_both_sides(
    v: Lanes, matrix: FractionMatrix, column: Callable[[int], list[Value]]
) -> list[list[Value]]:
    """M d M': `column` gives those of d."""
    size = len(matrix[0])
    columns = [apply_matrix(v, matrix, column(j)) for j in range(size)]
    return [apply_matrix(v, matrix, [c[i] for c in columns]) for i in range(len(matrix))]


def _store_rows(v: Lanes, rows: Sequence[Sequence[Value]], at: Value, stride: Value) -> None:
    """Vectors written so many bytes apart, row by row."""
    for row in rows:
        for value in row:
            v.store(value, at)
            at = v.f.b.add(at, stride)


# the functions


class TransformArgs(Record):
    """Bytes from row to row and from pixel to pixel of what comes to its points; bytes of its
    channels, in whole vectors; bytes from tile to tile of the target, and from point to point."""

    row: int
    pixel: int
    channels: int
    tile: int
    point: int


class WeightTransformArgs(Record):
    """Weights and their values at points: bytes of a block of the target and of a point; bytes from
    column to column and along the depth, one of them 4, and the depth; bytes of a line of a block;
    parts of a block, and 1 where each part begins where its block does; the taps' places and the
    blocks, of which no other columns are read or written."""

    block: int
    point: int
    column: int
    step: int
    depth: int
    line: int
    parts: int
    alone: int
    taps: int
    blocks: int


class WeightBlock(Record):
    """Where the weights of a column block begin, and its columns."""

    weights: int
    columns: int


class WinogradColumn(Record):
    """A column block: its weights at their points, what writes its results, bytes to these, how
    many columns it has; tiles for a whole block of lines, then for the last one; what a finish
    reads."""

    weight: int
    write: int
    out: int
    columns: int
    tiles: int
    reads: int


class ResultTransformArgs(Record):
    """Bytes from row to row and from pixel to pixel of the target; bytes from tile to tile of the
    source, and from point to point; tiles, and pixels of a row; the column blocks."""

    row: int
    pixel: int
    tile: int
    point: int
    across: int
    wide: int
    columns: int


class WgradTransformArgs(Record):
    """Sums at all points: bytes of a part, how many are to be added, bytes from line to line and
    from point to point; target, bytes of a line of it and of a tap, channels."""

    sums: int
    part: int
    parts: int
    line: int
    point: int
    target: int
    target_line: int
    tap: int
    channels: int


def padded_transform_bytes(nbytes: int) -> int:
    """Bytes of values at all points, so many each at least: as they are written side by side, they
    must not share sets of the cache, and lie an odd number of lines apart."""
    lines = -(-nbytes // 64)
    return TILE_POINTS * 64 * (lines + 1 - lines % 2)


@cache
def compile_image_transform(r: int) -> int:
    """The address of `f(args, image, target, count, high, wide)`: the tiles of a row of them, all
    channels, as their values at all points; args: PointsArgs. `high` and `wide` say how many
    pixels there are: beyond, the last one is taken again.
    """
    return compile_cached("image_at_points", r, lambda: _generate_image_transform(r))


def _generate_image_transform(r: int) -> str:
    f = LlvmFunction("image_at_points")
    b, v, m = f.b, Lanes(f), TILE_SIZE + 1 - r
    _, image, target, count, high, wide = f.args
    a = f.record(TransformArgs)
    last = b.sub(high, const_i64(1))
    rows = [b.add(image, b.mul(f.min_i64(const_i64(i), last), a.row)) for i in range(TILE_SIZE)]
    right = b.sub(wide, const_i64(1))
    with f.loop(const_i64(0), count, const_i64(1)) as t:
        first = b.mul(t, const_i64(m))
        columns = [
            b.mul(f.min_i64(b.add(first, const_i64(j)), right), a.pixel) for j in range(TILE_SIZE)
        ]
        to = b.add(target, b.mul(t, a.tile))
        with f.loop(const_i64(0), a.channels, const_i64(4 * vector_width())) as c:

            def column(j: int) -> list[Value]:
                return [v.load(b.add(b.add(at, c), columns[j])) for at in rows]

            at = b.add(to, c)
            _store_rows(
                v, _apply_both_sides(v, make_winograd_matrices(r).image, column), at, a.point
            )
    return f.text()


@cache
def compile_weight_transform(r: int, is_dense: bool) -> int:
    """The address of `f(args, first, last, target, ...)`: weights at all points, for parts `first`
    to `last` of all column blocks, each some of the depth; args: WeightArgs, whose `column` is 4
    where it is `is_dense`."""
    return compile_cached(
        "weight_at_points", (r, is_dense), lambda: _generate_weight_transform(r, is_dense)
    )


def _generate_weight_transform(r: int, is_dense: bool) -> str:
    f = LlvmFunction("weight_at_points")
    b, lanes = f.b, vector_width()
    a = f.record(WeightTransformArgs)
    places = [f.load_i64(a.taps, const_i64(i)) for i in range(r * r)]
    v = Lanes(f)
    with b.goto_entry_block():
        transposed_block = b.ptrtoint(b.alloca(ir.ArrayType(v.float_type, r * r * lanes)), I64)

    def put(to: Value, k: Value, tap: Callable[[int], Value]) -> None:
        def column(j: int) -> list[Value]:
            return [tap(i * r + j) for i in range(r)]

        place = b.add(to, b.mul(k, a.line))
        _store_rows(
            v, _apply_both_sides(v, make_winograd_matrices(r).weight, column), place, a.point
        )

    with f.loop(f.args[1], f.args[2], const_i64(1)) as i:
        block, part = b.sdiv(i, a.parts), b.srem(i, a.parts)
        begin, end = (b.sdiv(b.mul(a.depth, b.add(part, const_i64(n))), a.parts) for n in (0, 1))
        own = f.nth(WeightBlock, a.blocks, block)
        with f.loop(const_i64(0), own.columns, const_i64(lanes)) as j:
            left = b.sub(own.columns, j)
            from_ = b.add(own.weights, b.mul(j, a.column))
            behind = b.sub(b.mul(block, a.block), b.mul(b.mul(begin, a.alone), a.line))
            to = b.add(b.add(f.args[3], behind), b.mul(j, const_i64(4)))
            if is_dense:
                some = Lanes(f, v.prefix_mask(left))
                with f.loop(begin, end, const_i64(1)) as k:
                    at = b.add(from_, b.mul(k, a.step))
                    put(to, k, lambda t: some.load(b.add(at, places[t])))
            else:
                with f.loop(begin, end, const_i64(lanes)) as k0:
                    at = b.add(from_, b.mul(k0, a.step))
                    for t, place in enumerate(places):
                        _transpose_lines(
                            v,
                            b.add(at, place),
                            a.column,
                            left,
                            _offset_vectors(b, transposed_block, t * lanes),
                        )
                    with f.loop(k0, f.min_i64(end, b.add(k0, const_i64(lanes))), const_i64(1)) as k:
                        near = b.add(transposed_block, b.mul(b.sub(k, k0), const_i64(4 * lanes)))
                        put(to, k, lambda t: v.load(_offset_vectors(b, near, t * lanes)))
    return f.text()


def _offset_vectors(b: Value, place: Value, vectors: int) -> Value:
    return b.add(place, const_i64(4 * vector_width() * vectors))


def _transpose_lines(v: Lanes, source: Value, step: Value, count: Value, target: Value) -> None:
    """Lines of a vector each, `step` bytes apart, `count` of them and zeros: transposed."""
    b, rows = v.f.b, []
    for i in range(v.count):
        is_present = b.icmp_signed("<", const_i64(i), count)
        far = b.select(is_present, b.mul(step, const_i64(i)), const_i64(0))
        rows.append(b.select(is_present, v.load(b.add(source, far)), v.const(0)))
    for i, row in enumerate(transpose_vectors(v, rows)):
        v.store(row, _offset_vectors(b, target, i))


def transpose_vectors(v: Lanes, rows: Sequence[Value]) -> list[Value]:
    """As many vectors as they have lanes: squares of two swap their corners, then those of four,
    and so on."""
    found, size = list(rows), 1
    while size < v.count:
        low, high = ([], [])
        for n in range(v.count):
            above = n & size
            low.append(v.count + n - size if above else n)
            high.append(v.count + n if above else n + size)
        for i in (n for n in range(v.count) if not n & size):
            pair = found[i], found[i + size]
            for place, order in ((i, low), (i + size, high)):
                mask = ir.Constant(v.vector_type(I32), order)
                found[place] = v.f.b.shuffle_vector(*pair, mask)
        size *= 2
    return found


@cache
def compile_result_transform(r: int, is_ragged: bool, epilogue: EpilogueExpr | None) -> int:
    """The address of `f(args, source, target, column, high, ...)`: results of a row of tiles from
    their values at all points; args: ResultArgs. `column` is the number of a column block, `high`
    says how many rows there are.
    """
    key = (r, is_ragged, epilogue)
    return compile_cached("results_from_points", key, lambda: _generate_result_transform(*key))


def _generate_result_transform(r: int, is_ragged: bool, epilogue: EpilogueExpr | None) -> str:
    f = LlvmFunction("results_from_points")
    b, m = f.b, TILE_SIZE + 1 - r
    _, source, target, column, high, _ = f.args
    a = f.record(ResultTransformArgs)
    own = f.nth(WinogradColumn, a.columns, column)
    columns, reads = own.columns, own.reads
    with f.loop(const_i64(0), a.across, const_i64(1)) as t:
        first = b.mul(t, const_i64(m))
        left = b.sub(a.wide, first)
        from_ = b.add(source, b.mul(t, a.tile))
        to = b.add(target, b.mul(first, a.pixel))
        with f.loop(const_i64(0), b.mul(columns, const_i64(4)), const_i64(4 * vector_width())) as j:
            v = Lanes(f)
            v.mask = v.prefix_mask(b.sub(columns, b.sdiv(j, const_i64(4)))) if is_ragged else None

            def value(i: int, k: int) -> Value:
                place = b.add(b.add(from_, j), b.mul(a.point, const_i64(i * TILE_SIZE + k)))
                return Lanes(f).load(place)

            lines = _apply_both_sides(
                v,
                make_winograd_matrices(r).result,
                lambda k: [value(i, k) for i in range(TILE_SIZE)],
            )
            load_operand = make_operand_loader(v, epilogue, reads, j) if epilogue else None
            for i, line in enumerate(lines):
                with b.if_then(b.icmp_signed("<", const_i64(i), high)):
                    for k, x in enumerate(line):
                        with b.if_then(b.icmp_signed("<", const_i64(k), left)):
                            place = b.add(
                                b.add(to, j),
                                b.add(b.mul(a.row, const_i64(i)), b.mul(a.pixel, const_i64(k))),
                            )
                            if epilogue and load_operand:
                                x = emit_epilogue(v, epilogue, x, partial(load_operand, place))
                            v.store(x, place)
    return f.text()


@cache
def compile_gradient_transform(r: int) -> int:
    """The address of `f(args, gradient, target, count, high, wide)`: as `compile_image_transform`,
    for tiles of m x m pixels of a gradient. Beyond `high` and `wide` there are zeros."""
    return compile_cached("gradient_at_points", r, lambda: _generate_gradient_transform(r))


def _generate_gradient_transform(r: int) -> str:
    f = LlvmFunction("gradient_at_points")
    b, v, m = f.b, Lanes(f), TILE_SIZE + 1 - r
    _, gradient, target, count, high, wide = f.args
    a = f.record(TransformArgs)
    zero = v.const(0)
    with f.loop(const_i64(0), count, const_i64(1)) as t:
        first = b.mul(t, const_i64(m))
        places = {}
        for i in range(m):
            for j in range(m):
                x = b.add(first, const_i64(j))
                is_inside = b.and_(
                    b.icmp_signed("<", const_i64(i), high), b.icmp_signed("<", x, wide)
                )
                far = b.add(b.mul(const_i64(i), a.row), b.mul(x, a.pixel))
                places[i, j] = is_inside, b.add(gradient, b.select(is_inside, far, const_i64(0)))
        to = b.add(target, b.mul(t, a.tile))
        with f.loop(const_i64(0), a.channels, const_i64(4 * vector_width())) as c:

            def column(j: int) -> list[Value]:
                some = (places[i, j] for i in range(m))
                return [b.select(is_inside, v.load(b.add(at, c)), zero) for is_inside, at in some]

            at = b.add(to, c)
            _store_rows(
                v, _apply_both_sides(v, make_winograd_matrices(m).weight, column), at, a.point
            )
    return f.text()


@cache
def compile_wgrad_transform(r: int) -> int:
    """The address of `f(args, first, last, ...)`: lines `first` to `last` of a weight's gradient,
    r x r times its channels each, from sums of products at all points; args: WeightSumArgs."""
    return compile_cached("weight_from_points", r, lambda: _generate_wgrad_transform(r))


def _generate_wgrad_transform(r: int) -> str:
    f = LlvmFunction("weight_from_points")
    b = f.b
    a = f.record(WgradTransformArgs)
    plain = Lanes(f)
    with b.goto_entry_block():
        totals = [[b.alloca(plain.float_type) for _ in range(TILE_SIZE)] for _ in range(TILE_SIZE)]
    with (
        f.loop(f.args[1], f.args[2], const_i64(1)) as k,
        f.loop(const_i64(0), a.channels, const_i64(vector_width())) as c,
    ):
        far = b.mul(c, const_i64(4))
        at = b.add(b.add(a.sums, b.mul(k, a.line)), far)
        for row in totals:
            for total in row:
                b.store(plain.const(0), total)
        with f.loop(const_i64(0), a.parts, const_i64(1)) as p:
            place = b.add(at, b.mul(p, a.part))
            for row in totals:
                for total in row:
                    one = fn.add(plain, b.load(total, typ=plain.float_type), plain.load(place))
                    b.store(one, total)
                    place = b.add(place, a.point)

        def column(j: int) -> list[Value]:
            return [b.load(row[j], typ=plain.float_type) for row in totals]

        v = Lanes(f)
        v.mask = v.prefix_mask(b.sub(a.channels, c))
        to = b.add(b.add(a.target, b.mul(k, a.target_line)), far)
        _store_rows(
            v,
            _apply_both_sides(plain, make_winograd_matrices(TILE_SIZE + 1 - r).result, column),
            to,
            a.tap,
        )
    return f.text()
