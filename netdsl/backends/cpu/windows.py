"""Pooling over windows and its gradients, and normalisation across channels: functions of vectors
of channels, written in LLVM's language."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from llvmlite import ir

from netdsl.backends.cpu import functions as fn
from netdsl.backends.cpu.emit import F32, Function, Lanes, Value, long
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.target import compiled


class PoolArgs(Record):
    """An image x, what it is pooled to y, and the image's gradient d, each with bytes to the next
    image, row and pixel; then sizes of x and y, window, padding, how much padding counts."""

    x: int
    x_n: int
    x_row: int
    x_pixel: int
    y: int
    y_n: int
    y_row: int
    y_pixel: int
    d: int
    d_n: int
    d_row: int
    d_pixel: int
    height: int
    width: int
    rows: int
    columns: int
    kh: int
    kw: int
    sh: int
    sw: int
    top: int
    left: int
    c_top: int
    c_bottom: int
    c_left: int
    c_right: int
    channels: int


class LrnArgs(Record):
    """An image, its gradient or result, the result's gradient, memory for one row a task, bytes of
    a row, channels."""

    x: int
    y: int
    g: int
    spare: int
    row: int
    channels: int


class _Pool:
    def __init__(self, name: str) -> None:
        self.f = Function(name)
        self.a = a = self.f.record(PoolArgs)
        self.places = {
            "x": (a.x, a.x_n, a.x_row, a.x_pixel),
            "y": (a.y, a.y_n, a.y_row, a.y_pixel),
            "d": (a.d, a.d_n, a.d_row, a.d_pixel),
        }

    def at(self, what: str, n: Value, row: Value, pixel: Value, c: Value) -> Value:
        b = self.f.b
        place, *steps = self.places[what]
        for i, step in zip((n, row, pixel), steps, strict=True):
            place = b.add(place, b.mul(i, step))
        return b.add(place, b.mul(c, long(4)))

    def channels(self, body: Callable[[Lanes, Value], None]) -> None:
        f, b = self.f, self.f.b
        v = Lanes(f)
        whole = b.and_(self.a.channels, long(-v.count))
        with f.loop(long(0), whole, long(v.count)) as c:
            body(v, c)
        left = b.sub(self.a.channels, whole)
        with b.if_then(b.icmp_signed(">", left, long(0))):
            rest = Lanes(f)
            rest.mask = rest.first(left)
            body(rest, whole)

    def least(self, x: Value, z: Value) -> Value:
        return self.f.b.select(self.f.b.icmp_signed("<", x, z), x, z)

    def most(self, x: Value, z: Value) -> Value:
        return self.f.b.select(self.f.b.icmp_signed(">", x, z), x, z)

    def window(self, i: Value, axis: str) -> tuple[Value, Value, Value]:
        """First and last pixel of a window, and how many count, along an axis."""
        b, a = self.f.b, self.a
        size, k, s, pad = {
            "h": (a.height, a.kh, a.sh, a.top),
            "w": (a.width, a.kw, a.sw, a.left),
        }[axis]
        low, high = (a.c_top, a.c_bottom) if axis == "h" else (a.c_left, a.c_right)
        start = b.sub(b.mul(i, s), pad)
        stop = b.add(start, k)
        first, last = self.most(start, long(0)), self.least(stop, size)
        counted = b.sub(self.least(stop, b.add(size, high)), self.most(start, b.neg(low)))
        return first, last, counted

    def variable(self, kind: Any) -> Value:
        with self.f.b.goto_entry_block():
            return self.f.b.alloca(kind)

    def taps(self, h: tuple[Value, ...], w: tuple[Value, ...]) -> _Taps:
        return _Taps(self.f, h, w)

    def largest(self, v: Lanes, n: Value, h: Any, w: Any, c: Value) -> Value:
        b = self.f.b
        best = self.variable(v.floats)
        b.store(v.const(float("-inf")), best)
        with self.taps(h, w) as (i, j):
            x = v.load(self.at("x", n, i, j, c))
            b.store(fn.maximum(v, b.load(best, typ=v.floats), x), best)
        return b.load(best, typ=v.floats)

    def count(self, v: Lanes, h: Any, w: Any) -> Value:
        b = self.f.b
        return v.splat(b.sitofp(b.mul(h[2], w[2]), F32))


class _Taps:
    """Both loops over a window."""

    def __init__(self, f: Function, h: Any, w: Any) -> None:
        self.loops: list[AbstractContextManager[Value]] = [
            f.loop(h[0], h[1], long(1)),
            f.loop(w[0], w[1], long(1)),
        ]

    def __enter__(self) -> tuple[Value, Value]:
        return self.loops[0].__enter__(), self.loops[1].__enter__()

    def __exit__(self, *how: Any) -> None:
        self.loops[1].__exit__(*how)
        self.loops[0].__exit__(*how)


@cache
def pool(op: str) -> int:
    """Pooling of rows `first` to `last` of the batch's rows."""
    p = _Pool("pool")
    f, b = p.f, p.f.b
    with f.loop(f.args[1], f.args[2], long(1)) as q:
        n, row = b.sdiv(q, p.a.rows), b.srem(q, p.a.rows)
        h = p.window(row, "h")
        with f.loop(long(0), p.a.columns, long(1)) as column:
            w = p.window(column, "w")

            def body(v: Lanes, c: Value) -> None:
                if op == "max_pool":
                    found = p.largest(v, n, h, w, c)
                else:
                    total = p.variable(v.floats)
                    b.store(v.const(0), total)
                    with p.taps(h, w) as (i, j):
                        x = v.load(p.at("x", n, i, j, c))
                        b.store(fn.add(v, b.load(total, typ=v.floats), x), total)
                    found = fn.div(v, b.load(total, typ=v.floats), p.count(v, h, w))
                v.store(found, p.at("y", n, row, column, c))

            p.channels(body)
    return compiled("pool", f.text())


