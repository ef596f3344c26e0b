"""Gradients of weights by minimal filtering: r x r sums over pixels from few products a tile.

What is true of a convolution is so of its weight's gradient, where tiles of m x m pixels of the
result's gradient slide over the image's: the points are the same, the products are added over all
tiles, and r x r sums come of them once. See transforms.py and points.py.
"""

from __future__ import annotations

from netdsl.backends.cpu.blocking import blocking
from netdsl.backends.cpu.expression import Unsupported
from netdsl.backends.cpu.launch import SHARES, Task, shared, threads
from netdsl.backends.cpu.maps import Launch, Memory
from netdsl.backends.cpu.points import (
    ChannelGroup,
    FilteredSumArgs,
    SourceArgs,
    SumColumn,
    filtered_sums,
)
from netdsl.backends.cpu.products import image_of
from netdsl.backends.cpu.room import scratch
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import TileTap, tile
from netdsl.backends.cpu.transforms import (
    POINTS,
    SIZE,
    PointsArgs,
    WeightSumArgs,
    at_all_points,
    gradient_at_points,
    image_at_points,
    weight_from_points,
)
from netdsl.backends.cpu.wgrad import WeightSum
from netdsl.backends.cpu.winograd import pays, rooms_of, strip_args
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple
from netdsl.types import Node

_TILES = 64
"""Tiles of a block, about."""
_TURN, _ADD = 0.15, 0.5
"""What the gradient's values cost, which every task computes, beside a column block's products;
and what adding a part costs beside a block of tiles."""
_MOST = 64 << 20
"""Bytes of all parts of the sums together, about."""
_LARGE, _AFAR = 1 << 17, 100
"""Sums for more weights than these go to memory, which takes cycles for each of them."""
_PARTS = 8
"""Parts at most."""


def sums_worth(memory: Memory, node: Node) -> bool:
    """Whether a weight's gradient can be computed this way, and faster."""
    k, r, s, c = node.type.shape
    size = memory.operand(node.args[0]).layout.shape[:3]
    return pays(node, (r, s), size, (c, k), _AFAR * max(0, c * k - _LARGE))


