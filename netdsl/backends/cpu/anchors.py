"""Products of a plan as tasks: convolutions and their gradients, and matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.launch import Task, longs, threads
from netdsl.backends.cpu.maps import Body, Launch, Memory, border_tasks
from netdsl.backends.cpu.opaque import copied
from netdsl.backends.cpu.product import gather_parts, pack, product
from netdsl.backends.cpu.rows import build
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import most_rows, tile, widths
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Ints, Layout
from netdsl.types import Array, Node

_CHUNK = 256 * 1024
"""Bytes of weights that stay in the second cache while the rows of a block pass by."""
_ACROSS = 256
"""Rows of a matrix that is read along its columns, a cache line each, in a chunk."""
_PIXELS = 256
"""Pixels of a block of rows, about."""


@dataclass(frozen=True)
class Tap:
    """A run of weights beside a run of the image: `offset` bytes from the first pixel, and the
    pieces of weight (bytes from a block's first) that lie one behind the other in it."""

    offset: int
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """Pixels that are computed alike: where they begin, their strides, and the taps of each."""

    image: int
    image_strides: tuple[int, int, int]
    out: int
    out_strides: tuple[int, int, int]
    rows: int
    pixels: int
    taps: tuple[Tap, ...]


@dataclass(frozen=True)
class Weights:
    """Where weights lie: bytes from column to column and along the depth; `depth` of a piece."""

    address: int
    column: int
    step: int
    depth: int


@dataclass(frozen=True)
class Group:
    """Columns that read the same channels: offsets in bytes."""

    image: int
    weight: int
    out: int
    columns: int


@dataclass
class Product:
    """A whole product, before it is cut into tasks."""

    images: int
    height: int
    scale: int
    passes: list[Pass]
    weights: Weights
    groups: list[Group]
    image_k: int
    direct: bool = False
    before: Launch = field(default_factory=Launch)


def anchor_launch(memory: Memory, kernel: Kernel) -> Launch:
    """The tasks of a product and what happens to its tiles."""
    node = memory.plan.graph[kernel.name]
    kinds = {memory.plan.graph[n].type.dtype for n in (*kernel.nodes, *kernel.inputs)}
    if not kinds <= {"float32", "bool"}:
        raise Unsupported("other types than float32")
    if node.op == "conv2d_wgrad":
        return _Wgrad(memory, kernel, node).launch()
    makers = {"conv2d": _conv, "conv2d_dgrad": _dgrad, "matmul": _matmul}
    return _Tasks(memory, kernel, node, *makers[node.op](memory, kernel, node)).launch()


# what the products are


def _conv(memory: Memory, kernel: Kernel, node: Node) -> tuple[Product, Ints]:
    x, w = (memory.operand(a) for a in node.args)
    a = node.attrs
    (top, bottom), (left, right) = a["pad"]
    before = Launch()
    at, (sn, sh, sw) = _image(memory, node.args[0], (top, bottom, left, right), before)
    k, r, s, c = w.layout.shape
    n, oh, ow, _ = node.type.shape
    dh, dw = a["dilation"]
    st = [4 * t for t in w.layout.strides]
    taps = []
    for i in range(r):
        columns = [(j * dw * sw, i * st[1] + j * st[2]) for j in range(s)]
        merged = sw == 4 * c and a["groups"] == 1
        taps += _merged(columns, i * dh * sh, 4 * c if merged else 0)
    image = at - top * sh - left * sw
    strides = (sn, a["stride"][0] * sh, a["stride"][1] * sw)
    one = Pass(image, strides, 0, (oh * ow * k * 4, ow * k * 4, k * 4), oh, ow, tuple(taps))
    weights = Weights(w.address + 4 * w.layout.offset, st[0], st[3], c)
    each = k // a["groups"]
    groups = [Group(g * c * 4, g * each * st[0], g * each * 4, each) for g in range(a["groups"])]
    return Product(n, oh, 1, [one], weights, groups, 4, before=before), node.type.shape


def _merged(columns: list[tuple[int, int]], row: int, pixel: int) -> list[Tap]:
    """Taps of one row of a kernel; one tap where their pixels lie one behind the other."""
    columns = sorted(columns)
    steps = {b[0] - a[0] for a, b in zip(columns, columns[1:], strict=False)}
    if columns and steps <= {pixel}:
        return [Tap(row + columns[0][0], tuple(piece for _, piece in columns))]
    return [Tap(row + offset, (piece,)) for offset, piece in columns]


def _dgrad(memory: Memory, kernel: Kernel, node: Node) -> tuple[Product, Ints]:
    g, w = (memory.operand(a) for a in node.args)
    a = node.attrs
    k, r, s, c = w.layout.shape
    n, h, wide, channels = node.type.shape
    if a["stride"][0] != a["stride"][1]:
        raise Unsupported("different strides along height and width")
    stride = a["stride"][0]
    starts = (a["pad"][0][0], a["pad"][1][0])
    rows = [_phase(p, starts[0], r, a["dilation"][0], stride) for p in range(stride)]
    columns = [_phase(p, starts[1], s, a["dilation"][1], stride) for p in range(stride)]
    need = (
        *_need(rows, h, stride, g.layout.shape[1]),
        *_need(columns, wide, stride, g.layout.shape[2]),
    )
    before = Launch()
    at, (sn, sh, sw) = _image(memory, node.args[0], need, before)
    st = [4 * t for t in w.layout.strides]
    each = k // a["groups"]
    pixel = 4 * each if sw == 4 * k and a["groups"] == 1 else 0
    passes = []
    for ph, down in enumerate(rows[:h]):
        for pw, right in enumerate(columns[:wide]):
            taps = []
            for i, oi in down:
                across = [(oj * sw, i * st[1] + j * st[2]) for j, oj in right]
                taps += _merged(across, oi * sh, pixel)
            strides = (h * wide * channels * 4, stride * wide * channels * 4, stride * channels * 4)
            first = (ph * wide + pw) * channels * 4
            size = (-(-(h - ph) // stride), -(-(wide - pw) // stride))
            passes.append(Pass(at, (sn, sh, sw), first, strides, *size, tuple(taps)))
    weights = Weights(w.address + 4 * w.layout.offset, st[3], st[0], each)
    groups = [Group(q * each * 4, q * each * st[0], q * c * 4, c) for q in range(a["groups"])]
    return Product(n, h, stride, passes, weights, groups, 4, before=before), node.type.shape


def _phase(p: int, pad: int, kernel: int, dilation: int, stride: int) -> list[tuple[int, int]]:
    """Which taps reach the pixels p, p + stride, ...: and how far from theirs the gradient lies."""
    reached = ((i, p + pad - i * dilation) for i in range(kernel))
    return [(i, far // stride) for i, far in reached if far % stride == 0]


def _need(phases: list[list[tuple[int, int]]], size: int, stride: int, have: int) -> Ints:
    """Zeros that are read before and behind."""
    low = high = 0
    for p, taps in enumerate(phases):
        count = -(-(size - p) // stride)
        for _, far in taps:
            low, high = max(low, -far), max(high, far + count - have)
    return low, high


def _image(
    memory: Memory, name: str, need: Ints, before: Launch
) -> tuple[int, tuple[int, int, int]]:
    """Where an image begins that has at least these zeros around it: its own place, or a copy."""
    place = memory.plan.placements[name]
    operand = memory.operand(name)
    halo = tuple(v for side in place.geometry.halo for v in side) if place.geometry else (0,) * 4
    layout = operand.layout
    enough = all(h >= n for h, n in zip(halo, need, strict=True))
    if enough and (layout.strides[3] == 1 or layout.shape[3] == 1):
        sn, sh, sw, _ = layout.strides
        return operand.address + 4 * layout.offset, (4 * sn, 4 * sh, 4 * sw)
    n, h, w, c = layout.shape
    top, bottom, left, right = need
    high, wide = h + top + bottom, w + left + right
    copy = np.zeros(n * high * wide * c + 64, np.float32)
    strides = (high * wide * c, wide * c, c, 1)
    first = copy.ctypes.data + 4 * (top * strides[1] + left * strides[2])
    before.kept.append(copy)
    before.then(copied(operand, Layout((n, h, w, c), strides), first))
    return first, (4 * strides[0], 4 * strides[1], 4 * strides[2])


def _matmul(memory: Memory, kernel: Kernel, node: Node) -> tuple[Product, Ints]:
    x, w = (memory.operand(a) for a in node.args)
    if len(w.layout.shape) != 2:
        raise Unsupported("a batch of matrix products")
    *lead, depth = x.layout.shape
    columns = w.layout.shape[0]
    axes = _lead(x.layout, tuple(lead), memory, kernel)
    (n, sn), (rows, sr), (pixels, sp) = axes
    out = (rows * pixels * columns * 4, pixels * columns * 4, columns * 4)
    sc, sk = (4 * t for t in w.layout.strides)
    sc = 4 if columns == 1 else sc
    direct = sc == 4 and (depth > 4 * columns or n * rows * pixels <= 512)
    one = Pass(
        x.address + 4 * x.layout.offset,
        (4 * sn, 4 * sr, 4 * sp),
        0,
        out,
        rows,
        pixels,
        (Tap(0, (0,)),),
    )
    weights = Weights(w.address + 4 * w.layout.offset, sc, sk, depth)
    step = 4 * x.layout.strides[-1]
    found = Product(n, rows, 1, [one], weights, [Group(0, 0, 0, columns)], step, direct)
    return found, (n, rows, pixels, columns)


def _lead(layout: Layout, lead: Ints, memory: Memory, kernel: Kernel) -> list[tuple[int, int]]:
    """The axes before the last as three: images, rows, pixels; each with its stride."""
    flat = _flat(layout, len(lead))
    if flat is None and len(lead) == 3:
        return [(s, t) for s, t in zip(lead, layout.strides, strict=False)]
    if flat is None:
        raise Unsupported("rows that no stride expresses")
    beside = [memory.operand(v).layout for v in (*kernel.inputs, *kernel.outputs)]
    images = [v for v in beside if len(v.shape) == 4 and v.shape[:3] == lead]
    if len(lead) == 3 and any(_flat(v, 3) is None for v in images):
        return [(s, t) for s, t in zip(lead, layout.strides, strict=False)]
    count = math.prod(lead)
    pixels = _divisor(count)
    return [(1, 0), (count // pixels, pixels * flat), (pixels, flat)]


def _flat(layout: Layout, rank: int) -> int | None:
    """The stride of the first `rank` axes as one; None where there are gaps."""
    axes = [(s, t) for s, t in zip(layout.shape[:rank], layout.strides, strict=False) if s > 1]
    if any(a[1] != b[0] * b[1] for a, b in zip(axes, axes[1:], strict=False)):
        return None
    return axes[-1][1] if axes else layout.strides[rank - 1] if rank else 0


def _divisor(count: int) -> int:
    """Rows of a matrix as pixels of an image: a divisor that fills strips, with rows left over for
    all threads."""
    most = max(6, min(96, count // (2 * threads())))
    good = [d for d in range(1, most + 1) if count % d == 0]
    six = most_rows(widths()[0])
    best = max(good, key=lambda d: (min(d, 4 * six) / (-(-d // six) * six), d))
    return best if best * 4 >= min(six, count) else count


# cutting a product into tasks


def blocks_of(columns: int) -> list[tuple[int, int, int]]:
    """Column blocks: first column, vectors, columns; all but the last ones alike."""
    lanes = width()
    vectors = -(-columns // lanes)
    fits = [v for v in widths() if vectors % v == 0]
    main = fits[0] if fits and (fits[0] > 1 or vectors < 3) else widths()[0]
    main = main if main <= vectors else next(v for v in widths() if v <= vectors)
    found, at = [], 0
    while vectors > 0:
        take = next(v for v in widths() if v <= min(main, vectors))
        found.append((at, take, min(columns - at, take * lanes)))
        at += take * lanes
        vectors -= take
    return found


def strips(pixels: int, most: int) -> tuple[int, int, int]:
    """Long strips, their length, and strips of one pixel less."""
    count = -(-pixels // most)
    length = -(-pixels // count)
    longer = pixels - count * (length - 1)
    return longer, length, count - longer


class Table:
    """Tables of whole numbers whose addresses are kept."""

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    def add(self, *values: Any) -> int:
        table = longs(*values)
        self.kept.append(table)
        return int(table.ctypes.data)


class _Tasks:
    """Cuts one product into stages of tasks."""

    def __init__(
        self, memory: Memory, kernel: Kernel, node: Node, found: Product, domain: Ints
    ) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.p, self.domain = found, domain
        self.launched = Launch(kept=list(found.before.kept))
        self.table = Table(self.launched.kept)
        self.columns = [(g, *block) for g in found.groups for block in blocks_of(g.columns)]
        self.block_width = max(v for _, _, v, _ in self.columns) * width()

    def launch(self) -> Launch:
        p = self.p
        rows = max(one.rows for one in p.passes)
        pixels = max(one.pixels for one in p.passes)
        block = max(1, min(rows, -(-_PIXELS // pixels)))
        while block > 1 and p.images * -(-rows // block) < 4 * threads():
            block = -(-block // 2)
        blocks = -(-rows // block)
        total = p.images * blocks
        parts = min(total, max(8, 4 * threads()))
        splits = 1 if parts >= 2 * threads() else min(len(self.columns), 2 * threads())
        tasks = [(t, c) for t in range(parts) for c in range(splits)]
        rows_of = self._finish(len(tasks), block, splits > 1)
        head = [len(p.passes), *rows_of[:3], p.scale, p.height, blocks, block, *rows_of[3:]]
        weights, first = self._pack()
        offset = 0
        numbers: list[int] = []
        for one in p.passes:
            numbers += self._pass(one, weights, first, offset)
            offset += sum(len(t.pieces) for t in one.taps)
        args = self.table.add(*head, *numbers)
        cut = [total * i // parts for i in range(parts + 1)]
        many = [len(self.columns) * i // splits for i in range(splits + 1)]
        stage: list[Task] = [
            (product.address, args, cut[t], cut[t + 1], many[c], many[c + 1], i)
            for i, (t, c) in enumerate(tasks)
        ]
        found = self.launched
        stage += border_tasks(self.memory, self.kernel.outputs, found.kept)
        ahead = Launch([list(s) for s in self.p.before.stages])
        ahead.beside(Launch([list(s) for s in found.stages]))
        ahead.kept = found.kept
        ahead.stages.append(stage)
        if self.folding is not None:
            ahead.then(self.folding)
        return ahead

    # what happens to the tiles

    def _finish(self, tasks: int, block: int, split: bool) -> list[int]:
        """function, its arguments, rows a row of pixels, local tiles and their size; and where the
        product itself is written."""
        kernel, memory, domain = self.kernel, self.memory, self.domain
        self.folding: Launch | None = None
        alone = kernel.outputs == (self.node.name,)
        shown = self.node.name in kernel.outputs
        if shown:
            self._own_place()
        if alone:
            return [0, 0, 1, 0, 0]
        size = block * self.p.scale * domain[2] * domain[3] * 4 + 256
        operands = {name: memory.operand(name) for name in kernel.inputs}
        scratch = 0
        if shown:
            operands[self.node.name] = memory.operand(self.node.name)
        else:
            scratch = self._tiles(tasks, size)
            shape = self.node.type.shape
            operands[self.node.name] = Operand(scratch, _row_major(shape), "float32", local=True)
        outputs = [o for o in kernel.outputs if o != self.node.name]
        body = Body(memory, kernel, domain, operands, outputs)
        if body.results and body.kept != (False, True):
            raise Unsupported("sums of products over other axes")
        found = body.walk(fixed=2, extend=not split)
        per_row = found.rows // (domain[0] * domain[1])
        rows = build(found, body.outputs, body.sums, tasks, (scratch, size))
        if rows.prepare:
            self.launched.stages.append([(rows.prepare, rows.args.ctypes.data)])
        self.launched.kept.append(rows)
        self.folding = body.fold(found, rows, 1, tasks)
        unit = -found.run if per_row == 1 else per_row
        if not shown:
            return [rows.function, rows.args.ctypes.data, unit, scratch, size]
        return [rows.function, rows.args.ctypes.data, unit, 0, 0]

    def _tiles(self, tasks: int, size: int) -> int:
        memory = np.zeros(tasks * size // 4 + 64, np.float32)
        self.launched.kept.append(memory)
        return int(memory.ctypes.data)

    def _own_place(self) -> None:
        """Tiles are written where the plan has put the product."""
        operand = self.memory.operand(self.node.name)
        layout = operand.layout
        shape = self.domain
        strides = list(layout.strides)
        if layout.shape != shape:
            flat = _flat(layout, len(layout.shape) - 1)
            if flat is None:
                raise Unsupported("a product with gaps")
            strides = [shape[1] * shape[2] * flat, shape[2] * flat, flat, strides[-1]]
        if shape[3] > 1 and strides[3] != 1:
            raise Unsupported("a product whose columns lie apart")
        base = operand.address + 4 * layout.offset
        sn, sh, sw = (4 * t for t in strides[:3])
        passes = []
        for one in self.p.passes:
            wide = self.domain[2] * self.domain[3] * 4
            down, across = one.out // wide, one.out % wide // (self.domain[3] * 4)
            place = base + down * sh + across * sw
            scale = self.p.scale
            strided = (sn, scale * sh, scale * sw)
            passes.append(
                Pass(
                    one.image,
                    one.image_strides,
                    place,
                    strided,
                    one.rows,
                    one.pixels,
                    one.taps,
                )
            )
        self.p.passes = passes

    # weights and tables

    def _pack(self) -> tuple[int, int]:
        """Where the packed weights begin, and bytes of one block in them."""
        w = self.p.weights
        if self.p.direct:
            return w.address, 0
        offsets = [piece for one in self.p.passes for t in one.taps for piece in t.pieces]
        size = len(offsets) * w.depth * self.block_width * 4
        packed = scratch(size * len(self.columns) + 256)
        self.launched.kept.append(packed)
        table = []
        for g, at, _, count in self.columns:
            table += [w.address + g.weight + at * w.column, count]
        args = self.table.add(
            packed.ctypes.data,
            w.column,
            w.step,
            w.depth,
            self.block_width,
            max(len(offsets), 1),
            self.table.add(*offsets, 0),
            self.table.add(*table),
        )
        pieces = len(offsets) * len(self.columns)
        many = max(1, min(pieces, 4 * threads(), pieces * w.depth * self.block_width // 4096))
        cut = [pieces * i // many for i in range(many + 1)]
        stage: list[Task] = [(pack.address, args, a, b) for a, b in zip(cut, cut[1:], strict=False)]
        self.launched.beside(Launch([stage]))
        return int(packed.ctypes.data), size

    def _pass(self, one: Pass, weights: int, block: int, offset: int) -> Iterator[int]:
        w, lanes = self.p.weights, width()
        step = w.step if self.p.direct else self.block_width * 4
        piece = w.depth * self.block_width * 4
        longer, length, shorter = strips(
            one.pixels, most_rows(max(v for _, _, v, _ in self.columns))
        )
        columns = []
        for i, (g, at, vectors, count) in enumerate(self.columns):
            ragged = count < vectors * lanes
            from_ = weights + g.weight + 4 * at if self.p.direct else weights + i * block
            columns += [
                g.image,
                from_ + offset * piece * (not self.p.direct),
                g.out + 4 * at,
                count,
                tile(length, vectors, ragged),
                tile(length - 1, vectors, ragged) if shorter else 0,
            ]
        taps, at = [], 0
        for t in one.taps:
            taps.append((t.offset, at, len(t.pieces) * w.depth))
            at += len(t.pieces) * piece
        chunks = self._chunks(taps, step)
        return iter(
            [
                one.image,
                *one.image_strides,
                self.p.image_k,
                one.out,
                *one.out_strides,
                one.rows,
                longer,
                length,
                shorter,
                self.table.add(*columns),
                len(self.columns),
                self.table.add(*(v for c in chunks for v in c)),
                len(chunks),
                step,
            ]
        )

    def _chunks(self, taps: Sequence[tuple[int, int, int]], step: int) -> list[Ints]:
        """The depth in chunks whose weights fit into the cache. All taps of a pass are equally
        deep, or there is one."""
        if not taps:
            return [(self.table.add(0, 0), 0, 0, 0, 1)]
        depth = taps[0][2]
        row = self.block_width * 4
        # where the depth runs across rows of the image, a chunk's cache lines must fit the first
        most = max(1, _CHUNK // row) if self.p.image_k == 4 else _ACROSS
        if any(t[2] != depth for t in taps):
            raise Unsupported("taps of different depth")
        if depth > most:
            pieces = -(-depth // most)
            cut = [depth * i // pieces for i in range(pieces + 1)]
            return [
                (self.table.add(t[0], t[1]), 1, a * self.p.image_k, a * step, b - a)
                for t in taps
                for a, b in zip(cut, cut[1:], strict=False)
            ]
        each = max(1, most // depth)
        return [
            (
                self.table.add(*(v for t in taps[i : i + each] for v in t[:2])),
                len(taps[i : i + each]),
                0,
                0,
                depth,
            )
            for i in range(0, len(taps), each)
        ]


def _row_major(shape: Ints) -> Layout:
    from netdsl.plan.layout import contiguous

    return contiguous(shape)


_shared: list[Array] = []


def scratch(nbytes: int) -> Array:
    """Memory that one kernel uses while it runs; all kernels have the same."""
    if not _shared or _shared[-1].nbytes < nbytes:
        _shared.append(np.zeros(nbytes // 4 * 5 // 4 + 64, np.float32))
    return _shared[-1]


class _Wgrad:
    """conv2d's gradient for its weight: columns are the results' channels, rows the image's, and
    the depth runs over all pixels. Parts of it are summed apart where there is too little else to
    share."""

    def __init__(self, memory: Memory, kernel: Kernel, node: Node) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.launched = Launch()
        self.table = Table(self.launched.kept)

    def launch(self) -> Launch:
        node, memory = self.node, self.memory
        a, groups = node.attrs, node.attrs["groups"]
        g = memory.operand(node.args[0])
        if g.layout.strides[3] != 1 and g.layout.shape[3] > 1:
            raise Unsupported("a gradient whose channels lie apart")
        (top, bottom), (left, right) = a["pad"]
        at, (sn, sh, sw) = _image(memory, node.args[1], (top, bottom, left, right), self.launched)
        n, oh, ow, k = g.layout.shape
        _, r, s, c = node.type.shape
        gn, gh, gw = (4 * t for t in g.layout.strides[:3])
        image = at - top * sh - left * sw
        taps = [
            (i * sn + j * a["stride"][0] * sh, i * gn + j * gh) for i in range(n) for j in range(oh)
        ]
        merged = groups == 1 and a["dilation"][1] == 1 and sw == 4 * c
        down, across = a["dilation"][0] * sh, a["dilation"][1] * sw
        images, rows, pixels = (1, r, s * c) if merged else (r, s, c)
        strides = (0, down, 4) if merged else (down, across, 4)
        each = k // groups
        columns = [
            (q, q * each + first, vectors, count)
            for q in range(groups)
            for first, vectors, count in blocks_of(each)
        ]
        parts = self._parts(images * rows * len(columns), len(taps), r * s * c * k)
        size = r * s * c * k
        raw = scratch(parts * size * 4 + 256)
        kept = self.launched.kept
        kept.append(raw)
        lanes, most = width(), max(v for _, _, v, _ in columns)
        longer, length, shorter = strips(pixels, most_rows(most))
        table = []
        for q, first, vectors, count in columns:
            ragged = count < vectors * lanes
            table += [
                q * c * 4,
                g.address + 4 * g.layout.offset + 4 * first,
                4 * first,
                count,
                tile(length, vectors, ragged),
                tile(length - 1, vectors, ragged) if shorter else 0,
            ]
        column_table = self.table.add(*table)
        deep = max(1, (1024 // most) // ow)
        out = (s * c * k * 4, pixels * k * 4, k * 4)
        stage: list[Task] = []
        for part in range(parts):
            mine = taps[len(taps) * part // parts : len(taps) * (part + 1) // parts]
            chunks: list[int] = []
            for i in range(0, len(mine), deep):
                some = mine[i : i + deep]
                chunks += [self.table.add(*(v for t in some for v in t)), len(some), 0, 0, ow]
            head = [1, 0, 0, 1, 1, rows, rows, 1, 0, 0]
            head += [image, *strides, a["stride"][1] * sw, raw.ctypes.data + 4 * part * size, *out]
            head += [rows, longer, length, shorter, column_table, len(columns)]
            head += [self.table.add(*chunks), len(chunks) // 5, gw]
            args = self.table.add(*head)
            stage += [
                (product.address, args, q, q + 1, cb, cb + 1, 0)
                for q in range(images * rows)
                for cb in range(len(columns))
            ]
        self.launched.stages.append(stage)
        self._finish(raw, parts, size, r * s * c, k)
        return self.launched

    def _parts(self, tasks: int, taps: int, size: int) -> int:
        parts = 1
        while tasks * parts < 6 * threads() and parts < min(8, taps) and size * parts < 1 << 21:
            parts *= 2
        return min(parts, taps)

    def _finish(self, raw: Array, parts: int, size: int, rows: int, columns: int) -> None:
        """The parts summed and turned into the weight's order; then what else the kernel does."""
        kernel, memory, name = self.kernel, self.memory, self.node.name
        shown = name in kernel.outputs
        if shown:
            place = memory.operand(name)
            step, target = place.layout.strides[0], place.address + 4 * place.layout.offset
            if _flat(place.layout, 4) != 1 or place.layout.strides[3] not in (1, 0):
                raise Unsupported("a weight's gradient with gaps")
        else:
            memory_ = np.zeros(size + 64, np.float32)
            self.launched.kept.append(memory_)
            step, target = rows, int(memory_.ctypes.data)
        args = self.table.add(raw.ctypes.data, parts, size * 4, columns, target, 4 * step)
        many = max(1, min(rows, 4 * threads(), size // 4096))
        cut = [rows * i // many for i in range(many + 1)]
        self.launched.stages.append(
            [(gather_parts.address, args, a, b) for a, b in zip(cut, cut[1:], strict=False)]
        )
        outputs = [o for o in kernel.outputs if o != name]
        if not outputs:
            return
        from netdsl.backends.cpu.maps import body_launch

        operands = {i: memory.operand(i) for i in kernel.inputs}
        own = Operand(target, _row_major(self.node.type.shape), "float32")
        operands[name] = memory.operand(name) if shown else own
        body = Body(memory, kernel, self.node.type.shape, operands, outputs)
        self.launched.then(body_launch(memory, body, outputs))
