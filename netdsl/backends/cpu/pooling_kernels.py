"""Pooling over windows and its gradients, and normalisation across channels: functions of vectors
of channels, written in LLVM's language."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from llvmlite import ir

from netdsl.backends.cpu import elementwise_functions as fn
from netdsl.backends.cpu.llvm_builder import F32, Lanes, LlvmFunction, Value, const_i64
from netdsl.backends.cpu.llvm_jit import compile_llvm
from netdsl.backends.cpu.record import Record


class PoolingArgs(Record):
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


class _PoolingEmitter:
    def __init__(self, name: str) -> None:
        self.f = LlvmFunction(name)
        self.a = a = self.f.record(PoolingArgs)
        self.tensors = {
            "x": (a.x, a.x_n, a.x_row, a.x_pixel),
            "y": (a.y, a.y_n, a.y_row, a.y_pixel),
            "d": (a.d, a.d_n, a.d_row, a.d_pixel),
        }

    def emit_address(self, what: str, n: Value, row: Value, pixel: Value, c: Value) -> Value:
        b = self.f.b
        place, *steps = self.tensors[what]
        for i, step in zip((n, row, pixel), steps, strict=True):
            place = b.add(place, b.mul(i, step))
        return b.add(place, b.mul(c, const_i64(4)))

    def for_each_channel_vector(self, body: Callable[[Lanes, Value], None]) -> None:
        f, b = self.f, self.f.b
        v = Lanes(f)
        whole = b.and_(self.a.channels, const_i64(-v.count))
        with f.loop(const_i64(0), whole, const_i64(v.count)) as c:
            body(v, c)
        left = b.sub(self.a.channels, whole)
        with b.if_then(b.icmp_signed(">", left, const_i64(0))):
            rest = Lanes(f)
            rest.mask = rest.prefix_mask(left)
            body(rest, whole)

    def min_i64(self, x: Value, z: Value) -> Value:
        return self.f.b.select(self.f.b.icmp_signed("<", x, z), x, z)

    def max_i64(self, x: Value, z: Value) -> Value:
        return self.f.b.select(self.f.b.icmp_signed(">", x, z), x, z)

    def emit_window(self, i: Value, axis: str) -> tuple[Value, Value, Value]:
        """First and last pixel of a window, and how many count, along an axis."""
        b, a = self.f.b, self.a
        size, k, s, pad = {
            "h": (a.height, a.kh, a.sh, a.top),
            "w": (a.width, a.kw, a.sw, a.left),
        }[axis]
        low, high = (a.c_top, a.c_bottom) if axis == "h" else (a.c_left, a.c_right)
        start = b.sub(b.mul(i, s), pad)
        stop = b.add(start, k)
        first, last = self.max_i64(start, const_i64(0)), self.min_i64(stop, size)
        counted = b.sub(self.min_i64(stop, b.add(size, high)), self.max_i64(start, b.neg(low)))
        return first, last, counted

    def allocate_variable(self, kind: Any) -> Value:
        with self.f.b.goto_entry_block():
            return self.f.b.alloca(kind)

    def loop_over_window(self, h: tuple[Value, ...], w: tuple[Value, ...]) -> _WindowLoops:
        return _WindowLoops(self.f, h, w)

    def emit_window_maximum(self, v: Lanes, n: Value, h: Any, w: Any, c: Value) -> Value:
        b = self.f.b
        best = self.allocate_variable(v.float_type)
        b.store(v.const(float("-inf")), best)
        with self.loop_over_window(h, w) as (i, j):
            x = v.load(self.emit_address("x", n, i, j, c))
            b.store(fn.maximum(v, b.load(best, typ=v.float_type), x), best)
        return b.load(best, typ=v.float_type)

    def emit_window_count(self, v: Lanes, h: Any, w: Any) -> Value:
        b = self.f.b
        return v.splat(b.sitofp(b.mul(h[2], w[2]), F32))


class _WindowLoops:
    """Both loops over a window."""

    def __init__(self, f: LlvmFunction, h: Any, w: Any) -> None:
        self.loops: list[AbstractContextManager[Value]] = [
            f.loop(h[0], h[1], const_i64(1)),
            f.loop(w[0], w[1], const_i64(1)),
        ]

    def __enter__(self) -> tuple[Value, Value]:
        return self.loops[0].__enter__(), self.loops[1].__enter__()

    def __exit__(self, *how: Any) -> None:
        self.loops[1].__exit__(*how)
        self.loops[0].__exit__(*how)


@cache
def compile_pooling(op: str) -> int:
    """Pooling of rows `first` to `last` of the batch's rows."""
    p = _PoolingEmitter("pool")
    f, b = p.f, p.f.b
    with f.loop(f.args[1], f.args[2], const_i64(1)) as q:
        n, row = b.sdiv(q, p.a.rows), b.srem(q, p.a.rows)
        h = p.emit_window(row, "h")
        with f.loop(const_i64(0), p.a.columns, const_i64(1)) as column:
            w = p.emit_window(column, "w")

            def body(v: Lanes, c: Value) -> None:
                if op == "max_pool":
                    found = p.emit_window_maximum(v, n, h, w, c)
                else:
                    total = p.allocate_variable(v.float_type)
                    b.store(v.const(0), total)
                    with p.loop_over_window(h, w) as (i, j):
                        x = v.load(p.emit_address("x", n, i, j, c))
                        b.store(fn.add(v, b.load(total, typ=v.float_type), x), total)
                    found = fn.div(v, b.load(total, typ=v.float_type), p.emit_window_count(v, h, w))
                v.store(found, p.emit_address("y", n, row, column, c))

            p.for_each_channel_vector(body)
    return compile_llvm("pool", f.text())


