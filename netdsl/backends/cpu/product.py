"""The loops around micro-kernels: blocks of rows, blocks of columns, depth in chunks, then the
kernel's elementwise nodes on what is still in cache. And the packing of weights."""

from __future__ import annotations

from netdsl.backends.cpu.loops import inlined, loop
from netdsl.backends.cpu.memory import call_task, call_tile, float_at, long_at, put_float

# the head of the arguments, then one record a pass
HEAD = (
    *("passes", "lines", "block", "span", "scale", "height"),
    *("function", "rows", "unit", "local", "size"),
)
PASS = (
    "image",
    "image_n",
    "image_row",
    "image_pixel",
    "image_k",
    "out",
    "out_n",
    "out_row",
    "out_pixel",
    "rows",
    "long_strips",
    "long",
    "short_strips",
    "columns",
    "chunks",
    "chunk_count",
    "weight_k",
    "group",
    "ahead",
    "jump",
    "times",
    "lines",
    "results",
    "result",
)
# `lines`: rows of pixels of an image, `block` of them at a time, beside `span` column blocks;
# `group`: how many chunks a column block goes through before the next one; `ahead`: bytes from
# pixel to pixel where a tile asks for the next ones, 0 where they are near; `jump` and `times` are
# those of tile.py, as are `reads` of a column block; `lines` of a pass: bytes that a tile asks
# for at a time; `results`: how often it asks for what lies where the next one's results will, or
# `result` bytes from there
COLUMN = ("image", "weight", "out", "columns", "long_tile", "short_tile", "reads")
CHUNK = ("taps", "count", "image", "weight", "depth")


@inlined
def _chunk(one, column, now, line0, line1, lines, out, asks):  # type: ignore[no-untyped-def]
    """Rows of pixels `line0` to `line1` times a chunk of a column block. Its tiles ask for what
    comes next: pixels, what lies where results will, or weights until they are all there."""
    chunk = long_at(one + 112) + now * 40
    taps, count, depth = long_at(chunk), long_at(chunk + 8), long_at(chunk + 32)
    image = long_at(one) + long_at(column) + long_at(chunk + 16)
    image_n, image_row, image_pixel = long_at(one + 8), long_at(one + 16), long_at(one + 24)
    image_k, out_pixel, weight_k = long_at(one + 32), long_at(one + 64), long_at(one + 128)
    long_strips, length, short_strips = long_at(one + 80), long_at(one + 88), long_at(one + 96)
    ahead, jump, times = long_at(one + 144), long_at(one + 152), long_at(one + 160)
    asked, width = long_at(one + 168), long_at(column + 24)
    reads = long_at(column + 48) if now + 1 == long_at(one + 120) else 0
    weights = long_at(column + 8) + long_at(chunk + 24)
    size = count * depth * weight_k
    then, share = weights + size, count * depth * (asked // 4)
    last = then + size
    results, far = long_at(one + 176), long_at(one + 184)
    for at in range(line0, line1):
        n, r = at // lines, at % lines
        if r >= long_at(one + 72):
            continue
        a = image + n * image_n + r * image_row
        c = out + n * long_at(one + 48) + r * long_at(one + 56)
        for s in range(long_strips + short_strips):
            is_long = s < long_strips
            if asks:
                next_at, next_jump, next_times = a + length * ahead, jump, times
            elif results != 0:
                next_at, next_jump = c + length * out_pixel + far, out_pixel - asked * (results - 1)
                next_times = results
            else:
                next_at, next_jump, next_times = then, asked, int(then < last)
            call_tile(
                long_at(column + (32 if is_long else 40)),
                a, image_pixel, image_k, weights, weight_k, c, out_pixel,
                taps, count, depth, now, width,
                next_at, next_jump, next_times, reads,
            )  # fmt: skip
            then += share
            step = length if is_long else length - 1
            a += step * image_pixel
            c += step * out_pixel


@inlined
def follow(args, low, high, begin, end, slot):  # type: ignore[no-untyped-def]
    """What the kernel does next with rows of pixels `low` to `high` of columns `begin` to `end`, if
    it does anything."""
    function, rows, unit = long_at(args + 48), long_at(args + 56), long_at(args + 64)
    if function != 0:
        if unit < 0:
            begin, end = 0, -unit
        each = max(unit, 1)
        call_task(function, rows, low * each, high * each, begin, end, slot)


@loop
def product(args, first, last, column0, column1, slot):  # type: ignore[no-untyped-def]
    """Rows of pixels `first` to `last` of all images, of column blocks `column0` to `column1`."""
    passes, lines, block = long_at(args), long_at(args + 8), long_at(args + 16)
    span, scale, height = long_at(args + 24), long_at(args + 32), long_at(args + 40)
    local = long_at(args + 72)
    fresh = True
    for line0 in range(first, last, block):
        line1 = min(line0 + block, last)
        n0, r0 = line0 // lines, line0 % lines
        n1, r1 = (line1 - 1) // lines, (line1 - 1) % lines
        low, high = n0 * height + r0 * scale, n1 * height + min(r1 * scale + scale, height)
        for span0 in range(column0, column1, span):
            span1 = min(span0 + span, column1)
            begin, end = 0, 0
            for p in range(passes):
                one = args + 88 + p * 192
                out, columns = long_at(one + 40), long_at(one + 104)
                begin = long_at(columns + span0 * 56 + 16) // 4
                if local != 0:
                    out += local + slot * long_at(args + 80) - 4 * begin
                    out -= n0 * long_at(one + 48) + r0 * long_at(one + 56)
                chunks, group = long_at(one + 120), long_at(one + 136)
                for ch in range(0, chunks, group):
                    for cb in range(span0, span1):
                        column = columns + cb * 56
                        here = out + long_at(column + 16)
                        end = long_at(column + 16) // 4 + long_at(column + 24)
                        asks = long_at(one + 144) != 0 and cb == column0
                        for now in range(ch, min(ch + group, chunks)):
                            _chunk(one, column, now, line0, line1, lines, here, asks)
            follow(args, low, high, begin, end, ~slot if fresh else slot)
            fresh = False


@loop
def pack(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Weights of pieces `first` to `last` (block by block) as the micro-kernel reads them.

    args: target, bytes from column to column and from k to k, depth and width of a piece, pieces
    of a block, the table of pieces (where each begins in a block), the table of blocks (where
    each begins, and its columns)
    """
    target, column, step = long_at(args), long_at(args + 8), long_at(args + 16)
    depth, width = long_at(args + 24), long_at(args + 32)
    pieces, offsets, blocks = long_at(args + 40), long_at(args + 48), long_at(args + 56)
    for i in range(first, last):
        block = blocks + (i // pieces) * 16
        source = long_at(block) + long_at(offsets + (i % pieces) * 8)
        columns = long_at(block + 8)
        to = target + i * depth * width * 4
        if column == 4:
            for k in range(depth):
                for j in range(columns):
                    put_float(to + (k * width + j) * 4, float_at(source + k * step + j * 4))
        else:
            for k0 in range(0, depth, 16):
                for j in range(columns):
                    for k in range(k0, min(depth, k0 + 16)):
                        value = float_at(source + k * step + j * column)
                        put_float(to + (k * width + j) * 4, value)