@cache
def pool_grad(op: str) -> int:
    """Gradients of images `first` to `last`; `y` is the result's gradient, `d` the image's."""
    p = _Pool("pool_grad")
    f = p.f
    with f.loop(f.args[1], f.args[2], long(1)) as n:
        with (
            f.loop(long(0), p.a.height, long(1)) as i,
            f.loop(long(0), p.a.width, long(1)) as j,
        ):
            p.channels(lambda v, c: v.store(v.const(0), p.at("d", n, i, j, c)))
        with f.loop(long(0), p.a.rows, long(1)) as row:
            h = p.window(row, "h")
            with f.loop(long(0), p.a.columns, long(1)) as column:
                w = p.window(column, "w")

                def body(v: Lanes, c: Value) -> None:
                    g = v.load(p.at("y", n, row, column, c))
                    if op == "max_pool_grad":
                        _to_first(p, v, n, h, w, c, g)
                    else:
                        share = fn.div(v, g, p.count(v, h, w))
                        with p.taps(h, w) as (i, j):
                            at = p.at("d", n, i, j, c)
                            v.store(fn.add(v, v.load(at), share), at)

                p.channels(body)
    return compiled("pool_grad", f.text())


def _to_first(p: _Pool, v: Lanes, n: Value, h: Any, w: Any, c: Value, g: Value) -> None:
    """A window's gradient to the first of its largest values."""
    b = p.f.b
    best = p.largest(v, n, h, w, c)
    free = p.variable(v.bits)
    b.store(ir.Constant(v.bits, [1] * v.count), free)
    with p.taps(h, w) as (i, j):
        equal = b.fcmp_ordered("==", v.load(p.at("x", n, i, j, c)), best)
        first = b.and_(equal, b.load(free, typ=v.bits))
        at = p.at("d", n, i, j, c)
        v.store(fn.add(v, v.load(at), fn.select(v, first, g, v.const(0))), at)
        b.store(b.and_(b.load(free, typ=v.bits), b.not_(first)), free)


@cache
def lrn(size: int, alpha: float, beta: float, k: float, gradient: bool) -> int:
    """Local response normalisation of pixels `first` to `last`, each a row of channels."""
    f = Function("lrn")
    b = f.b
    a = f.record(LrnArgs)
    channels = a.channels
    own = b.add(a.spare, b.mul(f.args[3], a.row))
    half = size // 2

    def around(v: Lanes, row: Value, c: Value, square: bool) -> Value:
        total = v.const(0)
        for d in range(-half, half + 1):
            lane = b.add(v.splat(b.add(c, long(d))), v.steps())
            inside = b.and_(
                b.icmp_signed(">=", lane, v.splat(long(0))),
                b.icmp_signed("<", lane, v.splat(channels)),
            )
            one = Lanes(f).load(b.add(row, b.mul(b.add(c, long(d)), long(4))), F32, inside)
            total = fn.fma(v, one, one, total) if square else fn.add(v, total, one)
        return total

    def scale(v: Lanes, row: Value, c: Value) -> tuple[Value, Value]:
        s = fn.fma(v, v.const(alpha), around(v, row, c, True), v.const(k))
        return s, _power(v, s, beta)

    with f.loop(f.args[1], f.args[2], long(1)) as pixel:
        at = b.mul(pixel, a.row)
        image, result, given = b.add(a.x, at), b.add(a.y, at), b.add(a.g, at)

        def each(body: Callable[[Lanes, Value, Value], None]) -> None:
            v = Lanes(f)
            with f.loop(long(0), channels, long(v.count)) as c:
                lanes = Lanes(f)
                lanes.mask = lanes.first(b.sub(channels, c))
                body(lanes, c, b.mul(c, long(4)))

        def forward(v: Lanes, c: Value, far: Value) -> None:
            _, root = scale(v, image, c)
            v.store(fn.mul(v, v.load(b.add(image, far)), root), b.add(result, far))

        def shares(v: Lanes, c: Value, far: Value) -> None:
            s, root = scale(v, image, c)
            both = fn.mul(v, v.load(b.add(image, far)), v.load(b.add(given, far)))
            v.store(fn.mul(v, both, fn.div(v, root, s)), b.add(own, far))

        def backward(v: Lanes, c: Value, far: Value) -> None:
            _, root = scale(v, image, c)
            direct = fn.mul(v, v.load(b.add(given, far)), root)
            others = fn.mul(v, v.load(b.add(image, far)), around(v, own, c, False))
            found = fn.fma(v, v.const(-2 * alpha * beta), others, direct)
            v.store(found, b.add(result, far))

        if gradient:
            each(shares)
            each(backward)
        else:
            each(forward)
    return compiled("lrn", f.text())


def _power(v: Lanes, s: Value, beta: float) -> Value:
    """s to the power of -beta."""
    if beta == 0.75:
        root = fn.sqrt(v, s)
        return fn.div(v, v.const(1), fn.mul(v, root, fn.sqrt(v, root)))
    return v.map("llvm.pow", s, v.const(-beta))
