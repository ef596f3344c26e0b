"""conv2d's gradient for its weight as tasks: a product whose depth runs over all pixels."""

from __future__ import annotations

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


class Wgrad:
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
        at, (sn, sh, sw) = image_of(memory, node.args[1], (top, bottom, left, right), self.launched)
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
            if flat(place.layout, 4) != 1 or place.layout.strides[3] not in (1, 0):
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
