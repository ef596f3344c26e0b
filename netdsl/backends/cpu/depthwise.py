"""Depthwise convolutions and their gradients, where each channel has a filter of its own: vectors
of channels times vectors of weights, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from netdsl.backends.cpu import functions as fn
from netdsl.backends.cpu.emit import Function, Lanes, Value, long
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.launch import Task, longs, shared, threads
from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.maps import Body, Launch, Memory, border_tasks
from netdsl.backends.cpu.memory import call_task, float_at, long_at, put_float
from netdsl.backends.cpu.products import Pass, Product, conv, dgrad, image_of
from netdsl.backends.cpu.room import floats
from netdsl.backends.cpu.rows import build
from netdsl.backends.cpu.target import compiled
from netdsl.backends.cpu.wgrad import WeightSum
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Ints, contiguous
from netdsl.types import Node

_PARTS = 8
"""Sums over pixels are taken in so many parts, whatever the threads, so that results repeat."""


def depthwise(memory: Memory, node: Node) -> bool:
    """Whether a convolution, or a gradient of one, has one filter for each of several channels."""
    groups = node.attrs.get("groups", 1)
    if groups == 1:
        return False
    shown = node if node.op == "conv2d_wgrad" else memory.plan.graph[node.args[1]]
    filters, _, _, deep = shown.type.shape
    return groups == filters and deep == 1


def depthwise_launch(memory: Memory, kernel: Kernel, node: Node) -> Launch:
    """The tasks of a depthwise kernel and of what happens to its rows."""
    if node.op == "conv2d_wgrad":
        return _Sums(memory, kernel, node).launch()
    found, domain = (conv if node.op == "conv2d" else dgrad)(memory, kernel, node)
    return _Rows(memory, kernel, node, found, domain).launch()


class _Rows:
    """A product as rows of the domain: the passes that reach a row, then the kernel's elementwise
    nodes on it."""

    def __init__(
        self, memory: Memory, kernel: Kernel, node: Node, found: Product, domain: Ints
    ) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.p, self.domain = found, domain
        self.launched = Launch([list(s) for s in found.before.stages], list(found.before.kept))

    def launch(self) -> Launch:
        images, height, _, _ = self.domain
        tasks = shared(images * height, 8 * threads())
        out, finish = self._finish(len(tasks))
        numbers: list[int] = []
        pack: list[Task] = []
        for one in self.p.passes:
            numbers += self._pass(one, out[3], pack)
        ahead = Launch([pack] if pack else [])
        self.launched.beside(ahead)
        args = self._table(len(self.p.passes), height, self.p.scale, *out, *finish, *numbers)
        stage: list[Task] = [(rows.address, args, *r, i) for i, r in enumerate(tasks)]
        stage += border_tasks(self.memory, self.kernel.outputs, self.launched.kept)
        self.launched.stages.append(stage)
        if self.folding is not None:
            self.launched.then(self.folding)
        return self.launched

    def _table(self, *numbers: int) -> int:
        table = longs(*numbers)
        self.launched.kept.append(table)
        return int(table.ctypes.data)

    def _pass(self, one: Pass, pixel: int, pack: list[Task]) -> list[int]:
        """The function of a pass, its arguments, where its image begins with bytes to the next
        image and row, and which row and pixel of the domain come first."""
        channels = self.domain[3]
        w, step = self.p.weights, self.p.groups[1].weight
        packed = floats(len(one.taps) * channels)
        self.launched.kept.append(packed)
        pieces = [t.pieces[0] for t in one.taps]
        source = self._table(packed.ctypes.data, w.address, step, channels, *pieces)
        pack += [(spread.address, source, *r) for r in shared(len(pieces), 1)] if pieces else []
        args = self._table(
            *(one.pixels, one.image_strides[2], self.p.scale * pixel, channels),
            *(packed.ctypes.data, 4 * channels),
            *(t.offset for t in one.taps),
        )
        across = self.domain[2] * channels * 4
        first = (one.out // across, one.out % across // (4 * channels))
        return [taps(len(one.taps)), args, one.image, *one.image_strides[:2], *first]

    def _finish(self, tasks: int) -> tuple[list[int], list[int]]:
        """Where rows of the product are written, with bytes to the next image, row and pixel; then
        the function that follows, its arguments, rows of a row, their run, and bytes of a tile
        where the product itself is not kept."""
        kernel, memory, domain = self.kernel, self.memory, self.domain
        self.folding: Launch | None = None
        name = self.node.name
        shown = name in kernel.outputs
        if shown:
            own = memory.operand(name)
            if own.layout.strides[3] != 1 and domain[3] > 1:
                raise Unsupported("a product whose channels lie apart")
            out = [own.address + 4 * own.layout.offset, *(4 * s for s in own.layout.strides[:3])]
            size = 0
        else:
            size = 4 * domain[2] * domain[3] + 256
            tiles = floats(tasks * size // 4)
            self.launched.kept.append(tiles)
            out = [int(tiles.ctypes.data), 0, 0, 4 * domain[3]]
            own = Operand(out[0], contiguous(domain), "float32", local=True)
        outputs = [o for o in kernel.outputs if o != name]
        if not outputs:
            return out, [0, 0, 0, 0, size]
        operands = {i: memory.operand(i) for i in kernel.inputs} | {name: own}
        body = Body(memory, kernel, domain, operands, outputs)
        if body.results and body.kept != (False, True):
            raise Unsupported("sums of products over other axes")
        found = body.walk(fixed=2)
        local = (out[0] if size else 0, size, found.run)
        built = build(found, body.outputs, body.sums, tasks, local)
        if built.prepare:
            self.launched.stages.append([(built.prepare, built.args.ctypes.data)])
        self.launched.kept.append(built)
        self.folding = body.fold(found, built, 1, tasks)
        each = found.rows // (domain[0] * domain[1])
        return out, [built.function, built.args.ctypes.data, each, found.run, size]


class _Sums(WeightSum):
    """The gradient for the weights: sums over all pixels, taken in parts."""

    def launch(self) -> Launch:
        node, memory, a = self.node, self.memory, self.node.attrs
        g = memory.operand(node.args[0])
        if g.layout.strides[3] != 1 and g.layout.shape[3] > 1:
            raise Unsupported("a gradient whose channels lie apart")
        (top, bottom), (left, right) = a["pad"]
        at, (sn, sh, sw) = image_of(memory, node.args[1], (top, bottom, left, right), self.launched)
        n, height, pixels, channels = g.layout.shape
        _, r, s, _ = node.type.shape
        gn, gh, gw = (4 * t for t in g.layout.strides[:3])
        down, across = a["dilation"][0] * sh, a["dilation"][1] * sw
        offsets = [i * down + j * across for i in range(r) for j in range(s)]
        code = self.table.add(pixels, gw, a["stride"][1] * sw, channels, 4 * channels, *offsets)
        size = r * s * channels
        parts = shared(n * height, _PARTS)
        raw = floats(len(parts) * size)
        self.launched.kept.append(raw)
        args = self.table.add(
            *(sums(r * s), code, g.address + 4 * g.layout.offset, gn, gh),
            *(at - top * sh - left * sw, sn, a["stride"][0] * sh),
            *(height, raw.ctypes.data, size),
        )
        self.launched.stages.append(
            [(add_rows.address, args, *some, i) for i, some in enumerate(parts)]
        )
        target = self._target()
        self._turn(raw.ctypes.data, len(parts), target, channels)
        self._finish(target)
        return self.launched


@loop
def rows(args, first, last, slot, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last` of the domain's rows. args: passes, height, scale; then as _finish and
    _pass have them."""
    passes, height, scale = long_at(args), long_at(args + 8), long_at(args + 16)
    y, y_n, y_row, y_pixel = (
        long_at(args + 24),
        long_at(args + 32),
        long_at(args + 40),
        long_at(args + 48),
    )
    function, follows, each = long_at(args + 56), long_at(args + 64), long_at(args + 72)
    run, size = long_at(args + 80), long_at(args + 88)
    fresh = True
    for q in range(first, last):
        n, h = q // height, q % height
        out = y + slot * size + n * y_n + h * y_row
        for p in range(passes):
            one = args + 96 + p * 56
            if h % scale == long_at(one + 40):
                image = long_at(one + 16) + n * long_at(one + 24) + h // scale * long_at(one + 32)
                to = out + long_at(one + 48) * y_pixel
                call_task(long_at(one), long_at(one + 8), image, to, 0, 0, 0)
        if function != 0:
            low, high = q * each, (q + 1) * each
            call_task(function, follows, low, high, 0, run, ~slot if fresh else slot)
            fresh = False


