"""Products of few rows with a matrix that is read once, along its rows, as it lies: fully connected
layers at small batches, which are as fast as memory is."""

from __future__ import annotations

import math
from functools import cache

from llvmlite import ir

from netdsl.backends.cpu import functions as fn
from netdsl.backends.cpu.columns import flat
from netdsl.backends.cpu.emit import F32, I32, Function, Lanes, Value, long
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.launch import Task, shared, threads
from netdsl.backends.cpu.maps import Body, Launch, Memory, body_launch
from netdsl.backends.cpu.record import Record, Table
from netdsl.backends.cpu.room import floats
from netdsl.backends.cpu.target import compiled, width
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import make_contiguous
from netdsl.types import Node


class DotsArgs(Record):
    """Rows of x, rows of weights of `depth` elements, rows of results y; bytes from row to row."""

    x: int
    x_row: int
    rows: int
    weights: int
    weight_row: int
    depth: int
    y: int
    y_row: int


_ROWS = {16: 8, 8: 4, 4: 4}
_COLUMNS = {16: 3, 8: 2, 4: 2}
"""How many sums a tile has: as many as registers hold beside what is multiplied."""
_MOST_ROWS = 32
"""With more of them, weights that are packed first pay."""


def few_rows(memory: Memory, node: Node) -> bool:
    """Whether a matrix product is one of few rows with rows of weights that lie without gaps."""
    if node.op != "matmul":
        return False
    x, w = (memory.operand(a).layout for a in node.args)
    many = math.prod(x.shape[:-1])
    dense = x.strides[-1] == 1 and w.strides[-1] == 1 and flat(x, len(x.shape) - 1) is not None
    return many <= _MOST_ROWS and len(w.shape) == 2 and dense and 16 * width() <= w.shape[1]


def dots_launch(memory: Memory, kernel: Kernel, node: Node) -> Launch:
    """The tasks of such a product, each of some columns; then what else the kernel computes."""
    x, w = (memory.operand(a) for a in node.args)
    rows, (columns, depth) = math.prod(x.layout.shape[:-1]), w.layout.shape
    launch = Launch()
    target = _target(memory, kernel, node, launch)
    out = flat(target.layout, len(target.layout.shape) - 1)
    if out is None or target.layout.strides[-1] != 1:
        raise Unsupported("a product whose columns lie apart")
    high = -(-rows // -(-rows // _ROWS[width()]))
    wide = min(_COLUMNS[width()], columns)
    row = flat(x.layout, len(x.layout.shape) - 1)
    args = Table(launch.kept).add(
        DotsArgs(
            x=x.address + 4 * x.layout.offset,
            x_row=4 * (row or 0),
            rows=rows,
            weights=w.address + 4 * w.layout.offset,
            weight_row=4 * w.layout.strides[0],
            depth=depth,
            y=target.address + 4 * target.layout.offset,
            y_row=4 * out,
        )
    )
    ranges = shared(columns, min(8 * threads(), columns // wide))
    stage: list[Task] = [(dots(high, wide), args, *r) for r in ranges]
    launch.stages.append(stage)
    outputs = [o for o in kernel.outputs if o != node.name]
    if outputs:
        operands = {i: memory.operand(i) for i in kernel.inputs} | {node.name: target}
        body = Body(memory, kernel, node.type.shape, operands, outputs)
        launch.then(body_launch(memory, body, outputs))
    return launch


def _target(memory: Memory, kernel: Kernel, node: Node, launch: Launch) -> Operand:
    """Where the product is written: where the plan has it, else memory of its own."""
    if node.name in kernel.outputs:
        return memory.operand(node.name)
    own = floats(node.type.size)
    launch.kept.append(own)
    return Operand(int(own.ctypes.data), make_contiguous(node.type.shape), "float32")


@cache
def dots(rows: int, columns: int) -> int:
    """Columns `first` to `last`, at least `columns` of them, of all rows; the last tiles lie over
    those before them; args: DotsArgs."""
    f = Function("dots")
    b = f.b
    a = f.record(DotsArgs)
    v = Lanes(f)
    whole = b.and_(a.depth, long(-v.count))
    left = b.sub(a.depth, whole)
    rest = Lanes(f)
    rest.mask = rest.first(left)
    with b.goto_entry_block():
        sums = [[b.alloca(v.floats) for _ in range(columns)] for _ in range(rows)]

    def add(lanes: Lanes, at_x: Value, at_w: Value, k: Value) -> None:
        far = b.mul(k, long(4))
        wide = [
            lanes.load(b.add(b.add(at_w, b.mul(a.weight_row, long(j))), far))
            for j in range(columns)
        ]
        for i, line in enumerate(sums):
            one = lanes.load(b.add(b.add(at_x, b.mul(a.x_row, long(i))), far))
            for total, weights in zip(line, wide, strict=True):
                b.store(fn.fma(lanes, one, weights, b.load(total, typ=v.floats)), total)

    with f.loop(f.args[1], f.args[2], long(columns)) as begin:
        column = f.smaller(begin, b.sub(f.args[2], long(columns)))
        at_w = b.add(a.weights, b.mul(column, a.weight_row))
        with f.loop(long(0), a.rows, long(rows)) as first:
            row = f.smaller(first, b.sub(a.rows, long(rows)))
            at_x = b.add(a.x, b.mul(row, a.x_row))
            for line in sums:
                for total in line:
                    b.store(v.const(0), total)
            with f.loop(long(0), whole, long(v.count)) as k:
                add(v, at_x, at_w, k)
            with b.if_then(b.icmp_signed(">", left, long(0))):
                add(rest, at_x, at_w, whole)
            for i, line in enumerate(sums):
                at = b.add(b.add(a.y, b.mul(b.add(row, long(i)), a.y_row)), b.mul(column, long(4)))
                for j, total in enumerate(line):
                    place = b.inttoptr(b.add(at, long(4 * j)), F32.as_pointer())
                    b.store(_sum(v, b.load(total, typ=v.floats)), place)
    return compiled("dots", f.text())


def _sum(v: Lanes, x: Value) -> Value:
    """Of all lanes, halves added to halves."""
    b, count = v.f.b, v.count
    blank = ir.Constant(x.type, ir.Undefined)
    while count > 1:
        count //= 2
        order = [(i + count) % v.count for i in range(v.count)]
        x = b.fadd(x, b.shuffle_vector(x, blank, ir.Constant(v.typed(I32), order)))
    return b.extract_element(x, ir.Constant(I32, 0))
