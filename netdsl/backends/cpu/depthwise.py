"""Depthwise convolutions and their gradients, where each channel has a filter of its own: vectors
of channels times vectors of weights, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from netdsl.backends.cpu import functions as fn
from netdsl.backends.cpu.emit import Function, Lanes, Value, long
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.launch import Task, shared
from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.maps import Body, Launch, Memory, border_tasks
from netdsl.backends.cpu.memory import call_task, float_at, long_nth, put_float
from netdsl.backends.cpu.products import Pass, Product, conv, dgrad, image_of
from netdsl.backends.cpu.record import Record, Table
from netdsl.backends.cpu.room import floats
from netdsl.backends.cpu.rows import build
from netdsl.backends.cpu.target import compiled
from netdsl.backends.cpu.wgrad import WeightSum
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple, make_contiguous
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
        self, memory: Memory, kernel: Kernel, node: Node, found: Product, domain: IntTuple
    ) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.p, self.domain = found, domain
        self.launched = Launch([list(s) for s in found.before.stages], list(found.before.kept))
        self.table = Table(self.launched.kept)

    def launch(self) -> Launch:
        images, height, _, _ = self.domain
        tasks = shared(images * height, 8 * self.memory.workers(self.kernel))
        out, follower = self._finish(len(tasks))
        pack: list[Task] = []
        passes = [self._pass(one, out.pixel, pack) for one in self.p.passes]
        self.launched.beside(Launch([pack] if pack else []))
        args = self.table.add(
            DepthwiseArgs(
                passes=self.table.add(*passes),
                pass_count=len(passes),
                height=height,
                scale=self.p.scale,
                out=self.table.add(out),
                follower=self.table.add(follower),
            )
        )
        stage: list[Task] = [(rows.address, args, *r, i) for i, r in enumerate(tasks)]
        stage += border_tasks(self.memory, self.kernel.outputs, self.launched.kept)
        self.launched.stages.append(stage)
        if self.folding is not None:
            self.launched.then(self.folding)
        return self.launched

    def _pass(self, one: Pass, pixel: int, pack: list[Task]) -> DepthwisePass:
        channels, taps = self.domain[3], len(one.taps)
        packed = floats(taps * channels)
        self.launched.kept.append(packed)
        weights = SpreadArgs(
            target=packed.ctypes.data,
            weights=self.p.weights.address,
            channel=self.p.groups[1].weight,
            channels=channels,
            taps=self.table.longs([t.pieces[0] for t in one.taps]),
        )
        source = self.table.add(weights)
        pack += [(spread.address, source, *r) for r in shared(taps, 1)] if taps else []
        row = DepthwiseRow(
            pixels=one.pixels,
            image_pixel=one.image_strides[2],
            other_pixel=self.p.scale * pixel,
            channels=channels,
            weights=packed.ctypes.data,
            tap=4 * channels,
            offsets=self.table.longs([t.offset for t in one.taps]),
        )
        across = self.domain[2] * channels * 4
        return DepthwisePass(
            function=tap_products(taps),
            args=self.table.add(row),
            image=one.image,
            image_n=one.image_strides[0],
            image_row=one.image_strides[1],
            first_row=one.out // across,
            first_pixel=one.out % across // (4 * channels),
        )

    def _finish(self, tasks: int) -> tuple[DepthwiseOut, RowFollower]:
        """Where rows of the product are written, and what follows them."""
        kernel, memory, domain = self.kernel, self.memory, self.domain
        self.folding: Launch | None = None
        name = self.node.name
        shown = name in kernel.outputs
        if shown:
            own = memory.operand(name)
            if own.layout.strides[3] != 1 and domain[3] > 1:
                raise Unsupported("a product whose channels lie apart")
            n, row, pixel = (4 * s for s in own.layout.strides[:3])
            out = DepthwiseOut(
                address=own.address + 4 * own.layout.offset, n=n, row=row, pixel=pixel, tile=0
            )
        else:
            size = 4 * domain[2] * domain[3] + 256
            tiles = floats(tasks * size // 4)
            self.launched.kept.append(tiles)
            address = int(tiles.ctypes.data)
            out = DepthwiseOut(address=address, n=0, row=0, pixel=4 * domain[3], tile=size)
            own = Operand(address, make_contiguous(domain), "float32", local=True)
        outputs = [o for o in kernel.outputs if o != name]
        if not outputs:
            return out, RowFollower(function=0, args=0, rows=0, run=0)
        operands = {i: memory.operand(i) for i in kernel.inputs} | {name: own}
        body = Body(memory, kernel, domain, operands, outputs)
        if body.results and body.kept != (False, True):
            raise Unsupported("sums of products over other axes")
        found = body.walk(fixed=2)
        local = (out.address if out.tile else 0, out.tile, found.run)
        built = build(found, body.outputs, body.sums, tasks, local)
        if built.prepare:
            self.launched.stages.append([(built.prepare, built.args)])
        self.launched.kept.append(built)
        self.folding = body.fold(found, built, 1, tasks)
        each = found.rows // (domain[0] * domain[1])
        return out, RowFollower(function=built.function, args=built.args, rows=each, run=found.run)


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
        row = DepthwiseRow(
            pixels=pixels,
            image_pixel=a["stride"][1] * sw,
            other_pixel=gw,
            channels=channels,
            weights=0,
            tap=4 * channels,
            offsets=self.table.longs(offsets),
        )
        size = r * s * channels
        parts = shared(n * height, _PARTS)
        raw = floats(len(parts) * size)
        self.launched.kept.append(raw)
        args = self.table.add(
            AddRowsArgs(
                function=sums(r * s),
                args=self.table.add(row),
                gradient=g.address + 4 * g.layout.offset,
                gradient_n=gn,
                gradient_row=gh,
                image=at - top * sh - left * sw,
                image_n=sn,
                image_row=a["stride"][0] * sh,
                height=height,
                sums=raw.ctypes.data,
                size=size,
            )
        )
        self.launched.stages.append(
            [(add_rows.address, args, *some, i) for i, some in enumerate(parts)]
        )
        target = self._target()
        self._turn(raw.ctypes.data, len(parts), target, channels)
        self._finish(target)
        return self.launched


class DepthwiseArgs(Record):
    """The passes of a product; rows of an image, and rows of it for one of a pass; where rows are
    written, and what follows them."""

    passes: int
    pass_count: int
    height: int
    scale: int
    out: int
    follower: int


class DepthwiseOut(Record):
    """Where rows of results are written, with bytes to the next image, row and pixel, and of a tile
    where the product itself is not kept."""

    address: int
    n: int
    row: int
    pixel: int
    tile: int


class RowFollower(Record):
    """The kernel over rows that follows a product (0: none), how many of its rows one of the
    product has, and how long they are."""

    function: int
    args: int
    rows: int
    run: int


class DepthwisePass(Record):
    """Pixels that are computed alike: `tap_products` and its arguments, where the image begins with
    bytes to the next one and to the next row, and which row and pixel of the domain come first."""

    function: int
    args: int
    image: int
    image_n: int
    image_row: int
    first_row: int
    first_pixel: int


class AddRowsArgs(Record):
    """`sums` and its arguments; the gradient and the image with bytes to the next one and row; rows
    of an image; the sums of the parts, and how many each has."""

    function: int
    args: int
    gradient: int
    gradient_n: int
    gradient_row: int
    image: int
    image_n: int
    image_row: int
    height: int
    sums: int
    size: int


class SpreadArgs(Record):
    """Weights and where they are copied to; bytes from a channel's to the next one's; channels;
    where each tap's weights begin."""

    target: int
    weights: int
    channel: int
    channels: int
    taps: int


