"""Products of a plan cut into tasks, with what the kernel does to their tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from netdsl.backends.cpu.blocking import CHUNK, Blocking, blocking
from netdsl.backends.cpu.columns import Table, flat, scratch
from netdsl.backends.cpu.depthwise import depthwise, depthwise_launch
from netdsl.backends.cpu.dots import dots_launch, few_rows
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.launch import Task, shared, threads
from netdsl.backends.cpu.maps import Body, Launch, Memory, border_tasks
from netdsl.backends.cpu.product import pack, product
from netdsl.backends.cpu.products import Pass, Product, conv, dgrad, matmul
from netdsl.backends.cpu.rows import build
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import asked, tile
from netdsl.backends.cpu.wgrad import Wgrad, long_sum
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Ints, contiguous
from netdsl.types import Node

_ACROSS = 48
"""Rows of a matrix that is read along its columns, a page each perhaps, in a chunk."""
_PAGE = 4096
_FEW = 32
"""As many rows of a matrix as stay near while those of another one pass by."""
_AT_ONCE = 16
"""Rows of a matrix that are read side by side, each from its beginning to its end."""
_PIXELS = 256
"""Pixels of a block of rows, about."""
_SECOND = 1 << 20
"""Bytes that stay in a core's second cache beside others."""


def anchor_launch(memory: Memory, kernel: Kernel) -> Launch:
    """The tasks of a product and what happens to its tiles."""
    node = memory.plan.graph[kernel.name]
    kinds = {memory.plan.graph[n].type.dtype for n in (*kernel.nodes, *kernel.inputs)}
    if not kinds <= {"float32", "bool"}:
        raise Unsupported("other types than float32")
    if depthwise(memory, node):
        return depthwise_launch(memory, kernel, node)
    if node.op == "conv2d_wgrad":
        return Wgrad(memory, kernel, node).launch()
    if node.op == "matmul" and long_sum(memory, node):
        return Wgrad(memory, kernel, node).launch()
    if few_rows(memory, node):
        return dots_launch(memory, kernel, node)
    makers = {"conv2d": conv, "conv2d_dgrad": dgrad, "matmul": matmul}
    return _Tasks(memory, kernel, node, *makers[node.op](memory, kernel, node)).launch()


