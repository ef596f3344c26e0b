"""conv2d's gradient for its weight as tasks: a product whose depth runs over all pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netdsl.backends.cpu.columns import Table, blocks_of, flat, scratch, strips
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.launch import Task, shared, threads
from netdsl.backends.cpu.maps import Body, Launch, Memory, body_launch
from netdsl.backends.cpu.product import gather_parts, product
from netdsl.backends.cpu.products import image_of
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import most_rows, tile
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import contiguous
from netdsl.types import Array, Node

_MOST = 1 << 21
"""Elements of all parts together, about: what is written is read again."""


@dataclass(frozen=True)
class Sum:
    """The product that is summed: rows of an image's channels, columns of a gradient's, both read
    along the depth, `depth` steps a tap. Strides are bytes."""

    image: int
    strides: tuple[int, int, int]
    image_k: int
    gradient: int
    gradient_k: int
    taps: tuple[tuple[int, int], ...]
    depth: int
    images: int
    rows: int
    pixels: int
    channels: int
    groups: int
    columns: int

    @property
    def height(self) -> int:
        return self.images * self.rows * self.pixels


def long_sum(memory: Memory, node: Node) -> bool:
    """Whether a matrix product is the gradient of a 1x1 convolution over many pixels: both of its
    operands are read along their columns."""
    x, w = (memory.operand(a).layout for a in node.args)
    if len(x.shape) != 2 or len(w.shape) != 2 or x.shape[1] < 4096:
        return False
    turned = x.strides[0] == 1 and w.strides[0] == 1
    return turned and 2 * x.shape[0] * w.shape[0] <= _MOST and _depth(x.shape[1]) > 0


def _depth(pixels: int) -> int:
    """Steps of a tap: a divisor, few enough that their pages are known to the TLB."""
    return next((d for d in range(64, 15, -1) if pixels % d == 0), 0)


def _of_matrix(memory: Memory, node: Node) -> Sum:
    g, x = (memory.operand(a) for a in node.args)
    depth = _depth(g.layout.shape[1])
    gk, xk = 4 * g.layout.strides[1], 4 * x.layout.strides[1]
    taps = tuple((i * xk, i * gk) for i in range(0, g.layout.shape[1], depth))
    rows, columns = x.layout.shape[0], g.layout.shape[0]
    image, gradient = (o.address + 4 * o.layout.offset for o in (x, g))
    return Sum(image, (0, 0, 4), xk, gradient, gk, taps, depth, 1, 1, rows, rows, 1, columns)


class Wgrad:
    """conv2d's gradient for its weight: columns are the results' channels, rows the image's, and
    the depth runs over all pixels. Parts of it are summed apart where there is too little else to
    share."""

    def __init__(self, memory: Memory, kernel: Kernel, node: Node) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.launched = Launch()
        self.table = Table(self.launched.kept)

    def launch(self) -> Launch:
        matrix = self.node.op == "matmul"
        found = _of_matrix(self.memory, self.node) if matrix else self._of_image()
        each = found.columns // found.groups
        columns = [
            (q, q * each + first, vectors, count)
            for q in range(found.groups)
            for first, vectors, count in blocks_of(each)
        ]
        size = found.height * found.columns
        lines = found.images * found.rows
        parts = self._parts(1 if matrix else lines * len(columns), len(found.taps), size)
        raw = scratch(parts * size * 4 + 256)
        self.launched.kept.append(raw)
        splits = -(-4 * threads() // parts) if matrix else len(columns)
        ranges = shared(len(columns), splits)
        stage: list[Task] = []
        for part, (first, last) in enumerate(shared(len(found.taps), parts)):
            to = raw.ctypes.data + 4 * part * size
            args = self._arguments(found, columns, found.taps[first:last], to)
            stage += [
                (product.address, args, q, q + 1, *some, 0) for q in range(lines) for some in ranges
            ]
        self.launched.stages.append(stage)
        self._finish(raw, parts, size, found.height, found.columns)
        return self.launched

    def _of_image(self) -> Sum:
        node, memory, a = self.node, self.memory, self.node.attrs
        g = memory.operand(node.args[0])
        if g.layout.strides[3] != 1 and g.layout.shape[3] > 1:
            raise Unsupported("a gradient whose channels lie apart")
        (top, bottom), (left, right) = a["pad"]
        at, (sn, sh, sw) = image_of(memory, node.args[1], (top, bottom, left, right), self.launched)
        n, oh, ow, k = g.layout.shape
        _, r, s, c = node.type.shape
        gn, gh, gw = (4 * t for t in g.layout.strides[:3])
        step = a["stride"][0] * sh
        taps = tuple((i * sn + j * step, i * gn + j * gh) for i in range(n) for j in range(oh))
        down, across = a["dilation"][0] * sh, a["dilation"][1] * sw
        merged = a["groups"] == 1 and across == 4 * c
        images, rows, pixels = (1, r, s * c) if merged else (r, s, c)
        return Sum(
            at - top * sh - left * sw,
            (0, down, 4) if merged else (down, across, 4),
            a["stride"][1] * sw,
            g.address + 4 * g.layout.offset,
            gw,
            taps,
            ow,
            images,
            rows,
            pixels,
            c,
            a["groups"],
            k,
        )

    def _arguments(
        self,
        found: Sum,
        columns: list[tuple[int, int, int, int]],
        taps: tuple[tuple[int, int], ...],
        target: int,
    ) -> int:
        """The arguments of the tasks of one part; see product.py."""
        most = max(v for _, _, v, _ in columns)
        longer, length, shorter = strips(found.pixels, most_rows(most))
        table = []
        for q, first, vectors, count in columns:
            ragged = count < vectors * width()
            table += [
                q * found.channels * 4,
                found.gradient + 4 * first,
                4 * first,
                count,
                tile(length, vectors, ragged),
                tile(length - 1, vectors, ragged) if shorter else 0,
            ]
        matrix = self.node.op == "matmul"
        deep = 1 if matrix else max(1, 1024 // most // found.depth)
        chunks: list[int] = []
        for i in range(0, len(taps), deep):
            some = taps[i : i + deep]
            chunks += [self.table.add(*(v for t in some for v in t)), len(some), 0, 0, found.depth]
        line = found.columns * 4
        out = (found.rows * found.pixels * line, found.pixels * line, line)
        head = [1, 0, 0, 1, 1, found.rows, found.rows, 1, 0, 0]
        head += [found.image, *found.strides, found.image_k, target, *out]
        head += [found.rows, longer, length, shorter, self.table.add(*table), len(columns)]
        head += [self.table.add(*chunks), len(chunks) // 5, found.gradient_k]
        return self.table.add(*head, 1 if matrix else len(chunks))

    def _parts(self, tasks: int, taps: int, size: int) -> int:
        parts = 1
        while tasks * parts < 6 * threads() and parts < min(8, taps) and size * parts < _MOST:
            parts *= 2
        return min(parts, taps)

    def _finish(self, raw: Array, parts: int, size: int, rows: int, columns: int) -> None:
        """The parts summed and turned into the weight's order; then what else the kernel does."""
        kernel, memory, name = self.kernel, self.memory, self.node.name
        shown = name in kernel.outputs
        if shown:
            place = memory.operand(name)
            step, target = place.layout.strides[0], place.address + 4 * place.layout.offset
            if flat(place.layout, len(place.layout.shape)) != 1:
                raise Unsupported("a weight's gradient with gaps")
        else:
            memory_ = np.zeros(size + 64, np.float32)
            self.launched.kept.append(memory_)
            step, target = rows, int(memory_.ctypes.data)
        args = self.table.add(raw.ctypes.data, parts, size * 4, columns, target, 4 * step)
        many = min(4 * threads(), size // 4096)
        self.launched.stages.append([(gather_parts.address, args, *r) for r in shared(rows, many)])
        outputs = [o for o in kernel.outputs if o != name]
        if not outputs:
            return
        operands = {i: memory.operand(i) for i in kernel.inputs}
        own = Operand(target, contiguous(self.node.type.shape), "float32")
        operands[name] = memory.operand(name) if shown else own
        body = Body(memory, kernel, self.node.type.shape, operands, outputs)
        self.launched.then(body_launch(memory, body, outputs))
