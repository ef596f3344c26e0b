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

from netdsl.backends.cpu import functions as fn
from netdsl.backends.cpu.emit import I32, I64, Function, Lanes, Value, long
from netdsl.backends.cpu.finish import Recipe, finished, reader
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.target import width, written

Matrix = tuple[tuple[Fraction, ...], ...]

SIZE = 6
"""Pixels along a tile of the image: five points and infinity."""
POINTS = SIZE * SIZE
_POINTS = tuple(Fraction(n, 4) for n in (0, 3, -3, 6, -6))
"""Among points of few bits those with the least error: twice that of a plain sum, where 1 and 2
make it five times as large."""


@dataclass(frozen=True)
class Minimal:
    """The matrices of F(m, r): `image` (SIZE x SIZE), `weight` (SIZE x r), `result` (m x SIZE)."""

    image: Matrix
    weight: Matrix
    result: Matrix


@cache
def minimal(r: int) -> Minimal:
    """For kernels of r x r: m is what is left of a tile, SIZE + 1 - r."""
    m = SIZE + 1 - r
    others = [[b for b in _POINTS if b != a] for a in _POINTS]
    scale = [
        math.prod((a - b for b in rest), start=Fraction(1))
        for a, rest in zip(_POINTS, others, strict=True)
    ]
    image = [_with_roots(rest) for rest in (*others, _POINTS)]
    weight = [[a**k / s for k in range(r)] for a, s in zip(_POINTS, scale, strict=True)]
    weight.append([Fraction(k == r - 1) for k in range(r)])
    result = [[*(a**k for a in _POINTS), Fraction(k == m - 1)] for k in range(m)]
    return Minimal(_frozen(image), _frozen(weight), _frozen(result))


