"""Convolutions by minimal filtering, cut into tasks: fewer products, and sums around them.

A kernel of 3x3 needs a quarter of the products, one of 5x5 a third. What is left is as many matrix
products as there are points, for blocks of tiles that stay near: see transforms.py and points.py.
"""

from __future__ import annotations

import math

from netdsl.backends.cpu.after import After, together
from netdsl.backends.cpu.blocking import Blocking, blockings
from netdsl.backends.cpu.launch import Task, cut, shared, threads
from netdsl.backends.cpu.maps import Launch, Memory
from netdsl.backends.cpu.points import (
    FilteredArgs,
    Room,
    SourceArgs,
    StripArgs,
    TilePair,
    filtered,
)
from netdsl.backends.cpu.products import Product
from netdsl.backends.cpu.record import Table
from netdsl.backends.cpu.room import floats, scratch
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import TileTap, asked, tile
from netdsl.backends.cpu.transforms import (
    POINTS,
    SIZE,
    FilteredColumn,
    PointsArgs,
    ResultArgs,
    WeightArgs,
    WeightBlock,
    at_all_points,
    image_at_points,
    results_from_points,
    weight_at_points,
)
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple
from netdsl.types import Node

_TILES = 64
"""Tiles of a block at most: weights come seldom for many, and the values of few stay near."""
_EACH = 4
"""What a block costs beside its tiles, as so many of them."""
_FEW = 64
"""Tiles so few that weights come to their points just before they are used: what a quarter of the
products saves is lost where four times the weights go to memory and come back."""
_DEPTH = 64
"""Depth of a chunk of such weights."""
_NEAR = 512 * 1024
"""Bytes of a block's results that other nodes take once all columns are there."""
_COLUMNS = 128
"""Columns at least of a task: the values of its tiles are computed for them."""
_PART = 4096
"""Weights that are worth a task."""
_GAIN = 0.85
"""The part of a plain convolution's cycles that this way must not take more of."""
_SHARE = 1.1
"""What products here take of the cycles of their multiplications."""
_TURN, _WEIGH = 170, 24
"""Cycles for a vector of channels of a tile, there and back each, and for a weight."""
_START = 1_000_000
"""Cycles a step that are worth a second or two for more functions to compile, once."""