class _Tasks:
    """Cuts one product into stages of tasks."""

    def __init__(
        self, memory: Memory, kernel: Kernel, node: Node, found: Product, domain: Ints
    ) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.p, self.domain = found, domain
        self.launched = Launch(kept=list(found.before.kept))
        self.table = Table(self.launched.kept)
        self.tiles = self._tiles_of(found)
        self.columns = [(g, *b) for g in found.groups for b in self.tiles.columns(g.columns)]
        self.block_width = max(v for _, _, v, _ in self.columns) * width()

    @staticmethod
    def _tiles_of(found: Product) -> Blocking:
        """The tiles that suit the pass with most taps."""
        one = max(found.passes, key=lambda p: sum(len(t.pieces) for t in p.taps))
        depth = found.weights.depth * sum(len(t.pieces) for t in one.taps)
        return blocking(one.pixels, found.groups[0].columns, depth, one.image_strides[2])

    def launch(self) -> Launch:
        p = self.p
        rows = max(one.rows for one in p.passes)
        pixels = max(one.pixels for one in p.passes)
        block = 1 if self._outer() else max(1, min(rows, -(-_PIXELS // pixels)))
        few = self._shared_rows(rows, block, 4 * threads()) * pixels <= _FEW
        splits = self._splits() if few else 1
        wanted = -(-4 * threads() // splits)
        block = self._shared_rows(rows, block, wanted)
        blocks = -(-rows // block)
        total = p.images * blocks
        parts = min(total, wanted if splits > 1 else max(8, wanted))
        if parts * splits < 2 * threads():
            splits = min(len(self.columns), 2 * threads())
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
        ahead.kept, ahead.early = found.kept, found.early
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
            operands[self.node.name] = Operand(scratch, contiguous(shape), "float32", local=True)
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
        unit = -found.run if per_row == 1 and not split else per_row
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
            step = flat(layout, len(layout.shape) - 1)
            if step is None:
                raise Unsupported("a product with gaps")
            strides = [shape[1] * shape[2] * step, shape[2] * step, step, strides[-1]]
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
        settled = self.memory.settled(self.node.args[1])
        needed = size * len(self.columns) + 256
        packed = np.zeros(needed // 4, np.float32) if settled else scratch(needed)
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
        many = min(4 * threads(), pieces * w.depth * self.block_width // 4096)
        stage: list[Task] = [(pack.address, args, *r) for r in shared(pieces, many)]
        self.launched.beside(Launch(early=stage) if settled else Launch([stage]))
        return int(packed.ctypes.data), size

    def _pass(self, one: Pass, weights: int, block: int, offset: int) -> Iterator[int]:
        w, lanes = self.p.weights, width()
        step = w.step if self.p.direct else self.block_width * 4
        piece = w.depth * self.block_width * 4
        longer, length, shorter = self.tiles.strips(one.pixels)
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
                1 if self._streams() else len(chunks),
                *self._ahead(one),
            ]
        )

    def _ahead(self, one: Pass) -> tuple[int, int, int, int]:
        """Bytes from pixel to pixel that a tile asks for, where each pixel is read but once, and
        how it comes from one pixel's lines to the next one's: see tile.py."""
        depth = min(self.p.weights.depth, CHUNK // (self.block_width * 4))
        lines = asked(self.block_width // width())
        if sum(len(t.pieces) for t in one.taps) != 1 or self.p.image_k != 4:
            return 0, 0, 0, 64 * lines
        pixel = one.image_strides[2]
        times = -(-depth * 4 // (64 * lines))
        return pixel, pixel - 64 * lines * (times - 1), times, 64 * lines

    def _shared_rows(self, rows: int, block: int, wanted: int) -> int:
        """Rows of a block: fewer where there are too few blocks."""
        while block > 1 and self.p.images * -(-rows // block) < wanted:
            block = -(-block // 2)
        return block

    def _splits(self) -> int:
        """Tasks that share out the columns, each with its weights for all pixels: blocks of few
        pixels would else have many weights pass by, and each block all of them."""
        p = self.p
        pieces = sum(len(t.pieces) for one in p.passes for t in one.taps)
        weights = pieces * p.weights.depth * p.groups[0].columns * 4 * len(p.groups)
        return 1 if p.direct or weights <= _SECOND else min(len(self.columns), 4 * threads())

    def _outer(self) -> bool:
        """Whether a shallow product fills long rows: each is written from its beginning to its
        end, a few at a time."""
        return self.p.weights.depth <= _FEW and 4 * self.domain[3] > _PAGE

    def _streams(self) -> bool:
        """Whether the rows of a wide matrix pass by once, beside few rows of results."""
        p = self.p
        many = p.images * sum(one.rows * one.pixels for one in p.passes)
        return p.direct and p.weights.step > _PAGE and many <= _FEW

    def _chunks(self, taps: Sequence[tuple[int, int, int]], step: int) -> list[Ints]:
        """The depth in chunks whose weights fit into the cache. All taps of a pass are equally
        deep, or there is one."""
        if not taps:
            return [(self.table.add(0, 0), 0, 0, 0, 1)]
        depth = taps[0][2]
        row = self.block_width * 4
        # where the depth runs across rows of the image, a chunk's pages must be known to the TLB
        most = max(1, CHUNK // row) if self.p.image_k == 4 else _ACROSS
        if self._streams():
            most = _AT_ONCE
        if any(t[2] != depth for t in taps):
            raise Unsupported("taps of different depth")
        if depth > most:
            pieces = shared(depth, -(-depth // most))
            return [
                (self.table.add(t[0], t[1]), 1, a * self.p.image_k, a * step, b - a)
                for t in taps
                for a, b in pieces
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
