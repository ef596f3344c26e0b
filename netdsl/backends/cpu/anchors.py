"""Products of a plan cut into tasks, with what the kernel does to their tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from netdsl.backends.cpu.after import After, together
from netdsl.backends.cpu.blocking import Blocking, blocking
from netdsl.backends.cpu.depthwise import depthwise, depthwise_launch
from netdsl.backends.cpu.dots import dots_launch, few_rows
from netdsl.backends.cpu.expression import Unsupported
from netdsl.backends.cpu.filtered_wgrad import FilteredWgrad, sums_worth
from netdsl.backends.cpu.launch import Task, cut, shared, threads
from netdsl.backends.cpu.maps import Launch, Memory
from netdsl.backends.cpu.product import (
    ChunkArgs,
    ColumnArgs,
    PackArgs,
    PackBlock,
    PassArgs,
    ProductArgs,
    pack,
    product,
)
from netdsl.backends.cpu.products import Pass, Product, conv, dgrad, matmul
from netdsl.backends.cpu.record import Table
from netdsl.backends.cpu.room import floats, scratch
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import TileTap, asked, tile
from netdsl.backends.cpu.wgrad import Wgrad, long_sum
from netdsl.backends.cpu.winograd import Filtered, worth
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple
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
        kind = FilteredWgrad if sums_worth(memory, node) else Wgrad
        return kind(memory, kernel, node).launch()
    if node.op == "matmul" and long_sum(memory, node):
        return Wgrad(memory, kernel, node).launch()
    if few_rows(memory, node):
        return dots_launch(memory, kernel, node)
    makers = {"conv2d": conv, "conv2d_dgrad": dgrad, "matmul": matmul}
    if node.op not in makers:
        raise Unsupported(f"no kernel for {node.op}")
    found, domain = makers[node.op](memory, kernel, node)
    if node.op != "matmul" and worth(memory, node, found):
        return Filtered(memory, kernel, node, found, domain).launch()
    return _Tasks(memory, kernel, node, found, domain).launch()


class _Tasks:
    """Cuts one product into stages of tasks."""

    def __init__(
        self, memory: Memory, kernel: Kernel, node: Node, found: Product, domain: IntTuple
    ) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.workers = memory.workers(kernel)
        self.p, self.domain = found, domain
        self.launched = Launch(kept=list(found.before.kept))
        self.table = Table(self.launched.kept)
        self.tiles = self._tiles_of(found)
        self.columns = [(g, *b) for g in found.groups for b in self.tiles.columns(g.columns)]
        self.block_width = max(v for _, _, v, _ in self.columns) * width()
        self.lines = max(one.rows for one in found.passes)
        self.block = min(self._block(), found.images * self.lines)
        self.after = After(memory, kernel, node, domain)
        if not self._at_once():
            self.after.registers = None
        self.settled = memory.settled(node.args[1])
        self.whole = len(self.columns) == 1 or self.block_width < _NARROW * width()
        every = self.whole or self._light() or self._streams() or self._outer()
        self.span = len(self.columns) if every else 1
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
        size = self.after.local_bytes(self.block * p.scale, self.pitch)
        tiles = len(tasks) * size
        passing = not (self.settled or p.direct)
        room = scratch(tiles + (self._packed_bytes() if passing else 0))
        self.launched.kept.append(room)
        self._write_to()
        local = (int(room.ctypes.data), size)
        follower = self.after.follower(
            len(tasks), local, self.pitch if self.apart else 0, self.whole
        )
        packed = p.weights.address if p.direct else self._pack(int(room.ctypes.data) + tiles)
        passes, offset = [], 0
        for one in p.passes:
            passes.append(self._pass(one, packed, offset))
            offset += sum(len(t.pieces) for t in one.taps)
        args = self.table.add(
            ProductArgs(
                passes=self.table.add(*passes),
                pass_count=len(passes),
                lines=self.lines,
                block=self.block,
                span=self.span,
                scale=p.scale,
                height=p.height,
                follower=self.table.add(follower),
            )
        )
        stage: list[Task] = [(product.address, args, *t, i) for i, t in enumerate(tasks)]
        return together(p.before, self.launched, self.after, stage)

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
            return [(a, b, 0, every) for a, b, _, _ in cut(lines, self.block, 1, self.workers)]
        return cut(lines, self.block, every, self.workers)

    def _write_to(self) -> None:
        """Tiles are written where the results belong."""
        base, (n, h, w) = self.after.target(self.pitch)
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
        blocks = [
            PackBlock(weights=w.address + g.weight + at * w.column, columns=count)
            for g, at, _, count in self.columns
        ]
        args = self.table.add(
            PackArgs(
                target=room,
                column=w.column,
                step=w.step,
                depth=w.depth,
                width=self.block_width,
                pieces=max(len(offsets), 1),
                offsets=self.table.longs(offsets),
                blocks=self.table.add(*blocks),
            )
        )
        pieces = len(offsets) * len(self.columns)
        many = min(4 * threads(), pieces * w.depth * self.block_width // 4096)
        stage: list[Task] = [(pack.address, args, *r) for r in shared(pieces, many)]
        self.launched.beside(Launch(early=stage) if self.settled else Launch([stage]))
        return room

    def _pass(self, one: Pass, weights: int, offset: int) -> PassArgs:
        w, lanes, block = self.p.weights, width(), self._packed_block()
        step = w.step if self.p.direct else self.block_width * 4
        piece = w.depth * self.block_width * 4
        longer, length, shorter = self.tiles.strips(one.pixels)
        finish = self.after.registers
        recipe = finish.recipe if finish else None
        steps = (4, step) if self.p.image_k == 4 and not self.p.direct else None
        columns = []
        for i, (g, at, vectors, count) in enumerate(self.columns):
            ragged = count < vectors * lanes
            from_ = weights + g.weight + 4 * at if self.p.direct else weights + i * block
            columns.append(
                ColumnArgs(
                    image=g.image,
                    weight=from_ + offset * piece * (not self.p.direct),
                    out=g.out + 4 * at,
                    columns=count,
                    long_tile=tile(length, vectors, ragged, steps, recipe),
                    short_tile=tile(length - 1, vectors, ragged, steps, recipe) if shorter else 0,
                    reads=self.after.reads(self.table, g.out // 4 + at),
                )
            )
        taps, at = [], 0
        for t in one.taps:
            taps.append((TileTap(a=t.offset, b=at), len(t.pieces) * w.depth))
            at += len(t.pieces) * piece
        chunks = self._chunks(taps, step)
        ahead, jump, times, asks_for = self._ahead(one)
        results, result = self._results()
        return PassArgs(
            image=one.image,
            image_n=one.image_strides[0],
            image_row=one.image_strides[1],
            image_pixel=one.image_strides[2],
            image_k=self.p.image_k,
            out=one.out,
            out_n=one.out_strides[0],
            out_row=one.out_strides[1],
            out_pixel=one.out_strides[2],
            rows=one.rows,
            long_strips=longer,
            length=length,
            short_strips=shorter,
            columns=self.table.add(*columns),
            chunks=self.table.add(*chunks),
            chunk_count=len(chunks),
            weight_k=step,
            group=1 if self._streams() else len(chunks),
            ahead=ahead,
            jump=jump,
            times=times,
            asked=asks_for,
            results=results,
            result=result,
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
        finish, vectors = self.after.registers, self.block_width // width()
        if finish is None or not self._light() or self.p.weights.depth > _SHALLOW:
            return 0, 0
        rows = [p.address - finish.target.address for kind, p in finish.places if kind == "full"]
        return -(-vectors // asked(vectors)), rows[0] if rows else 0

    def _at_once(self) -> bool:
        """Whether tiles may take what the kernel does next: as sums of some products lie where
        what it reads may be until the others come, all must come at once then."""
        finish = self.after.registers
        depth = self.p.weights.depth * max(
            sum(len(t.pieces) for t in one.taps) for one in self.p.passes
        )
        return finish is None or not finish.reads_rows or depth <= self._most()

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

    def _chunks(self, taps: Sequence[tuple[TileTap, int]], step: int) -> list[ChunkArgs]:
        """The depth in chunks whose weights fit into the cache, from taps and how deep each is. All
        taps of a pass are equally deep, or there is one."""
        if not taps:
            return [self._chunk([TileTap(a=0, b=0)], 1, count=0)]
        depth, most = taps[0][1], self._most()
        if any(deep != depth for _, deep in taps):
            raise Unsupported("taps of different depth")
        if depth > most:
            pieces = shared(depth, -(-depth // most))
            return [
                self._chunk([t], b - a, image=a * self.p.image_k, weight=a * step)
                for t, _ in taps
                for a, b in pieces
            ]
        each = max(1, most // depth)
        return [
            self._chunk([t for t, _ in taps[i : i + each]], depth)
            for i in range(0, len(taps), each)
        ]

    def _chunk(
        self,
        taps: Sequence[TileTap],
        depth: int,
        *,
        image: int = 0,
        weight: int = 0,
        count: int | None = None,
    ) -> ChunkArgs:
        many = len(taps) if count is None else count
        return ChunkArgs(
            taps=self.table.add(*taps), count=many, image=image, weight=weight, depth=depth
        )