def _frozen(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of the polynomial with these roots, lowest first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [a - root * b for a, b in zip(shifted, [*found, Fraction(0)], strict=True)]
    return found + [Fraction(0)] * (SIZE - len(found))


# matrices applied to vectors


def applied(v: Lanes, matrix: Matrix, xs: Sequence[Value]) -> list[Value]:
    """A matrix times vectors. As points come in pairs, a and -a, so do rows, which are alike but
    for the signs of every other number, or columns: what such ones share is computed once."""
    parts: dict[tuple[tuple[int, Fraction], ...], Value] = {}

    def part(terms: tuple[tuple[int, Fraction], ...]) -> Value:
        if terms not in parts:
            parts[terms] = _sum(v, [(xs[k], c) for k, c in terms])
        return parts[terms]

    if paired := _paired(v, matrix, xs):
        matrix, xs = paired
    found = []
    for row in matrix:
        even, odd = (tuple((k, c) for k, c in enumerate(row) if c and k % 2 == p) for p in (0, 1))
        turned = bool(even and odd) and odd[0][1] < 0
        if turned:
            odd = tuple((k, -c) for k, c in odd)
        if not (even and odd):
            found.append(part(even or odd))
        else:
            found.append((fn.sub if turned else fn.add)(v, part(even), part(odd), fn.CONTRACT))
    return found


def _paired(v: Lanes, matrix: Matrix, xs: Sequence[Value]) -> tuple[Matrix, list[Value]] | None:
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
    return (_frozen(rows), values) if found else None


def _sum(v: Lanes, terms: Sequence[tuple[Value, Fraction]]) -> Value:
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


def _both_ways(v: Lanes, matrix: Matrix, column: Callable[[int], list[Value]]) -> list[list[Value]]:
    """M d M': `column` gives those of d."""
    size = len(matrix[0])
    columns = [applied(v, matrix, column(j)) for j in range(size)]
    return [applied(v, matrix, [c[i] for c in columns]) for i in range(len(matrix))]


def _put(v: Lanes, rows: Sequence[Sequence[Value]], at: Value, apart: Value) -> None:
    """Vectors written so many bytes apart, row by row."""
    for row in rows:
        for value in row:
            v.store(value, at)
            at = v.f.b.add(at, apart)


# the functions


class PointsArgs(Record):
    """Bytes from row to row and from pixel to pixel of what comes to its points; bytes of its
    channels, in whole vectors; bytes from tile to tile of the target, and from point to point."""

    row: int
    pixel: int
    channels: int
    tile: int
    point: int


class WeightArgs(Record):
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


class FilteredColumn(Record):
    """A column block: its weights at their points, what writes its results, bytes to these, how
    many columns it has; tiles for a whole block of lines, then for the last one; what a finish
    reads."""

    weight: int
    write: int
    out: int
    columns: int
    tiles: int
    reads: int


class ResultArgs(Record):
    """Bytes from row to row and from pixel to pixel of the target; bytes from tile to tile of the
    source, and from point to point; tiles, and pixels of a row; the column blocks."""

    row: int
    pixel: int
    tile: int
    point: int
    across: int
    wide: int
    columns: int


class WeightSumArgs(Record):
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


def at_all_points(nbytes: int) -> int:
    """Bytes of values at all points, so many each at least: as they are written side by side, they
    must not share sets of the cache, and lie an odd number of lines apart."""
    lines = -(-nbytes // 64)
    return POINTS * 64 * (lines + 1 - lines % 2)


@cache
def image_at_points(r: int) -> int:
    """The address of `f(args, image, target, count, high, wide)`: the tiles of a row of them, all
    channels, as their values at all points; args: PointsArgs. `high` and `wide` say how many
    pixels there are: beyond, the last one is taken again.
    """
    return written("image_at_points", r, lambda: _image(r))


def _image(r: int) -> str:
    f = Function("image_at_points")
    b, v, m = f.b, Lanes(f), SIZE + 1 - r
    _, image, target, count, high, wide = f.args
    a = f.record(PointsArgs)
    last = b.sub(high, long(1))
    rows = [b.add(image, b.mul(f.smaller(long(i), last), a.row)) for i in range(SIZE)]
    right = b.sub(wide, long(1))
    with f.loop(long(0), count, long(1)) as t:
        first = b.mul(t, long(m))
        columns = [b.mul(f.smaller(b.add(first, long(j)), right), a.pixel) for j in range(SIZE)]
        to = b.add(target, b.mul(t, a.tile))
        with f.loop(long(0), a.channels, long(4 * width())) as c:

            def column(j: int) -> list[Value]:
                return [v.load(b.add(b.add(at, c), columns[j])) for at in rows]

            at = b.add(to, c)
            _put(v, _both_ways(v, minimal(r).image, column), at, a.point)
    return f.text()


@cache
def weight_at_points(r: int, dense: bool) -> int:
    """The address of `f(args, first, last, target, ...)`: weights at all points, for parts `first`
    to `last` of all column blocks, each some of the depth; args: WeightArgs, whose `column` is 4
    where it is `dense`."""
    return written("weight_at_points", (r, dense), lambda: _weight(r, dense))


def _weight(r: int, dense: bool) -> str:
    f = Function("weight_at_points")
    b, lanes = f.b, width()
    a = f.record(WeightArgs)
    places = [f.long_nth(a.taps, long(i)) for i in range(r * r)]
    v = Lanes(f)
    with b.goto_entry_block():
        turned = b.ptrtoint(b.alloca(ir.ArrayType(v.floats, r * r * lanes)), I64)

    def put(to: Value, k: Value, tap: Callable[[int], Value]) -> None:
        def column(j: int) -> list[Value]:
            return [tap(i * r + j) for i in range(r)]

        place = b.add(to, b.mul(k, a.line))
        _put(v, _both_ways(v, minimal(r).weight, column), place, a.point)

    with f.loop(f.args[1], f.args[2], long(1)) as i:
        block, part = b.sdiv(i, a.parts), b.srem(i, a.parts)
        begin, end = (b.sdiv(b.mul(a.depth, b.add(part, long(n))), a.parts) for n in (0, 1))
        own = f.nth(WeightBlock, a.blocks, block)
        with f.loop(long(0), own.columns, long(lanes)) as j:
            left = b.sub(own.columns, j)
            from_ = b.add(own.weights, b.mul(j, a.column))
            behind = b.sub(b.mul(block, a.block), b.mul(b.mul(begin, a.alone), a.line))
            to = b.add(b.add(f.args[3], behind), b.mul(j, long(4)))
            if dense:
                some = Lanes(f, v.first(left))
                with f.loop(begin, end, long(1)) as k:
                    at = b.add(from_, b.mul(k, a.step))
                    put(to, k, lambda t: some.load(b.add(at, places[t])))
            else:
                with f.loop(begin, end, long(lanes)) as k0:
                    at = b.add(from_, b.mul(k0, a.step))
                    for t, place in enumerate(places):
                        _turn(v, b.add(at, place), a.column, left, _at(b, turned, t * lanes))
                    with f.loop(k0, f.smaller(end, b.add(k0, long(lanes))), long(1)) as k:
                        near = b.add(turned, b.mul(b.sub(k, k0), long(4 * lanes)))
                        put(to, k, lambda t: v.load(_at(b, near, t * lanes)))
    return f.text()


def _at(b: Value, place: Value, vectors: int) -> Value:
    return b.add(place, long(4 * width() * vectors))


def _turn(v: Lanes, source: Value, step: Value, count: Value, target: Value) -> None:
    """Lines of a vector each, `step` bytes apart, `count` of them and zeros: transposed."""
    b, rows = v.f.b, []
    for i in range(v.count):
        there = b.icmp_signed("<", long(i), count)
        far = b.select(there, b.mul(step, long(i)), long(0))
        rows.append(b.select(there, v.load(b.add(source, far)), v.const(0)))
    for i, row in enumerate(transposed(v, rows)):
        v.store(row, _at(b, target, i))


def transposed(v: Lanes, rows: Sequence[Value]) -> list[Value]:
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
                mask = ir.Constant(v.typed(I32), order)
                found[place] = v.f.b.shuffle_vector(*pair, mask)
        size *= 2
    return found


@cache
def results_from_points(r: int, ragged: bool, finish: Recipe | None) -> int:
    """The address of `f(args, source, target, column, high, ...)`: results of a row of tiles from
    their values at all points; args: ResultArgs. `column` is the number of a column block, `high`
    says how many rows there are.
    """
    recipe = (r, ragged, finish)
    return written("results_from_points", recipe, lambda: _results(*recipe))


def _results(r: int, ragged: bool, finish: Recipe | None) -> str:
    f = Function("results_from_points")
    b, m = f.b, SIZE + 1 - r
    _, source, target, column, high, _ = f.args
    a = f.record(ResultArgs)
    own = f.nth(FilteredColumn, a.columns, column)
    columns, reads = own.columns, own.reads
    with f.loop(long(0), a.across, long(1)) as t:
        first = b.mul(t, long(m))
        left = b.sub(a.wide, first)
        from_ = b.add(source, b.mul(t, a.tile))
        to = b.add(target, b.mul(first, a.pixel))
        with f.loop(long(0), b.mul(columns, long(4)), long(4 * width())) as j:
            v = Lanes(f)
            v.mask = v.first(b.sub(columns, b.sdiv(j, long(4)))) if ragged else None

            def value(i: int, k: int) -> Value:
                place = b.add(b.add(from_, j), b.mul(a.point, long(i * SIZE + k)))
                return Lanes(f).load(place)

            lines = _both_ways(v, minimal(r).result, lambda k: [value(i, k) for i in range(SIZE)])
            read = reader(v, finish, reads, j) if finish else None
            for i, line in enumerate(lines):
                with b.if_then(b.icmp_signed("<", long(i), high)):
                    for k, x in enumerate(line):
                        with b.if_then(b.icmp_signed("<", long(k), left)):
                            place = b.add(
                                b.add(to, j), b.add(b.mul(a.row, long(i)), b.mul(a.pixel, long(k)))
                            )
                            if finish and read:
                                x = finished(v, finish, x, partial(read, place))
                            v.store(x, place)
    return f.text()


@cache
def gradient_at_points(r: int) -> int:
    """The address of `f(args, gradient, target, count, high, wide)`: as `image_at_points`, for
    tiles of m x m pixels of a gradient. Beyond `high` and `wide` there are zeros."""
    return written("gradient_at_points", r, lambda: _gradient(r))


def _gradient(r: int) -> str:
    f = Function("gradient_at_points")
    b, v, m = f.b, Lanes(f), SIZE + 1 - r
    _, gradient, target, count, high, wide = f.args
    a = f.record(PointsArgs)
    zero = v.const(0)
    with f.loop(long(0), count, long(1)) as t:
        first = b.mul(t, long(m))
        places = {}
        for i in range(m):
            for j in range(m):
                x = b.add(first, long(j))
                there = b.and_(b.icmp_signed("<", long(i), high), b.icmp_signed("<", x, wide))
                far = b.add(b.mul(long(i), a.row), b.mul(x, a.pixel))
                places[i, j] = there, b.add(gradient, b.select(there, far, long(0)))
        to = b.add(target, b.mul(t, a.tile))
        with f.loop(long(0), a.channels, long(4 * width())) as c:

            def column(j: int) -> list[Value]:
                some = (places[i, j] for i in range(m))
                return [b.select(there, v.load(b.add(at, c)), zero) for there, at in some]

            at = b.add(to, c)
            _put(v, _both_ways(v, minimal(m).weight, column), at, a.point)
    return f.text()


@cache
def weight_from_points(r: int) -> int:
    """The address of `f(args, first, last, ...)`: lines `first` to `last` of a weight's gradient,
    r x r times its channels each, from sums of products at all points; args: WeightSumArgs."""
    return written("weight_from_points", r, lambda: _weight_sum(r))


def _weight_sum(r: int) -> str:
    f = Function("weight_from_points")
    b = f.b
    a = f.record(WeightSumArgs)
    plain = Lanes(f)
    with b.goto_entry_block():
        totals = [[b.alloca(plain.floats) for _ in range(SIZE)] for _ in range(SIZE)]
    with (
        f.loop(f.args[1], f.args[2], long(1)) as k,
        f.loop(long(0), a.channels, long(width())) as c,
    ):
        far = b.mul(c, long(4))
        at = b.add(b.add(a.sums, b.mul(k, a.line)), far)
        for row in totals:
            for total in row:
                b.store(plain.const(0), total)
        with f.loop(long(0), a.parts, long(1)) as p:
            place = b.add(at, b.mul(p, a.part))
            for row in totals:
                for total in row:
                    one = fn.add(plain, b.load(total, typ=plain.floats), plain.load(place))
                    b.store(one, total)
                    place = b.add(place, a.point)

        def column(j: int) -> list[Value]:
            return [b.load(row[j], typ=plain.floats) for row in totals]

        v = Lanes(f)
        v.mask = v.first(b.sub(a.channels, c))
        to = b.add(b.add(a.target, b.mul(k, a.target_line)), far)
        _put(v, _both_ways(plain, minimal(SIZE + 1 - r).result, column), to, a.tap)
    return f.text()
