"""Convolutions by minimal filtering, cut into tasks: fewer products, and sums around them.

A kernel of 3x3 needs a quarter of the products, one of 5x5 a third. What is left is as many matrix
products as there are points, for blocks of tiles that stay near: see transforms.py and points.py.
"""

from __future__ import annotations

from netdsl.backends.cpu.after import After, together
from netdsl.backends.cpu.blocking import Blocking, blocking
from netdsl.backends.cpu.columns import Table
from netdsl.backends.cpu.launch import Task, cut, shared, threads
from netdsl.backends.cpu.maps import Launch, Memory
from netdsl.backends.cpu.products import Product
from netdsl.backends.cpu.room import floats, scratch
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import asked, tile
from netdsl.backends.cpu.transforms import (
    SIZE,
    image_at_points,
    results_from_points,
    weight_at_points,
)
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Ints
from netdsl.types import Node

_POINTS = SIZE * SIZE
_TILES = 56
"""Tiles of a block, about: so many that weights come seldom, so few that their values stay near."""
_NEAR = 512 * 1024
"""Bytes of a block's results that other nodes take once all columns are there."""
_COLUMNS = 128
"""Columns at least of a task: the values of its tiles are computed for them."""
_PART = 4096
"""Weights that are worth a task."""
_GAIN = 0.85
"""The part of a plain convolution's cycles that this way must not take more of."""
_TURN, _WEIGH = 170, 20
"""Cycles for a vector of channels of a tile, there and back each, and for a weight."""


