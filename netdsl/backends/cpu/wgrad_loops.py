"""The loops around micro-kernels for products that are deep: their operands lie far apart along the
depth, and are copied together chunk by chunk. And the sums of their parts."""

from __future__ import annotations

from netdsl.backends.cpu.intrinsics import call_task, call_tile, load_f32, store_f32
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.backends.cpu.record import Record


class WgradArgs(Record):
    """A sum of products over pixels, cut for tasks.

    `lines`: rows of pixels of an image; `panels`: where each task has its copies, `panel` bytes,
    those of the columns `column_panel` behind those of the rows, which are `strip` bytes a strip;
    `column_k`: bytes along the depth of the columns, or of their copies; `copy_rows` copies what
    `long_pieces` and `short_pieces` (see operand_packing.py) say, and a column block what
    `column_pieces`."""

    rows: int
    rows_n: int
    row: int
    lines: int
    out: int
    out_line: int
    out_pixel: int
    columns: int
    chunks: int
    chunk_count: int
    long_strips: int
    length: int
    short_strips: int
    panels: int
    panel: int
    column_panel: int
    strip: int
    column_k: int
    copy_rows: int
    long_pieces: int
    short_pieces: int
    column_pieces: int


class WgradColumnArgs(Record):
    """A column block: where its rows' operand and its own begin, and its results; how many columns
    it has; its tiles; what copies it, 0 where it is read where it lies."""

    rows: int
    columns: int
    out: int
    count: int
    long_tile: int
    short_tile: int
    copy: int


class WgradChunkArgs(Record):
    """Some of the depth: `count` places of rows and columns, and the taps of the tiles."""

    row_places: int
    column_places: int
    count: int
    taps: int
    tap_count: int
    tap_depth: int


@numba_loop
def wgrad_gemm(args, first, last, column0, column1, slot):  # type: ignore[no-untyped-def]
    """Rows of pixels `first` to `last`, of column blocks `column0` to `column1`; args: DeepArgs."""
    d = WgradArgs.at(args)
    long_strips, length, short_strips, strip = d.long_strips, d.length, d.short_strips, d.strip
    row_panel = d.panels + slot * d.panel
    column_panel = row_panel + d.column_panel
    lines, out_pixel, column_k, copy_rows = d.lines, d.out_pixel, d.column_k, d.copy_rows
    for chunk_index in range(d.chunk_count):
        chunk = WgradChunkArgs.nth(d.chunks, chunk_index)
        places, count = chunk.row_places, chunk.count
        copied_rows = -1
        for cb in range(column0, column1):
            column = WgradColumnArgs.nth(d.columns, cb)
            if copied_rows != column.rows:
                copied_rows = column.rows
                to = row_panel
                for q in range(first, last):
                    at = d.rows + copied_rows + q // lines * d.rows_n + q % lines * d.row
                    call_task(copy_rows, d.long_pieces, at, places, count, to, 0)
                    at += 4 * long_strips * length
                    to += long_strips * strip
                    call_task(copy_rows, d.short_pieces, at, places, count, to, 0)
                    to += short_strips * strip
            b = column.columns
            if column.copy != 0:
                call_task(
                    column.copy, d.column_pieces, b, chunk.column_places, count, column_panel, 0
                )
                b = column_panel
            a, width = row_panel, column.count
            for q in range(first, last):
                c = d.out + q * d.out_line + column.out
                for s in range(long_strips + short_strips):
                    is_long = s < long_strips
                    call_tile(
                        column.long_tile if is_long else column.short_tile, a, 4, 4 * length,
                        b, column_k, c, out_pixel, chunk.taps, chunk.tap_count, chunk.tap_depth,
                        chunk_index, width, a, 0, 1, 0,
                    )  # fmt: skip
                    a += strip
                    c += (length if is_long else length - 1) * out_pixel


class PartialSumArgs(Record):
    """Partial sums: where they lie, how many, bytes of one; the target; its columns and bytes from
    column to column where they are turned."""

    parts: int
    count: int
    size: int
    target: int
    columns: int
    column: int


@numba_loop
def add_partial_sums(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Elements `first` to `last` of partial sums added; args: PartsArgs."""
    a = PartialSumArgs.at(args)
    parts, count, size, target = a.parts, a.count, a.size, a.target
    for i0 in range(first, last, 256):
        i1 = min(last, i0 + 256)
        for i in range(i0, i1):
            store_f32(target + 4 * i, load_f32(parts + 4 * i))
        for p in range(1, count):
            part = parts + p * size
            for i in range(i0, i1):
                store_f32(target + 4 * i, load_f32(target + 4 * i) + load_f32(part + 4 * i))


@numba_loop
def add_transposed_partial_sums(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last` of partial sums added and turned: target[j, i] = sum of parts[i, j];
    args: PartsArgs."""
    a = PartialSumArgs.at(args)
    parts, count, size, target = a.parts, a.count, a.size, a.target
    columns, step = a.columns, a.column
    for j0 in range(0, columns, 16):
        for i in range(first, last):
            for j in range(j0, min(columns, j0 + 16)):
                at = parts + 4 * (i * columns + j)
                total = load_f32(at)
                for p in range(1, count):
                    total += load_f32(at + p * size)
                store_f32(target + j * step + 4 * i, total)
