"""Gradients of weights as tasks: products whose depth runs over all pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from netdsl.backends.cpu.blocking import CHUNK, Blocking, blocking, row_of
from netdsl.backends.cpu.columns import flat
from netdsl.backends.cpu.deep import (
    DeepArgs,
    DeepChunk,
    DeepColumn,
    PartsArgs,
    add_parts,
    deep_product,
    turn_parts,
)
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.launch import SHARES, Task, cut, shared, threads
from netdsl.backends.cpu.maps import Body, Launch, Memory, body_launch
from netdsl.backends.cpu.panel import PanelArgs, panel
from netdsl.backends.cpu.products import image_of
from netdsl.backends.cpu.record import Table
from netdsl.backends.cpu.room import floats, scratch
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import TileTap, tile
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import make_contiguous
from netdsl.types import Node

_MOST = 1 << 21
"""Elements of all parts together, about: what is written is read again."""
_NEAR = 256
"""Bytes between lines that stay in the first cache together as they lie."""
_ROW, _ROWS = 128, 256
"""Rows of results that lie one behind the other, and that a task computes, at most."""


@dataclass(frozen=True)
class Run:
    """Columns one behind the other: bytes from the first row's operand and the first column's, the
    first column in a line of results, and how many."""

    row: int
    column: int
    out: int
    count: int


@dataclass(frozen=True)
class Sum:
    """A sum of products over pixels: rows of one operand's channels, columns of the other's.

    `rows` says where the first lies, `strides` how many bytes apart they are along `size`, and
    `row_k` and `column_k` how far apart pixels are, of which each tap has `depth`. Results have
    lines of `line` elements; `turned` ones are lines of the weight's last axes, and not of its
    first.
    """

    rows: int
    strides: tuple[int, int, int]
    size: tuple[int, int, int]
    row_k: int
    columns: int
    column_k: int
    runs: tuple[Run, ...]
    line: int
    taps: tuple[tuple[int, int], ...]
    depth: int
    turned: bool = False

    @property
    def height(self) -> int:
        images, rows, pixels = self.size
        return images * rows * pixels

    @cached_property
    def tiles(self) -> Blocking:
        return blocking(self.size[2], self.runs[0].count, self._deep, self.strides[2])

    @property
    def _deep(self) -> int:
        return self.depth * len(self.taps)

    @property
    def cycles(self) -> float:
        """What it costs, about."""
        images, rows, pixels = self.size
        each = sum(self.tiles.cycles(pixels, r.count, self._deep) for r in self.runs)
        return images * rows * each + 2 * self.height * self.line * self.turned


def long_sum(memory: Memory, node: Node) -> bool:
    """Whether a matrix product is the gradient of a 1x1 convolution over many pixels: both of its
    operands are read along their columns."""
    x, w = (memory.operand(a).layout for a in node.args)
    if len(x.shape) != 2 or len(w.shape) != 2 or x.shape[1] < 64:
        return False
    turned = x.strides[0] == 1 and w.strides[0] == 1
    return turned and _depth(x.shape[1]) > 0


def _depth(pixels: int) -> int:
    """Steps of a tap: a divisor, few enough that their pages are known to the TLB."""
    return next((d for d in range(64, 15, -1) if pixels % d == 0), 0)


def _of_matrix(memory: Memory, node: Node) -> Sum:
    g, x = (memory.operand(a) for a in node.args)
    pixels = g.layout.shape[1]
    depth = _depth(pixels)
    sides = [
        (o.address + 4 * o.layout.offset, 4 * o.layout.strides[1], o.layout.shape[0])
        for o in (g, x)
    ]

    def by(turned: bool) -> Sum:
        (rows, row_k, height), (columns, column_k, line) = reversed(sides) if turned else sides
        row = row_of(height, _ROW, line, pixels, 4)
        return Sum(
            rows,
            (0, 4 * row, 4),
            (1, height // row, row),
            row_k,
            columns,
            column_k,
            (Run(0, 0, 0, line),),
            line,
            tuple((i * row_k, i * column_k) for i in range(0, pixels, depth)),
            depth,
            turned,
        )

    return min(by(False), by(True), key=lambda found: found.cycles)


def _of_image(memory: Memory, node: Node, before: Launch) -> Sum:
    """conv2d's: a line of results for each channel of the gradient, or for each element of a
    filter where its lines are too short for vectors."""
    a = node.attrs
    g = memory.operand(node.args[0])
    if g.layout.strides[3] != 1 and g.layout.shape[3] > 1:
        raise Unsupported("a gradient whose channels lie apart")
    (top, bottom), (left, right) = a["pad"]
    at, (sn, sh, sw) = image_of(memory, node.args[1], (top, bottom, left, right), before)
    n, oh, ow, k = g.layout.shape
    _, r, s, c = node.type.shape
    groups = a["groups"]
    each = k // groups
    image, gradient = at - top * sh - left * sw, g.address + 4 * g.layout.offset
    gn, gh, gw = (4 * t for t in g.layout.strides[:3])
    image_k = a["stride"][1] * sw
    taps = tuple(
        (i * sn + j * a["stride"][0] * sh, i * gn + j * gh) for i in range(n) for j in range(oh)
    )
    down, across = a["dilation"][0] * sh, a["dilation"][1] * sw
    # pixels of one line of a filter may lie one behind the other
    merged = groups == 1 and across == 4 * c
    pieces, length = (1, s * c) if merged else (s, c)
    line = r * s * c
    row = row_of(each, _ROW, length, ow * len(taps), 4)
    by_image = Sum(
        gradient,
        (0, 4 * row, 4),
        (1, each // row, row),
        gw,
        image,
        image_k,
        tuple(
            Run(
                4 * q * each,
                4 * q * c + i * down + j * across,
                q * each * line + (i * s + j) * c,
                length,
            )
            for q in range(groups)
            for i in range(r)
            for j in range(pieces)
        ),
        line,
        tuple((of_gradient, of_image) for of_image, of_gradient in taps),
        ow,
    )
    by_gradient = Sum(
        image,
        (0, down, 4) if merged else (down, across, 4),
        (1, r, s * c) if merged else (r, s, c),
        image_k,
        gradient,
        gw,
        tuple(Run(4 * q * c, 4 * q * each, q * each, each) for q in range(groups)),
        k,
        taps,
        ow,
        turned=True,
    )
    return min(by_image, by_gradient, key=lambda found: found.cycles)


class WeightSum:
    """Tasks for a weight's gradient: what all ways to compute it have in common."""

    def __init__(self, memory: Memory, kernel: Kernel, node: Node) -> None:
        self.memory, self.kernel, self.node = memory, kernel, node
        self.launched = Launch()
        self.table = Table(self.launched.kept)

    def _target(self) -> int:
        """Where the result is written."""
        name = self.node.name
        if name in self.kernel.outputs:
            place = self.memory.operand(name)
            if flat(place.layout, len(place.layout.shape)) != 1:
                raise Unsupported("a weight's gradient with gaps")
            return place.address + 4 * place.layout.offset
        own = floats(math.prod(self.node.type.shape))
        self.launched.kept.append(own)
        return int(own.ctypes.data)

    def _add(self, raw: int, parts: int, target: int) -> None:
        """Parts summed that lie in the weight's order."""
        size = math.prod(self.node.type.shape)
        self._share(add_parts.address, self._parts_args(raw, parts, target, 0), size)

    def _turn(self, raw: int, parts: int, target: int, columns: int) -> None:
        """Parts summed whose columns are the weight's first axis."""
        rows = math.prod(self.node.type.shape) // columns
        self._share(turn_parts.address, self._parts_args(raw, parts, target, columns), rows)

    def _parts_args(self, raw: int, parts: int, target: int, columns: int) -> int:
        size = 4 * math.prod(self.node.type.shape)
        return self.table.add(
            PartsArgs(
                parts=raw,
                count=parts,
                size=size,
                target=target,
                columns=columns,
                column=size // columns if columns else 0,
            )
        )

    def _share(self, function: int, args: int, count: int) -> None:
        many = min(4 * threads(), math.prod(self.node.type.shape) // 4096)
        self.launched.stages.append([(function, args, *r) for r in shared(count, many)])

    def _finish(self, target: int) -> None:
        """What else the kernel does."""
        kernel, memory, name = self.kernel, self.memory, self.node.name
        outputs = [o for o in kernel.outputs if o != name]
        if not outputs:
            return
        operands = {i: memory.operand(i) for i in kernel.inputs}
        own = Operand(target, make_contiguous(self.node.type.shape), "float32")
        operands[name] = memory.operand(name) if name in kernel.outputs else own
        body = Body(memory, kernel, self.node.type.shape, operands, outputs)
        self.launched.then(body_launch(memory, body, outputs))


class Wgrad(WeightSum):
    """A weight's gradient cut into tasks. Parts of the depth are summed apart where there is too
    little else to share."""

    def __init__(self, memory: Memory, kernel: Kernel, node: Node) -> None:
        super().__init__(memory, kernel, node)
        matrix = node.op == "matmul"
        self.sum = _of_matrix(memory, node) if matrix else _of_image(memory, node, self.launched)
        tiles = self.sum.tiles
        self.columns = [(run, *b) for run in self.sum.runs for b in tiles.columns(run.count)]
        self.line = max(v for _, _, v, _ in self.columns) * width() * 4
        self.near = self.sum.column_k <= _NEAR
        self.together = max(1, _ROWS // self.sum.size[2])
        self.deep = max(1, CHUNK // (self.line * self.sum.depth))

    def launch(self) -> Launch:
        found, size = self.sum, math.prod(self.node.type.shape)
        lines = found.size[0] * found.size[1]
        groups = -(-lines // self.together)
        parts = self._parts(groups, size)
        tasks = [
            (g, *some)
            for first, last, *some in cut(parts * groups, 1, len(self.columns), threads())
            for g in range(first, last)
        ]
        target = self._target()
        alone = parts == 1 and not found.turned
        apart = 0 if alone else -(-parts * size // 16) * 64 + 256
        memory = scratch(apart + len(tasks) * self._panel()[-1])
        self.launched.kept.append(memory)
        raw = memory.ctypes.data
        args = [
            self._arguments(found.taps[a:b], target if alone else raw + 4 * i * size, raw + apart)
            for i, (a, b) in enumerate(shared(len(found.taps), parts))
        ]
        rows = shared(lines, groups)
        stage: list[Task] = [
            (deep_product.address, args[g // groups], *rows[g % groups], *some, slot)
            for slot, (g, *some) in enumerate(tasks)
        ]
        self.launched.stages.append(stage)
        if found.turned:
            self._turn(raw, parts, target, found.line)
        elif not alone:
            self._add(raw, parts, target)
        self._finish(target)
        return self.launched

    def _parts(self, groups: int, size: int) -> int:
        """How many sums of some of the depth are added at last: whatever the threads."""
        chunks = -(-len(self.sum.taps) // self.deep)
        parts = 1
        while 2 * parts <= min(8, chunks) and size * parts < _MOST:
            each = groups * parts
            if each >= 2 * SHARES and each * len(self.columns) >= 8 * SHARES:
                break
            parts *= 2
        return parts

    def _panel(self) -> tuple[int, int, int]:
        """Bytes of a strip of rows that is copied, of all strips, and of a task's copies."""
        longer, length, shorter = self.sum.tiles.strips(self.sum.size[2])
        depth = self.deep * self.sum.depth
        strip = 4 * length * depth + 4 * _vectors(length) * width()
        rows = -(-self.together * (longer + shorter) * strip // 64) * 64
        return strip, rows, rows + depth * self.line + 256

    def _arguments(self, taps: tuple[tuple[int, int], ...], target: int, panels: int) -> int:
        """The arguments of the tasks of one part; see deep.py."""
        found, add = self.sum, self.table.add
        longer, length, shorter = found.tiles.strips(found.size[2])
        strip, rows, panel_size = self._panel()
        line, column_k = 4 * found.line, found.column_k if self.near else self.line
        steps = (4 * length, column_k)
        columns = [
            DeepColumn(
                rows=run.row,
                columns=found.columns + run.column + 4 * first,
                out=4 * (run.out + first),
                count=count,
                long_tile=tile(length, vectors, count < vectors * width(), steps),
                short_tile=tile(length - 1, vectors, count < vectors * width(), steps)
                if shorter
                else 0,
                copy=0 if self.near else panel(vectors),
            )
            for run, first, vectors, count in self.columns
        ]
        chunks = [
            self._chunk(taps[i : i + self.deep], length) for i in range(0, len(taps), self.deep)
        ]
        long_pieces = PanelArgs(
            depth=found.depth,
            step=found.row_k,
            pieces=longer,
            piece=4 * length,
            line=4 * length,
            strip=strip,
        )
        return add(
            DeepArgs(
                rows=found.rows,
                rows_n=found.strides[0],
                row=found.strides[1],
                lines=found.size[1],
                out=target,
                out_line=found.size[2] * line,
                out_pixel=line,
                columns=add(*columns),
                chunks=add(*chunks),
                chunk_count=len(chunks),
                long_strips=longer,
                length=length,
                short_strips=shorter,
                panels=panels,
                panel=panel_size,
                column_panel=rows,
                strip=strip,
                column_k=column_k,
                copy_rows=panel(_vectors(length)),
                long_pieces=add(long_pieces),
                short_pieces=add(replace(long_pieces, pieces=shorter, piece=4 * (length - 1))),
                column_pieces=add(
                    PanelArgs(
                        depth=found.depth,
                        step=found.column_k,
                        pieces=1,
                        piece=0,
                        line=self.line,
                        strip=0,
                    )
                ),
            )
        )

    def _chunk(self, some: Sequence[tuple[int, int]], length: int) -> DeepChunk:
        """A chunk of the depth; it has one tap where all is copied."""
        rows, columns = ([t[side] for t in some] for side in (0, 1))
        depth, taps = self.sum.depth, [TileTap(a=0, b=0)]
        if self.near:
            taps = [TileTap(a=4 * length * depth * i, b=at) for i, at in enumerate(columns)]
        return DeepChunk(
            row_places=self.table.longs(rows),
            column_places=self.table.longs(columns),
            count=len(some),
            taps=self.table.add(*taps),
            tap_count=len(taps),
            tap_depth=depth if self.near else len(some) * depth,
        )


def _vectors(count: int) -> int:
    return -(-count // width())
