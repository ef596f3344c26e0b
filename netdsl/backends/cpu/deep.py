"""The loops around micro-kernels for products that are deep: their operands lie far apart along the
depth, and are copied together chunk by chunk. And the sums of their parts."""

from __future__ import annotations

from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.memory import call_task, call_tile, float_at, long_at, put_float

HEAD = (
    "rows",
    "rows_n",
    "row",
    "lines",
    "out",
    "out_line",
    "out_pixel",
    "columns",
    "chunks",
    "chunk_count",
    "depth",
    "long_strips",
    "long",
    "short_strips",
    "panels",
    "panel",
    "column_panel",
    "strip",
    "column_k",
    "copy_rows",
    "long_pieces",
    "short_pieces",
    "column_pieces",
)
# `lines`: rows of pixels of an image; `panels`: where each task has its copies, `panel` bytes,
# those of the columns `column_panel` behind those of the rows, which are `strip` bytes a strip;
# `column_k`: bytes along the depth of the columns, or of their copies
COLUMN = ("rows", "columns", "out", "count", "long_tile", "short_tile", "copy")
# `copy`: 0 where columns are read where they lie
CHUNK = ("row_places", "column_places", "count", "taps", "tap_count", "tap_depth")


@loop
def deep_product(args, first, last, column0, column1, slot):  # type: ignore[no-untyped-def]
    """Rows of pixels `first` to `last`, of column blocks `column0` to `column1`."""
    lines, out_pixel = long_at(args + 24), long_at(args + 48)
    columns, chunks = long_at(args + 56), long_at(args + 64)
    long_strips, length = long_at(args + 88), long_at(args + 96)
    short_strips, strip = long_at(args + 104), long_at(args + 136)
    row_panel = long_at(args + 112) + slot * long_at(args + 120)
    column_panel, column_k = row_panel + long_at(args + 128), long_at(args + 144)
    copy_rows = long_at(args + 152)
    for now in range(long_at(args + 72)):
        chunk = chunks + now * 48
        taps, tap_count, tap_depth = long_at(chunk + 24), long_at(chunk + 32), long_at(chunk + 40)
        places, count = long_at(chunk), long_at(chunk + 16)
        copied = -1
        for cb in range(column0, column1):
            column = columns + cb * 56
            if copied != long_at(column):
                copied = long_at(column)
                to = row_panel
                for q in range(first, last):
                    at = long_at(args) + copied
                    at += q // lines * long_at(args + 8) + q % lines * long_at(args + 16)
                    call_task(copy_rows, long_at(args + 160), at, places, count, to, 0)
                    at += 4 * long_strips * length
                    to += long_strips * strip
                    call_task(copy_rows, long_at(args + 168), at, places, count, to, 0)
                    to += short_strips * strip
            b, copy = long_at(column + 8), long_at(column + 48)
            if copy != 0:
                call_task(copy, long_at(args + 176), b, long_at(chunk + 8), count, column_panel, 0)
                b = column_panel
            a, width = row_panel, long_at(column + 24)
            for q in range(first, last):
                c = long_at(args + 32) + q * long_at(args + 40) + long_at(column + 16)
                for s in range(long_strips + short_strips):
                    is_long = s < long_strips
                    call_tile(
                        long_at(column + (32 if is_long else 40)), a, 4, 4 * length,
                        b, column_k, c, out_pixel, taps, tap_count, tap_depth, now, width,
                        a, 0, 1, 0,
                    )  # fmt: skip
                    a += strip
                    c += (length if is_long else length - 1) * out_pixel


@loop
def add_parts(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Elements `first` to `last` of partial sums added.

    args: parts, how many, bytes of one; target
    """
    parts, count = long_at(args), long_at(args + 8)
    size, target = long_at(args + 16), long_at(args + 24)
    for i0 in range(first, last, 256):
        i1 = min(last, i0 + 256)
        for i in range(i0, i1):
            put_float(target + 4 * i, float_at(parts + 4 * i))
        for p in range(1, count):
            part = parts + p * size
            for i in range(i0, i1):
                put_float(target + 4 * i, float_at(target + 4 * i) + float_at(part + 4 * i))


@loop
def turn_parts(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last` of partial sums added and turned: target[j, i] = sum of parts[i, j].

    args: parts, how many, bytes of one; target; columns, bytes to the next column of the target
    """
    parts, count, size = long_at(args), long_at(args + 8), long_at(args + 16)
    target, columns, step = long_at(args + 24), long_at(args + 32), long_at(args + 40)
    for j0 in range(0, columns, 16):
        for i in range(first, last):
            for j in range(j0, min(columns, j0 + 16)):
                at = parts + 4 * (i * columns + j)
                total = float_at(at)
                for p in range(1, count):
                    total += float_at(at + p * size)
                put_float(target + j * step + 4 * i, total)