def worth(memory: Memory, node: Node, found: Product) -> bool:
    """Whether a convolution or its gradient for the image can be computed this way, and faster."""
    a = node.attrs
    r = memory.operand(node.args[1]).layout.shape[1]
    square = memory.operand(node.args[1]).layout.shape[1:3] in ((3, 3), (5, 5))
    plain = a["stride"] == a["dilation"] == (1, 1) and a["groups"] == 1
    if not (square and plain):
        return False
    n, height, wide, columns = node.type.shape
    depth, lanes = found.weights.depth, width()
    m = SIZE + 1 - r
    tiles = n * -(-height // m) * -(-wide // m)
    channels = -(-depth // lanes) + -(-columns // lanes)
    cycles = tiles * (_POINTS * depth * columns / (2 * lanes) * 1.1 + _TURN * channels)
    if not memory.settled(node.args[1]):
        cycles += _WEIGH * depth * columns
    return cycles <= _GAIN * n * height * wide * r * r * depth * columns / (2 * lanes)


def filtered_launch(
    memory: Memory, kernel: Kernel, node: Node, found: Product, domain: Ints
) -> Launch:
    """The tasks of such a convolution and what happens to its results."""
    return _Filtered(memory, kernel, node, found, domain).launch()


class _Filtered:
    def __init__(
        self, memory: Memory, kernel: Kernel, node: Node, found: Product, domain: Ints
    ) -> None:
        self.memory, self.node, self.p, self.domain = memory, node, found, domain
        self.launched = Launch()
        self.table = Table(self.launched.kept)
        self.r = memory.operand(node.args[1]).layout.shape[1]
        self.m = SIZE + 1 - self.r
        self.depth, self.settled = found.weights.depth, memory.settled(node.args[1])
        self.lines, self.across = -(-domain[1] // self.m), -(-domain[2] // self.m)
        self.every = domain[0] * self.lines
        self.block = self._block()
        self.tile = -(-self.depth // width()) * width() * 4
        self.tiles = self._tiles_of(self.block)
        self.columns = self.tiles.columns(domain[3])
        self.block_width = max(v for _, v, _ in self.columns) * width()
        self.after = After(memory, kernel, node, domain)
        results = 4 * self.block * self.across * self.m**2 * domain[3]
        self.span = len(self.columns) if results <= _NEAR else 1
        self.whole = len(self.columns) == 1
        self.pitch = domain[3] if self.span >= len(self.columns) else self.block_width

    def _block(self) -> int:
        """Lines of a block: blocks are about equal, and as many for each thread."""
        most = max(1, round(_TILES / self.across))
        blocks = -(-self.every // most)
        if blocks > 1:
            blocks = -(-blocks // threads()) * threads()
        return -(-self.every // blocks)

    def _tiles_of(self, block: int) -> Blocking:
        return blocking(block * self.across, self.domain[3], self.depth, self.tile)

    def _cut(self) -> list[tuple[int, int, int, int]]:
        """Blocks and column blocks of each task."""
        each = max(1, _COLUMNS // self.block_width)
        every = len(self.columns)
        if self.whole or self.span > 1:
            each = every
        parts = shared(every, -(-every // each))
        found = cut(-(-self.every // self.block), 1, len(parts))
        return [(a, b, parts[c][0], parts[d - 1][1]) for a, b, c, d in found]

    def launch(self) -> Launch:
        tasks = self._cut()
        size = self.after.local_bytes(self.block * self.m, self.pitch)
        local = len(tasks) * size
        values, products = self._room()
        room = -(-(values + products) // 64) * 64
        passing = 0 if self.settled else self._packed()
        memory = scratch(local + threads() * room + passing)
        self.launched.kept.append(memory)
        at = int(memory.ctypes.data)
        rooms = [v for i in range(threads()) for v in (0, at + local + i * room)]
        weights = self._weigh(at + local + threads() * room)
        out, (n, h, w) = self.after.target(self.pitch)
        pitch = 0 if self.span == len(self.columns) else self.pitch
        calls = self.after.calls(len(tasks), (at, size), pitch, self.whole)
        one = self.p.passes[0]
        sn, sh, sw = one.image_strides
        last = self.every % self.block or self.block
        strips = [v for lines in (self.block, last) for v in self.tiles.strips(lines * self.across)]
        point, out_point = values // _POINTS, products // _POINTS
        args = self.table.add(
            *(self.lines, self.across, self.block, self.span, self.m, self.domain[1]),
            *calls,
            *(self.table.add(*rooms), self.every, values),
            *(self._corner(), sn, self.m * sh),
            *(self.domain[1] + self.r - 1, self.domain[2] + self.r - 1),
            *(image_at_points(self.r), self.table.add(sh, sw, self.tile, self.tile, point)),
            *(self.tile, point, out, n, self.m * h),
            self.table.add(h, w, 4 * self.block_width, out_point, self.across, self.domain[2]),
            4 * self.block_width,
            self._columns(weights, (strips[:3], strips[3:])),
            *(out_point, _POINTS, self.depth, 4 * self.block_width, self.table.add(0, 0)),
            64 * asked(self.block_width // width()),
            *strips,
        )
        from netdsl.backends.cpu.points import filtered

        stage: list[Task] = [(filtered.address, args, *t, i) for i, t in enumerate(tasks)]
        return together(self.p.before, self.launched, self.after, stage)

    def _corner(self) -> int:
        """The first pixel that is read."""
        one = self.p.passes[0]
        return one.image + min(t.offset for t in one.taps)

    def _room(self) -> tuple[int, int]:
        """Bytes of a block's values and of its products. As all points are written side by side,
        they must not share sets of the cache."""

        def of(line: int) -> int:
            lines = self.block * self.across * line // 64
            return _POINTS * 64 * (lines + 1 - lines % 2)

        return of(self.tile), of(4 * self.block_width)

    # weights

    def _piece(self) -> int:
        """Bytes of a column block's weights at a point."""
        return self.depth * self.block_width * 4

    def _packed(self) -> int:
        return len(self.columns) * _POINTS * self._piece() + 256

    def _weigh(self, room: int) -> int:
        """Where the weights begin, as values: in memory of their own where they are settled."""
        w, one = self.p.weights, self.p.passes[0]
        if self.settled:
            packed = floats(self._packed() // 4)
            self.launched.kept.append(packed)
            room = int(packed.ctypes.data)
        taps = [p for t in sorted(one.taps, key=lambda t: t.offset) for p in t.pieces]
        blocks = [v for at, _, count in self.columns for v in (w.address + at * w.column, count)]
        parts = max(1, min(self.depth, self.depth * self.block_width // _PART))
        args = self.table.add(
            *(room, _POINTS * self._piece(), self._piece()),
            *(w.column, w.step, self.depth, 4 * self.block_width, parts),
            *(self.table.add(*taps), self.table.add(*blocks)),
        )
        many = parts * len(self.columns)
        function = weight_at_points(self.r, w.column == 4)
        stage: list[Task] = [(function, args, *r) for r in shared(many, 4 * threads())]
        self.launched.beside(Launch(early=stage) if self.settled else Launch([stage]))
        return room

    def _columns(self, weights: int, strips: tuple[list[int], list[int]]) -> int:
        lanes, found = width(), []
        finish = self.after.registers
        recipe = finish.recipe if finish else None
        steps = (4, 4 * self.block_width)
        for i, (at, vectors, count) in enumerate(self.columns):
            tiles = [
                v
                for _, length, shorter in strips
                for v in (
                    tile(length, vectors, False, steps),
                    tile(length - 1, vectors, False, steps) if shorter else 0,
                )
            ]
            found += [
                weights + i * _POINTS * self._piece(),
                results_from_points(self.r, count < vectors * lanes, recipe),
                4 * at,
                count,
                self.table.add(*tiles),
                0,
                self.table.add(*finish.addresses(at), 0) if finish else 0,
            ]
        return self.table.add(*found)