def pays(node: Node, kernel: IntTuple, size: IntTuple, channels: IntTuple, beside: int = 0) -> bool:
    """Whether a convolution, or a gradient of one, can be computed this way, and faster: from
    images, rows and pixels of its results, channels before and behind it, and cycles `beside`."""
    a, (r, s) = node.attrs, kernel
    plain = a["stride"] == a["dilation"] == (1, 1) and a["groups"] == 1
    if r != s or r not in (3, 5) or not plain:
        return False
    (n, height, wide), lanes = size, width()
    m = SIZE + 1 - r
    tiles = n * -(-height // m) * -(-wide // m)
    weights, vectors = math.prod(channels), sum(-(-c // lanes) for c in channels)
    each = POINTS * weights / (2 * lanes) * _SHARE + _TURN * vectors
    plainly = n * height * wide * r * r * weights / (2 * lanes)
    return tiles * each + _WEIGH * weights + _START + beside <= _GAIN * plainly


def worth(memory: Memory, node: Node, found: Product) -> bool:
    """As `pays`, for a convolution or its gradient for the image."""
    w = found.weights
    kernel = memory.operand(node.args[1]).layout.shape[1:3]
    *size, columns = node.type.shape
    lies_well = 4 in (w.column, w.step)
    return lies_well and pays(node, kernel, tuple(size), (w.depth, columns))


class Filtered:
    """The tasks of such a convolution and what happens to its results."""

    def __init__(
        self, memory: Memory, kernel: Kernel, node: Node, found: Product, domain: IntTuple
    ) -> None:
        self.memory, self.node, self.p, self.domain = memory, node, found, domain
        self.workers = memory.workers(kernel)
        self.launched = Launch(filtered=True)
        self.table = Table(self.launched.kept)
        self.r = memory.operand(node.args[1]).layout.shape[1]
        self.m = SIZE + 1 - self.r
        self.depth, self.settled = found.weights.depth, memory.settled(node.args[1])
        self.lines, self.across = -(-domain[1] // self.m), -(-domain[2] // self.m)
        self.every = domain[0] * self.lines
        self.passing = not self.settled and self.every * self.across <= _FEW
        self.tile = -(-self.depth // width()) * width() * 4
        self.tiles = self._tiles_of()
        self.block = self._block()
        self.columns = self.tiles.columns(domain[3])
        self.block_width = max(v for _, v, _ in self.columns) * width()
        self.chunks = -(-self.depth // _DEPTH) if self.passing else 1
        self.after = After(memory, kernel, node, domain)
        results = 4 * self.block * self.across * self.m**2 * domain[3]
        self.span = len(self.columns) if results <= _NEAR else 1
        self.whole = len(self.columns) == 1
        self.pitch = domain[3] if self.span >= len(self.columns) else self.block_width

    def _block(self) -> int:
        """Lines of a block: those that fill strips and keep all workers at work."""

        def time(lines: int) -> int:
            strips = -(-lines * self.across // self.tiles.rows)
            return -(-self.every // (lines * self.workers)) * (strips * self.tiles.rows + _EACH)

        some = range(1, max(1, min(self.every, _TILES // self.across)) + 1)
        return min(some, key=lambda lines: (time(lines), -lines))

    def _tiles_of(self) -> Blocking:
        """The widest there are: values come from afar once for each column block."""
        wide = -(-self.domain[3] // width())
        return next(b for b in blockings(self.tile) if b.vectors <= wide)

    def _cut(self) -> list[tuple[int, int, int, int]]:
        """Blocks and column blocks of each task."""
        every = len(self.columns)
        each = 1 if self.passing else max(1, _COLUMNS // self.block_width)
        each = every if self.span > 1 else each
        parts = shared(every, -(-every // each))
        found = cut(-(-self.every // self.block), 1, len(parts), self.workers)
        return [(a, b, parts[c][0], parts[d - 1][1]) for a, b, c, d in found]

    def launch(self) -> Launch:
        tasks = self._cut()
        size = self.after.local_bytes(self.block * self.m, self.pitch)
        local = len(tasks) * size
        tiles = self.block * self.across
        values, products = (at_all_points(tiles * n) for n in (self.tile, 4 * self.block_width))
        chunk = POINTS * -(-self.depth // self.chunks) * 4 * self.block_width
        room = values + products + (chunk + 256 if self.passing else 0)
        packed = 0 if self.settled or self.passing else self._packed()
        memory = scratch(local + threads() * room + packed)
        self.launched.kept.append(memory)
        at = int(memory.ctypes.data)
        rooms = rooms_of(self.table, at + local, room)
        weights = 0 if self.passing else self._pack(at + local + threads() * room)
        out, (n, h, w) = self.after.target(self.pitch)
        pitch = 0 if self.span == len(self.columns) else self.pitch
        follower = self.after.follower(len(tasks), (at, size), pitch, self.whole)
        last = self.every % self.block or self.block
        whole, rest = (self.tiles.strips(lines * self.across) for lines in (self.block, last))
        point, out_point = values // POINTS, products // POINTS
        columns = self._columns(weights, (whole, rest))
        line = 4 * self.block_width
        write = ResultArgs(
            row=h,
            pixel=w,
            tile=line,
            point=out_point,
            across=self.across,
            wide=self.domain[2],
            columns=columns,
        )
        args = self.table.add(
            FilteredArgs(
                lines=self.lines,
                across=self.across,
                block=self.block,
                span=self.span,
                scale=self.m,
                height=self.domain[1],
                follower=self.table.add(follower),
                rooms=rooms,
                every=self.every,
                products=values,
                source=self._source(point),
                tile=self.tile,
                point=point,
                out=out,
                out_n=n,
                out_row=self.m * h,
                write_args=self.table.add(write),
                out_tile=line,
                columns=columns,
                out_point=out_point,
                points=POINTS,
                depth=self.depth,
                weight_k=line,
                taps=self.table.add(TileTap(a=0, b=0)),
                asked=64 * asked(self.block_width // width()),
                weight_at_points=self._weigh if self.passing else 0,
                weight_args=self._weights() if self.passing else 0,
                weights=values + products,
                chunks=self.chunks,
                chunk=chunk // POINTS,
                whole=strip_args(self.table, whole),
                rest=strip_args(self.table, rest),
            )
        )
        stage: list[Task] = [(filtered.address, args, *t, i) for i, t in enumerate(tasks)]
        return together(self.p.before, self.launched, self.after, stage)

    def _source(self, point: int) -> int:
        """The pixels that are read, from the first one on."""
        one, reach = self.p.passes[0], self.r - 1
        sn, sh, sw = one.image_strides
        return self.table.add(
            SourceArgs(
                pixels=one.image + min(t.offset for t in one.taps),
                image=sn,
                row=self.m * sh,
                line=self.across * self.tile,
                function=image_at_points(self.r),
                args=self.table.add(
                    PointsArgs(row=sh, pixel=sw, channels=self.tile, tile=self.tile, point=point)
                ),
                across=self.across,
                high=self.domain[1] + reach,
                scale=self.m,
                wide=self.domain[2] + reach,
            )
        )

    # weights

    def _piece(self) -> int:
        """Bytes of a column block's weights at a point."""
        return self.depth * self.block_width * 4

    def _packed(self) -> int:
        return len(self.columns) * POINTS * self._piece() + 256

    def _pack(self, room: int) -> int:
        """Where the weights begin at their points: in their own memory where they are settled."""
        if self.settled:
            packed = floats(self._packed() // 4)
            self.launched.kept.append(packed)
            room = int(packed.ctypes.data)
        parts = max(1, min(self.depth, self.depth * self.block_width // _PART))
        args, many = self._weights(parts), parts * len(self.columns)
        function = self._weigh
        stage: list[Task] = [(function, args, *r, room) for r in shared(many, 4 * threads())]
        self.launched.beside(Launch(early=stage) if self.settled else Launch([stage]))
        return room

    @property
    def _weigh(self) -> int:
        return weight_at_points(self.r, self.p.weights.column == 4)

    def _weights(self, parts: int = 0) -> int:
        """What `weight_at_points` is given: all of a block lies together, or a chunk of it."""
        w, one = self.p.weights, self.p.passes[0]
        taps = [p for t in sorted(one.taps, key=lambda t: t.offset) for p in t.pieces]
        blocks = [
            WeightBlock(weights=w.address + at * w.column, columns=count)
            for at, _, count in self.columns
        ]
        deep = self.depth if parts else -(-self.depth // self.chunks)
        return self.table.add(
            WeightArgs(
                block=POINTS * self._piece() if parts else 0,
                point=deep * 4 * self.block_width,
                column=w.column,
                step=w.step,
                depth=self.depth,
                line=4 * self.block_width,
                parts=parts or self.chunks,
                alone=not parts,
                taps=self.table.longs(taps),
                blocks=self.table.add(*blocks),
            )
        )

    def _columns(self, weights: int, strips: tuple[Strips, Strips]) -> int:
        lanes, found = width(), []
        finish = self.after.registers
        recipe = finish.recipe if finish else None
        steps = (4, 4 * self.block_width)
        for i, (at, vectors, count) in enumerate(self.columns):
            tiles = [
                TilePair(
                    long_tile=tile(length, vectors, False, steps),
                    short_tile=tile(length - 1, vectors, False, steps) if shorter else 0,
                )
                for _, length, shorter in strips
            ]
            found.append(
                FilteredColumn(
                    weight=weights + i * POINTS * self._piece(),
                    write=results_from_points(self.r, count < vectors * lanes, recipe),
                    out=4 * at,
                    columns=count,
                    tiles=self.table.add(*tiles),
                    reads=self.after.reads(self.table, at),
                )
            )
        return self.table.add(*found)


Strips = tuple[int, int, int]


def strip_args(table: Table, strips: Strips) -> int:
    """Strips as loops read them."""
    longer, length, shorter = strips
    return table.add(StripArgs(long_strips=longer, length=length, short_strips=shorter))


def rooms_of(table: Table, address: int, nbytes: int) -> int:
    """A room for each thread, with a lock on a cache line of its own."""
    locks = table.longs([0] * (8 * threads()))
    rooms = (Room(lock=locks + 64 * i, address=address + i * nbytes) for i in range(threads()))
    return table.add(*rooms)