@cache
def compile_pooling_gradient(op: str) -> int:
    """Gradients of images `first` to `last`; `y` is the result's gradient, `d` the image's."""
    p = _PoolingEmitter("pool_grad")
    f = p.f
    with f.loop(f.args[1], f.args[2], const_i64(1)) as n:
        with (
            f.loop(const_i64(0), p.a.height, const_i64(1)) as i,
            f.loop(const_i64(0), p.a.width, const_i64(1)) as j,
        ):
            p.for_each_channel_vector(
                lambda v, c: v.store(v.const(0), p.emit_address("d", n, i, j, c))
            )
        with f.loop(const_i64(0), p.a.rows, const_i64(1)) as row:
            h = p.emit_window(row, "h")
            with f.loop(const_i64(0), p.a.columns, const_i64(1)) as column:
                w = p.emit_window(column, "w")

                def body(v: Lanes, c: Value) -> None:
                    g = v.load(p.emit_address("y", n, row, column, c))
                    if op == "max_pool_grad":
                        _add_to_first_maximum(p, v, n, h, w, c, g)
                    else:
                        share = fn.div(v, g, p.emit_window_count(v, h, w))
                        with p.loop_over_window(h, w) as (i, j):
                            at = p.emit_address("d", n, i, j, c)
                            v.store(fn.add(v, v.load(at), share), at)

                p.for_each_channel_vector(body)
    return compile_llvm("pool_grad", f.text())


def _add_to_first_maximum(
    p: _PoolingEmitter, v: Lanes, n: Value, h: Any, w: Any, c: Value, g: Value
) -> None:
    """A window's gradient to the first of its largest values."""
    b = p.f.b
    best = p.emit_window_maximum(v, n, h, w, c)
    is_unclaimed = p.allocate_variable(v.mask_type)
    b.store(ir.Constant(v.mask_type, [1] * v.count), is_unclaimed)
    with p.loop_over_window(h, w) as (i, j):
        equal = b.fcmp_ordered("==", v.load(p.emit_address("x", n, i, j, c)), best)
        first = b.and_(equal, b.load(is_unclaimed, typ=v.mask_type))
        at = p.emit_address("d", n, i, j, c)
        v.store(fn.add(v, v.load(at), fn.select(v, first, g, v.const(0))), at)
        b.store(b.and_(b.load(is_unclaimed, typ=v.mask_type), b.not_(first)), is_unclaimed)


@cache
def compile_lrn(size: int, alpha: float, beta: float, k: float, gradient: bool) -> int:
    """Local response normalisation of pixels `first` to `last`, each a row of channels."""
    f = LlvmFunction("lrn")
    b = f.b
    a = f.record(LrnArgs)
    channels = a.channels
    scratch_row = b.add(a.spare, b.mul(f.args[3], a.row))
    half = size // 2

    def window_sum(v: Lanes, row: Value, c: Value, square: bool) -> Value:
        total = v.const(0)
        for d in range(-half, half + 1):
            lane = b.add(v.splat(b.add(c, const_i64(d))), v.lane_indices())
            inside = b.and_(
                b.icmp_signed(">=", lane, v.splat(const_i64(0))),
                b.icmp_signed("<", lane, v.splat(channels)),
            )
            one = Lanes(f).load(
                b.add(row, b.mul(b.add(c, const_i64(d)), const_i64(4))), F32, inside
            )
            total = fn.fma(v, one, one, total) if square else fn.add(v, total, one)
        return total

    def scale(v: Lanes, row: Value, c: Value) -> tuple[Value, Value]:
        s = fn.fma(v, v.const(alpha), window_sum(v, row, c, True), v.const(k))
        return s, _inverse_power(v, s, beta)

    with f.loop(f.args[1], f.args[2], const_i64(1)) as pixel:
        at = b.mul(pixel, a.row)
        image, result, gradient_row = b.add(a.x, at), b.add(a.y, at), b.add(a.g, at)

        def for_each_channel_vector(body: Callable[[Lanes, Value, Value], None]) -> None:
            v = Lanes(f)
            with f.loop(const_i64(0), channels, const_i64(v.count)) as c:
                lanes = Lanes(f)
                lanes.mask = lanes.prefix_mask(b.sub(channels, c))
                body(lanes, c, b.mul(c, const_i64(4)))

        def emit_forward(v: Lanes, c: Value, far: Value) -> None:
            _, root = scale(v, image, c)
            v.store(fn.mul(v, v.load(b.add(image, far)), root), b.add(result, far))

        def emit_shares(v: Lanes, c: Value, far: Value) -> None:
            s, root = scale(v, image, c)
            both = fn.mul(v, v.load(b.add(image, far)), v.load(b.add(gradient_row, far)))
            v.store(fn.mul(v, both, fn.div(v, root, s)), b.add(scratch_row, far))

        def emit_backward(v: Lanes, c: Value, far: Value) -> None:
            _, root = scale(v, image, c)
            direct = fn.mul(v, v.load(b.add(gradient_row, far)), root)
            others = fn.mul(v, v.load(b.add(image, far)), window_sum(v, scratch_row, c, False))
            found = fn.fma(v, v.const(-2 * alpha * beta), others, direct)
            v.store(found, b.add(result, far))

        if gradient:
            for_each_channel_vector(emit_shares)
            for_each_channel_vector(emit_backward)
        else:
            for_each_channel_vector(emit_forward)
    return compile_llvm("lrn", f.text())


def _inverse_power(v: Lanes, s: Value, beta: float) -> Value:
    """s to the power of -beta."""
    if beta == 0.75:
        root = fn.sqrt(v, s)
        return fn.div(v, v.const(1), fn.mul(v, root, fn.sqrt(v, root)))
    return v.map("llvm.pow", s, v.const(-beta))