@loop
def add_rows(args, first, last, slot, _d, _e):  # type: ignore[no-untyped-def]
    """The sums of rows `first` to `last` of a gradient. args: function, its arguments; the gradient
    and the image with bytes to the next image and row; height; sums, and how many a part has."""
    height, size = long_at(args + 64), long_at(args + 80)
    to = long_at(args + 72) + 4 * slot * size
    for i in range(size):
        put_float(to + 4 * i, 0.0)
    for q in range(first, last):
        n, h = q // height, q % height
        g = long_at(args + 16) + n * long_at(args + 24) + h * long_at(args + 32)
        x = long_at(args + 40) + n * long_at(args + 48) + h * long_at(args + 56)
        call_task(long_at(args), long_at(args + 8), g, x, to, 0, 0)


@loop
def spread(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Weights of taps `first` to `last`, channel by channel. args: target, weights, bytes to the
    next channel's, channels; then where each tap's begin."""
    target, source = long_at(args), long_at(args + 8)
    step, channels = long_at(args + 16), long_at(args + 24)
    for t in range(first, last):
        at = source + long_at(args + 32 + 8 * t)
        for c in range(channels):
            put_float(target + 4 * (t * channels + c), float_at(at + c * step))


def _by_vectors(f: Function, channels: Value, body: Callable[[Lanes, Value], None]) -> None:
    """`body` for every vector of channels, told how far it lies from the first, in bytes."""
    b, v = f.b, Lanes(f)
    whole = b.and_(channels, long(-v.count))
    with f.loop(long(0), whole, long(v.count)) as c:
        body(v, b.mul(c, long(4)))
    left = b.sub(channels, whole)
    with b.if_then(b.icmp_signed(">", left, long(0))):
        rest = Lanes(f)
        rest.mask = rest.first(left)
        body(rest, b.mul(whole, long(4)))


def _shifted(f: Function, at: Value, far: Sequence[Value]) -> list[Value]:
    return [f.b.add(at, one) for one in far]


@cache
def taps(count: int) -> int:
    """`f(args, image, out)`: a row of pixels, each the sum of its taps.

    args: pixels; bytes to the image's and the result's next one; channels; weights, bytes to the
    next tap's; how far each tap lies from the pixel
    """
    f = Function("depthwise")
    b = f.b
    pixels, image_pixel, out_pixel, channels, weights, line = (f.argument(i) for i in range(6))
    offsets = [f.argument(6 + i) for i in range(count)]

    def body(v: Lanes, far: Value) -> None:
        lines = (b.add(weights, b.mul(line, long(i))) for i in range(count))
        own = [v.load(b.add(at, far)) for at in lines]
        image, out = b.add(f.args[1], far), b.add(f.args[2], far)
        with f.loop(long(0), pixels, long(1)) as pixel:
            at = b.add(image, b.mul(pixel, image_pixel))
            total = v.const(0)
            for place, weight in zip(_shifted(f, at, offsets), own, strict=True):
                total = fn.fma(v, v.load(place), weight, total)
            v.store(total, b.add(out, b.mul(pixel, out_pixel)))

    _by_vectors(f, channels, body)
    return compiled("depthwise", f.text())


@cache
def sums(count: int) -> int:
    """`f(args, gradient, image, sums)`: adds a row of pixels to the sums of all taps.

    args: pixels; bytes to the gradient's and the image's next one; channels; bytes to the next
    tap's sums; how far each tap lies from the pixel
    """
    f = Function("depthwise_sums")
    b = f.b
    pixels, g_pixel, x_pixel, channels, line = (f.argument(i) for i in range(5))
    offsets = [f.argument(5 + i) for i in range(count)]

    def body(v: Lanes, far: Value) -> None:
        with b.goto_entry_block():
            totals = [b.alloca(v.floats) for _ in range(count)]
        places = [b.add(b.add(f.args[3], far), b.mul(line, long(i))) for i in range(count)]
        for total, place in zip(totals, places, strict=True):
            b.store(v.load(place), total)
        gradient, image = b.add(f.args[1], far), b.add(f.args[2], far)
        with f.loop(long(0), pixels, long(1)) as pixel:
            g = v.load(b.add(gradient, b.mul(pixel, g_pixel)))
            at = b.add(image, b.mul(pixel, x_pixel))
            for total, place in zip(totals, _shifted(f, at, offsets), strict=True):
                b.store(fn.fma(v, g, v.load(place), b.load(total, typ=v.floats)), total)
        for total, place in zip(totals, places, strict=True):
            v.store(b.load(total, typ=v.floats), place)

    _by_vectors(f, channels, body)
    return compiled("depthwise_sums", f.text())
