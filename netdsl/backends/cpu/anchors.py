"""Products of a plan cut into tasks, with what the kernel does to their tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from netdsl.backends.cpu.blocking import Blocking, blocking
from netdsl.backends.cpu.columns import Table, flat
from netdsl.backends.cpu.depthwise import depthwise, depthwise_launch
from netdsl.backends.cpu.dots import dots_launch, few_rows
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.finish import Finish, finish_of
from netdsl.backends.cpu.launch import Task, cut, shared, threads
from netdsl.backends.cpu.maps import Body, Launch, Memory, border_tasks
from netdsl.backends.cpu.product import pack, product
from netdsl.backends.cpu.products import Pass, Product, conv, dgrad, matmul
from netdsl.backends.cpu.room import floats, scratch
from netdsl.backends.cpu.rows import build
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import asked, tile
from netdsl.backends.cpu.wgrad import Wgrad, long_sum
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Ints, Layout, contiguous
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
_LEAST = 24
"""As few pixels as weights come from the second cache for."""
_SECOND = 1 << 20
"""Bytes of weights that stay in a core's second cache beside others."""
_RESULTS = 96 * 1024
"""Bytes of results that are near when they are gone through."""
_DEEP = 512 * 1024
"""Bytes of a column block's weights that pass by a strip of pixels at once, from the second
cache."""
_SHALLOW = 256
"""Products of a sum that take no longer than its result takes to come from memory, about."""
_NARROW = 2
"""Vectors of a column block that are worth being gone through by themselves."""


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
        self.lines = max(one.rows for one in found.passes)
        self.block = min(self._block(), found.images * self.lines)
        self.shown = node.name in kernel.outputs
        self.body = self._body()
        self.registers = self._in_registers()
        self.settled = memory.settled(node.args[1])
        self.whole = len(self.columns) == 1 or self.block_width < _NARROW * width()
        together = self.whole or self._light() or self._streams() or self._outer()
        self.span = len(self.columns) if together else 1
        self.apart = self.span < len(self.columns)
        self.pitch = self.block_width if self.apart else domain[3]

    @staticmethod
    def _tiles_of(found: Product) -> Blocking:
        """The tiles that suit the pass with most taps."""
        one = max(found.passes, key=lambda p: sum(len(t.pieces) for t in p.taps))
        depth = found.weights.depth * sum(len(t.pieces) for t in one.taps)
        return blocking(one.pixels, found.groups[0].columns, depth, one.image_strides[2])

    def launch(self) -> Launch:
        p = self.p
        tasks = self._cut()
        tiles = len(tasks) * self._tile_bytes()
        passing = not (self.settled or p.direct)
        room = scratch(tiles + (self._packed_bytes() if passing else 0))
        self.launched.kept.append(room)
        finish = self._finish(len(tasks), int(room.ctypes.data))
        numbers = [len(p.passes), self.lines, self.block, self.span, *finish]
        packed = p.weights.address if p.direct else self._pack(int(room.ctypes.data) + tiles)
        offset = 0
        for one in p.passes:
            numbers += self._pass(one, packed, offset)
            offset += sum(len(t.pieces) for t in one.taps)
        args = self.table.add(*numbers)
        stage: list[Task] = [(product.address, args, *t, i) for i, t in enumerate(tasks)]
        found = self.launched
        stage += border_tasks(self.memory, self.kernel.outputs, found.kept)
        ahead = Launch([list(s) for s in p.before.stages])
        ahead.beside(Launch([list(s) for s in found.stages]))
        ahead.kept, ahead.early = found.kept, found.early
        ahead.stages.append(stage)
        if self.folding is not None:
            ahead.then(self.folding)
        return ahead

    def _block(self) -> int:
        """Rows of pixels that are computed before the kernel's other nodes take them."""
        pixels = _PIXELS
        if self._outer():
            return 1
        if self._light():
            pixels = max(_LEAST, min(_PIXELS, _RESULTS // (4 * self.domain[3])))
        return -(-pixels // max(one.pixels for one in self.p.passes))

    def _light(self) -> bool:
        """Whether all weights stay near: then few pixels at a time get all their columns, and what
        lies in memory beside them is read and written in long rows. Heavier ones pass by many
        pixels, a column block at a time."""
        return len(self.columns) * self._packed_block() <= _SECOND

    def _cut(self) -> list[tuple[int, int, int, int]]:
        """Rows of pixels and column blocks of each task."""
        lines, every = self.p.images * self.lines, len(self.columns)
        if self.whole:
            return [(a, b, 0, every) for a, b, _, _ in cut(lines, self.block, 1)]
        return cut(lines, self.block, every)

    # what happens to the tiles

    def _tile_bytes(self) -> int:
        """Of a block of results that only this kernel reads."""
        rows = self.block * self.p.scale * self.domain[2]
        return 0 if self.shown or self.registers else -(-rows * self.pitch // 16) * 64 + 256

    def _body(self) -> Body | None:
        """What else the kernel computes."""
        memory, kernel, name = self.memory, self.kernel, self.node.name
        outputs = [o for o in kernel.outputs if o != name]
        if not outputs:
            return None
        own = Operand(0, contiguous(self.node.type.shape), "float32", local=True)
        operands = {name: memory.operand(name) for name in kernel.inputs}
        operands[name] = memory.operand(name) if self.shown else own
        body = Body(memory, kernel, self.domain, operands, outputs)
        if body.results and body.kept != (False, True):
            raise Unsupported("sums of products over other axes")
        return body

    def _in_registers(self) -> Finish | None:
        """What a tile can do by itself where it writes only that: as sums of some products lie
        there until the others come, all must come at once if there is anything to be read."""
        if self.body is None or self.shown or self.body.results or len(self.body.outputs) != 1:
            return None
        found = finish_of(*self.body.outputs[0])
        depth = self.p.weights.depth * max(
            sum(len(t.pieces) for t in one.taps) for one in self.p.passes
        )
        return None if found and found.reads_rows and depth > self._most() else found

    def _finish(self, tasks: int, tiles: int) -> list[int]:
        """What is called for rows that are there: function, its arguments, rows for a row of
        pixels (or elements, negative), and rows of pixels of a row of a pass and of an image; then
        where local tiles lie, and bytes of one. And where the product is written."""
        domain, p, size = self.domain, self.p, self._tile_bytes()
        self.folding: Launch | None = None
        if self.registers:
            target = self.registers.target
            self._write_to(target.address, target.strides[:3])
        elif self.shown:
            own, tiles = self.memory.operand(self.node.name), 0
            self._write_to(own.address + 4 * own.layout.offset, self._own_strides(own.layout))
        else:
            row = domain[2] * self.pitch
            self._write_to(0, (domain[1] * row, row, self.pitch))
        if self.body is None or self.registers:
            return [0, 0, 1, p.scale, p.height, 0, 0]
        found = self.body.walk(fixed=2, extend=self.whole)
        per_row = found.rows // (domain[0] * domain[1])
        pitch = self.pitch if self.apart else found.run
        rows = build(found, self.body.outputs, self.body.sums, tasks, (tiles, size, pitch))
        if rows.prepare:
            self.launched.stages.append([(rows.prepare, rows.args.ctypes.data)])
        self.launched.kept.append(rows)
        self.folding = self.body.fold(found, rows, 1, tasks)
        unit = -found.run if per_row == 1 and self.whole else per_row
        return [rows.function, rows.args.ctypes.data, unit, p.scale, p.height, tiles, size]

    def _own_strides(self, layout: Layout) -> Ints:
        """Of images, rows and pixels where the plan has put the product."""
        shape, strides = self.domain, list(layout.strides)
        if layout.shape != shape:
            step = flat(layout, len(layout.shape) - 1)
            if step is None:
                raise Unsupported("a product with gaps")
            strides = [shape[1] * shape[2] * step, shape[2] * step, step, strides[-1]]
        if shape[3] > 1 and strides[3] != 1:
            raise Unsupported("a product whose columns lie apart")
        return tuple(strides[:3])

    def _write_to(self, base: int, strides: Ints) -> None:
        """Tiles are written there."""
        n, h, w = (4 * t for t in strides)
        scale, passes = self.p.scale, []
        for one in self.p.passes:
            wide = self.domain[2] * self.domain[3] * 4
            down, across = one.out // wide, one.out % wide // (self.domain[3] * 4)
            place = base + down * h + across * w
            passes.append(replace(one, out=place, out_strides=(n, scale * h, scale * w)))
        self.p.passes = passes

    # weights and tables

    def _packed_bytes(self) -> int:
        """Of all weights as tiles read them."""
        return len(self.columns) * self._packed_block() + 256

    def _packed_block(self) -> int:
        """Bytes of a column block of them."""
        pieces = sum(len(t.pieces) for one in self.p.passes for t in one.taps)
        return pieces * self.p.weights.depth * self.block_width * 4

    def _pack(self, room: int) -> int:
        """Where the packed weights begin: in memory of their own where they are settled."""
        w = self.p.weights
        offsets = [piece for one in self.p.passes for t in one.taps for piece in t.pieces]
        if self.settled:
            packed = floats(self._packed_bytes() // 4)
            self.launched.kept.append(packed)
            room = int(packed.ctypes.data)
        table = []
        for g, at, _, count in self.columns:
            table += [w.address + g.weight + at * w.column, count]
        args = self.table.add(
            room,
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
        self.launched.beside(Launch(early=stage) if self.settled else Launch([stage]))
        return room

    def _pass(self, one: Pass, weights: int, offset: int) -> Iterator[int]:
        w, lanes, block = self.p.weights, width(), self._packed_block()
        step = w.step if self.p.direct else self.block_width * 4
        piece = w.depth * self.block_width * 4
        longer, length, shorter = self.tiles.strips(one.pixels)
        finish = self.registers
        recipe = finish.recipe if finish else None
        steps = (4, step) if self.p.image_k == 4 and not self.p.direct else None
        columns = []
        for i, (g, at, vectors, count) in enumerate(self.columns):
            ragged = count < vectors * lanes
            from_ = weights + g.weight + 4 * at if self.p.direct else weights + i * block
            columns += [
                g.image,
                from_ + offset * piece * (not self.p.direct),
                g.out + 4 * at,
                count,
                tile(length, vectors, ragged, steps, recipe),
                tile(length - 1, vectors, ragged, steps, recipe) if shorter else 0,
                self.table.add(*finish.addresses(g.out // 4 + at), 0) if finish else 0,
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
                self.table.add(*(v for c in chunks for v in c)),
                len(chunks),
                step,
                1 if self._streams() else len(chunks),
                *self._ahead(one),
                *self._results(),
            ]
        )

    def _ahead(self, one: Pass) -> tuple[int, int, int, int]:
        """Bytes from pixel to pixel that a tile asks for, where each pixel is read but once, and
        how it comes from one pixel's lines to the next one's: see tile.py."""
        depth = min(self.p.weights.depth, self._most())
        lines = asked(self.block_width // width())
        if sum(len(t.pieces) for t in one.taps) != 1 or self.p.image_k != 4:
            return 0, 0, 0, 64 * lines
        pixel = one.image_strides[2]
        times = -(-depth * 4 // (64 * lines))
        return pixel, pixel - 64 * lines * (times - 1), times, 64 * lines

    def _results(self) -> tuple[int, int]:
        """How often a tile asks for what lies where the next ones' results will, and how far from
        there: where weights are near, and each result is the sum of few products."""
        finish, vectors = self.registers, self.block_width // width()
        if finish is None or not self._light() or self.p.weights.depth > _SHALLOW:
            return 0, 0
        rows = [p.address - finish.target.address for kind, p in finish.places if kind == "full"]
        return -(-vectors // asked(vectors)), rows[0] if rows else 0

    def _outer(self) -> bool:
        """Whether a shallow product fills long rows: each is written from its beginning to its
        end, a few at a time."""
        return self.p.weights.depth <= _FEW and 4 * self.domain[3] > _PAGE

    def _streams(self) -> bool:
        """Whether the rows of a wide matrix pass by once, beside few rows of results."""
        p = self.p
        many = p.images * sum(one.rows * one.pixels for one in p.passes)
        return p.direct and p.weights.step > _PAGE and many <= _FEW

    def _most(self) -> int:
        """How deep a chunk is at most."""
        if self._streams():
            return _AT_ONCE
        # where the depth runs across rows of the image, a chunk's pages must be known to the TLB
        return max(1, _DEEP // (self.block_width * 4)) if self.p.image_k == 4 else _ACROSS

    def _chunks(self, taps: Sequence[tuple[int, int, int]], step: int) -> list[Ints]:
        """The depth in chunks whose weights fit into the cache. All taps of a pass are equally
        deep, or there is one."""
        if not taps:
            return [(self.table.add(0, 0), 0, 0, 0, 1)]
        depth, most = taps[0][2], self._most()
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