class FilteredWgrad(WeightSum):
    """A weight's gradient cut into parts of the tiles, and groups of the image's channels."""

    def __init__(self, memory: Memory, kernel: Kernel, node: Node) -> None:
        super().__init__(memory, kernel, node)
        self.gradient = memory.operand(node.args[0])
        if self.gradient.layout.strides[3] != 1:
            raise Unsupported("a gradient whose channels lie apart")
        self.k, self.r, _, self.c = node.type.shape
        n, self.height, self.wide, _ = self.gradient.layout.shape
        self.m = SIZE + 1 - self.r
        self.lines, self.across = -(-self.height // self.m), -(-self.wide // self.m)
        self.every = n * self.lines
        self.block = min(self.every, max(1, round(_TILES / self.across)))
        self.blocks = -(-self.every // self.block)
        self.tile, self.gradient_tile = _odd(self.c), _odd(self.k)
        depth = self.block * self.across
        self.tiles = blocking(self.k, self.c, depth, 4)
        self.columns = self.tiles.columns(self.c)
        last, vectors, _ = self.columns[-1]
        self.line = 4 * (last + vectors * width())
        self.parts, groups = self._cut()
        self.groups = shared(len(self.columns), groups)

    def _cut(self) -> tuple[int, int]:
        """How many sums of some tiles are added at last, whatever the threads, and groups of column
        blocks: those that keep all threads at work."""
        every, size = len(self.columns), POINTS * self.k * self.line

        def time(way: tuple[int, int], workers: int) -> float:
            parts, groups = way
            tasks = -(-parts * groups // workers)
            each = -(-self.blocks // parts) * (-(-every // groups) + _TURN)
            return tasks * each + parts * every * _ADD / workers

        most = max(1, min(_PARTS, self.blocks, _MOST // size))
        ways = [(p, g) for p in range(1, most + 1) for g in range(1, every + 1)]
        parts, _ = min(ways, key=lambda way: time(way, SHARES))
        return min((w for w in ways if w[0] == parts), key=lambda way: time(way, threads()))

    def launch(self) -> Launch:
        target, size = self._target(), POINTS * self.k * self.line
        values = at_all_points(self.block * self.across * self.tile)
        room = values + at_all_points(self.block * self.across * self.gradient_tile)
        memory = scratch(self.parts * size + threads() * room)
        self.launched.kept.append(memory)
        self.launched.filtered = True
        raw = int(memory.ctypes.data)
        rooms = rooms_of(self.table, raw + self.parts * size, room)
        args = self._arguments(raw, size, rooms, values)
        stage: list[Task] = [
            (filtered_sums.address, args, *r, part, group)
            for part, r in enumerate(shared(self.blocks, self.parts))
            for group in range(len(self.groups))
        ]
        self.launched.stages.append(stage)
        tap = 4 * self.c
        results = self.table.add(
            WeightSumArgs(
                sums=raw,
                part=size,
                parts=self.parts,
                line=self.line,
                point=size // POINTS,
                target=target,
                target_line=self.r**2 * tap,
                tap=tap,
                channels=self.c,
            )
        )
        self._share(weight_from_points(self.r), results, self.k)
        self._finish(target)
        return self.launched

    def _arguments(self, sums: int, nbytes: int, rooms: int, values: int) -> int:
        add, point = self.table.add, values // POINTS
        gradient_point = at_all_points(self.block * self.across * self.gradient_tile) // POINTS
        image = self._image()
        groups = [
            ChannelGroup(source=self._image_source(image, point, a, b), first=a, last=b)
            for a, b in self.groups
        ]
        return add(
            FilteredSumArgs(
                lines=self.lines,
                across=self.across,
                block=self.block,
                every=self.every,
                rooms=rooms,
                gradients=values,
                tile=self.tile,
                point=point,
                source=self._gradient_source(gradient_point),
                gradient_tile=self.gradient_tile,
                gradient_point=gradient_point,
                groups=add(*groups),
                columns=add(*self._sum_columns()),
                sums=sums,
                part=nbytes,
                line=self.line,
                sum_point=nbytes // POINTS,
                points=POINTS,
                taps=add(TileTap(a=0, b=0)),
                strips=strip_args(self.table, self.tiles.strips(self.k)),
            )
        )

    def _image(self) -> tuple[int, IntTuple]:
        """Where the image with its padding begins, and bytes to the next image, row and pixel."""
        (top, bottom), (left, right) = self.node.attrs["pad"]
        image, strides = image_of(
            self.memory, self.node.args[1], (top, bottom, left, right), self.launched
        )
        return image - top * strides[1] - left * strides[2], strides

    def _image_source(self, image: tuple[int, IntTuple], point: int, a: int, b: int) -> int:
        """The pixels of the channels of column blocks `a` to `b`."""
        (corner, strides), reach = image, self.r - 1
        first, (last, vectors, _) = self.columns[a][0], self.columns[b - 1]
        channels = 4 * (last - first + vectors * width())
        function = image_at_points(self.r)
        _, h, w = strides
        points = PointsArgs(row=h, pixel=w, channels=channels, tile=self.tile, point=point)
        size = self.height + reach, self.wide + reach
        return self._source(corner + 4 * first, strides, function, points, size)

    def _gradient_source(self, point: int) -> int:
        layout = self.gradient.layout
        n, h, w = (4 * t for t in layout.strides[:3])
        channels = -(-self.k // width()) * width() * 4
        points = PointsArgs(row=h, pixel=w, channels=channels, tile=self.gradient_tile, point=point)
        address, function = self.gradient.address + 4 * layout.offset, gradient_at_points(self.r)
        return self._source(address, (n, h, w), function, points, (self.height, self.wide))

    def _source(
        self, pixels: int, strides: IntTuple, function: int, points: PointsArgs, size: IntTuple
    ) -> int:
        return self.table.add(
            SourceArgs(
                pixels=pixels,
                image=strides[0],
                row=self.m * strides[1],
                line=self.across * points.tile,
                function=function,
                args=self.table.add(points),
                across=self.across,
                high=size[0],
                scale=self.m,
                wide=size[1],
            )
        )

    def _sum_columns(self) -> list[SumColumn]:
        _, length, shorter = self.tiles.strips(self.k)
        steps, found = (self.gradient_tile, self.tile), []
        for i, (at, vectors, _) in enumerate(self.columns):
            begin = next(self.columns[a][0] for a, b in self.groups if a <= i < b)
            found.append(
                SumColumn(
                    image=4 * (at - begin),
                    out=4 * at,
                    long_tile=tile(length, vectors, False, steps),
                    short_tile=tile(length - 1, vectors, False, steps) if shorter else 0,
                )
            )
        return found


def _odd(channels: int) -> int:
    """Bytes of a tile's values at a point: an odd number of cache lines, so that those of many
    tiles do not share sets."""
    lines = -(-(-(-channels // width()) * width() * 4) // 64)
    return 64 * (lines + 1 - lines % 2)
