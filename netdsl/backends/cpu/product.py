"""The loops around micro-kernels: blocks of rows, blocks of columns, depth in chunks, then the
kernel's elementwise nodes on the block while it is in cache. And the packing of weights."""

from __future__ import annotations

from netdsl.backends.cpu.memory import call_task, call_tile, float_at, long_at, put_float
from netdsl.backends.cpu.tasks import task

# the head of the arguments, then one record a pass
HEAD = ("passes", "function", "rows", "unit", "scale", "height", "blocks", "block", "local", "size")
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
    "column_count",
    "chunks",
    "chunk_count",
    "weight_k",
    "group",
    "ahead",
    "jump",
    "times",
    "lines",
)
# `group`: how many chunks a column block goes through before the next one; `ahead`: bytes from
# pixel to pixel where a tile asks for the next ones, 0 where they are near; `jump` and `times` are
# those of tile.py; `lines`: bytes that a tile asks for at a time
COLUMN = ("image", "weight", "out", "columns", "long_tile", "short_tile")
CHUNK = ("taps", "count", "image", "weight", "depth")


@task
def product(args, first, last, column0, column1, slot):  # type: ignore[no-untyped-def]
    """Blocks of rows `first` to `last`, of column blocks `column0` to `column1`."""
    passes, function, rows = long_at(args), long_at(args + 8), long_at(args + 16)
    unit, scale, height = long_at(args + 24), long_at(args + 32), long_at(args + 40)
    blocks, block = long_at(args + 48), long_at(args + 56)
    local, size = long_at(args + 64), long_at(args + 72)
    fresh = True
    for q in range(first, last):
        n = q // blocks
        row0 = (q % blocks) * block
        begin, end = 0, 0
        for p in range(passes):
            one = args + 80 + p * 184
            image, image_row = long_at(one), long_at(one + 16)
            image_pixel, image_k = long_at(one + 24), long_at(one + 32)
            out_row, out_pixel = long_at(one + 56), long_at(one + 64)
            row1 = min(row0 + block, long_at(one + 72))
            long_strips, length = long_at(one + 80), long_at(one + 88)
            short_strips, columns = long_at(one + 96), long_at(one + 104)
            chunks, chunk_count = long_at(one + 120), long_at(one + 128)
            weight_k = long_at(one + 136)
            image += n * long_at(one + 8)
            if local != 0:
                out = local + slot * size + long_at(one + 40) - row0 * out_row
            else:
                out = long_at(one + 40) + n * long_at(one + 48)
            group, ahead = long_at(one + 144), long_at(one + 152)
            jump, times, lines = long_at(one + 160), long_at(one + 168), long_at(one + 176)
            begin = long_at(columns + column0 * 48 + 16) // 4
            for ch in range(0, chunk_count, group):
                for cb in range(column0, min(column1, long_at(one + 112))):
                    column = columns + cb * 48
                    image_c, weight = image + long_at(column), long_at(column + 8)
                    out_c, width = out + long_at(column + 16), long_at(column + 24)
                    long_tile, short_tile = long_at(column + 32), long_at(column + 40)
                    end = long_at(column + 16) // 4 + width
                    for now in range(ch, min(ch + group, chunk_count)):
                        chunk = chunks + now * 40
                        taps, count = long_at(chunk), long_at(chunk + 8)
                        a_ch, b = image_c + long_at(chunk + 16), weight + long_at(chunk + 24)
                        depth = long_at(chunk + 32)
                        # pixels come first, then each tile asks for its share of the next weights
                        pixels = ahead != 0 and cb == column0
                        then = b + count * depth * weight_k
                        share = min(count * depth * (lines // 4), count * depth * weight_k)
                        last_then = then + count * depth * weight_k - share
                        for r in range(row0, row1):
                            a = a_ch + r * image_row
                            c = out_c + r * out_row
                            for _ in range(long_strips):
                                call_tile(
                                    long_tile, a, image_pixel, image_k, b, weight_k, c, out_pixel,
                                    taps, count, depth, now, width,
                                    a + length * ahead if pixels else then,
                                    jump if pixels else lines, times if pixels else 1,
                                )  # fmt: skip
                                then = min(then + share, last_then)
                                a += length * image_pixel
                                c += length * out_pixel
                            for _ in range(short_strips):
                                call_tile(
                                    short_tile, a, image_pixel, image_k, b, weight_k, c, out_pixel,
                                    taps, count, depth, now, width,
                                    a + length * ahead if pixels else then,
                                    jump if pixels else lines, times if pixels else 1,
                                )  # fmt: skip
                                then = min(then + share, last_then)
                                a += (length - 1) * image_pixel
                                c += (length - 1) * out_pixel
        if function != 0:
            low = n * height + row0 * scale
            high = n * height + min((row0 + block) * scale, height)
            if unit < 0:
                begin, end = 0, -unit
            each = max(unit, 1)
            call_task(function, rows, low * each, high * each, begin, end, ~slot if fresh else slot)
            fresh = False


@task
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