class DepthwiseRow(Record):
    """A row of pixels: bytes to the image's next one, and to that of the result or of its gradient;
    channels; the weights, and bytes from a tap's weights or sums to the next one's; how far each
    tap lies from the pixel."""

    pixels: int
    image_pixel: int
    other_pixel: int
    channels: int
    weights: int
    tap: int
    offsets: int


@loop
def rows(args, first, last, slot, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last` of the domain's rows; args: DepthwiseArgs."""
    d = DepthwiseArgs.at(args)
    y, after = DepthwiseOut.at(d.out), RowFollower.at(d.follower)
    fresh = True
    for q in range(first, last):
        n, h = q // d.height, q % d.height
        out = y.address + slot * y.tile + n * y.n + h * y.row
        for p in range(d.pass_count):
            one = DepthwisePass.nth(d.passes, p)
            if h % d.scale == one.first_row:
                image = one.image + n * one.image_n + h // d.scale * one.image_row
                to = out + one.first_pixel * y.pixel
                call_task(one.function, one.args, image, to, 0, 0, 0)
        if after.function != 0:
            low, high = q * after.rows, (q + 1) * after.rows
            number = ~slot if fresh else slot
            call_task(after.function, after.args, low, high, 0, after.run, number)
            fresh = False


@loop
def add_rows(args, first, last, slot, _d, _e):  # type: ignore[no-untyped-def]
    """The sums of rows `first` to `last` of a gradient; args: AddRowsArgs."""
    a = AddRowsArgs.at(args)
    to = a.sums + 4 * slot * a.size
    for i in range(a.size):
        put_float(to + 4 * i, 0.0)
    for q in range(first, last):
        n, h = q // a.height, q % a.height
        g = a.gradient + n * a.gradient_n + h * a.gradient_row
        x = a.image + n * a.image_n + h * a.image_row
        call_task(a.function, a.args, g, x, to, 0, 0)


@loop
def spread(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Weights of taps `first` to `last`, channel by channel; args: SpreadArgs."""
    a = SpreadArgs.at(args)
    for t in range(first, last):
        at = a.weights + long_nth(a.taps, t)
        for c in range(a.channels):
            put_float(a.target + 4 * (t * a.channels + c), float_at(at + c * a.channel))


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


def _offsets(f: Function, row: Any, count: int) -> list[Value]:
    return [f.long_nth(row.offsets, long(i)) for i in range(count)]


@cache
def tap_products(count: int) -> int:
    """`f(args, image, out)`: a row of pixels, each the sum of its taps; args: DepthwiseRow."""
    f = Function("depthwise")
    b, row = f.b, f.record(DepthwiseRow)
    offsets = _offsets(f, row, count)

    def body(v: Lanes, far: Value) -> None:
        lines = (b.add(row.weights, b.mul(row.tap, long(i))) for i in range(count))
        own = [v.load(b.add(at, far)) for at in lines]
        image, out = b.add(f.args[1], far), b.add(f.args[2], far)
        with f.loop(long(0), row.pixels, long(1)) as pixel:
            at = b.add(image, b.mul(pixel, row.image_pixel))
            total = v.const(0)
            for place, weight in zip(_shifted(f, at, offsets), own, strict=True):
                total = fn.fma(v, v.load(place), weight, total)
            v.store(total, b.add(out, b.mul(pixel, row.other_pixel)))

    _by_vectors(f, row.channels, body)
    return compiled("depthwise", f.text())


@cache
def sums(count: int) -> int:
    """`f(args, gradient, image, sums)`: adds a row of pixels to the sums of all taps; args:
    DepthwiseRow."""
    f = Function("depthwise_sums")
    b, row = f.b, f.record(DepthwiseRow)
    offsets = _offsets(f, row, count)

    def body(v: Lanes, far: Value) -> None:
        with b.goto_entry_block():
            totals = [b.alloca(v.floats) for _ in range(count)]
        places = [b.add(b.add(f.args[3], far), b.mul(row.tap, long(i))) for i in range(count)]
        for total, place in zip(totals, places, strict=True):
            b.store(v.load(place), total)
        gradient, image = b.add(f.args[1], far), b.add(f.args[2], far)
        with f.loop(long(0), row.pixels, long(1)) as pixel:
            g = v.load(b.add(gradient, b.mul(pixel, row.other_pixel)))
            at = b.add(image, b.mul(pixel, row.image_pixel))
            for total, place in zip(totals, _shifted(f, at, offsets), strict=True):
                b.store(fn.fma(v, g, v.load(place), b.load(total, typ=v.floats)), total)
        for total, place in zip(totals, places, strict=True):
            v.store(b.load(total, typ=v.floats), place)

    _by_vectors(f, row.channels, body)
    return compiled("depthwise_sums", f.text())
