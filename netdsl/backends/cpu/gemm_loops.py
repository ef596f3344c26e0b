"""The loops around micro-kernels: blocks of rows, blocks of columns, depth in chunks, then the
kernel's elementwise nodes on what is still in cache. And the packing of weights."""

from __future__ import annotations

from netdsl.backends.cpu.intrinsics import call_task, call_tile, load_f32, load_i64, store_f32
from netdsl.backends.cpu.numba_loops import numba_inline, numba_loop
from netdsl.backends.cpu.record import Record


class GemmArgs(Record):
    """A product cut for tasks: its passes; rows of pixels of an image, `block` of them at a time
    beside `span` column blocks; rows of an image, `scale` for each of a pass; what follows."""

    passes: int
    pass_count: int
    lines: int
    block: int
    span: int
    scale: int
    height: int
    follower: int


class RowEpilogueArgs(Record):
    """What a kernel does with rows of its product: the function (0: nothing) with its arguments,
    rows for a row of pixels (or elements, negative), where local results lie (0: nowhere) and
    bytes of a task's."""

    function: int
    args: int
    unit: int
    local: int
    size: int


class GemmPassArgs(Record):
    """Pixels that are computed alike.

    `group`: how many chunks a column block goes through before the next one; `ahead`: bytes from
    pixel to pixel where a tile asks for the next ones, 0 where they are near; `jump` and `times`
    are those of micro_kernel.py; `asked`: bytes that a tile asks for at a time; `results`: how
    often it asks for what lies where the next one's results will, or `result` bytes from there."""

    image: int
    image_n: int
    image_row: int
    image_pixel: int
    image_k: int
    out: int
    out_n: int
    out_row: int
    out_pixel: int
    rows: int
    long_strips: int
    length: int
    short_strips: int
    columns: int
    chunks: int
    chunk_count: int
    weight_k: int
    group: int
    ahead: int
    jump: int
    times: int
    asked: int
    results: int
    result: int


class GemmColumnArgs(Record):
    """A column block: bytes to its channels of the image, its weights, bytes to its results, how
    many columns it has, its tiles, and what they are given to finish: see micro_kernel.py."""

    image: int
    weight: int
    out: int
    columns: int
    long_tile: int
    short_tile: int
    reads: int


class GemmChunkArgs(Record):
    """Some of the depth: its taps, and bytes of the image and of the weights before it."""

    taps: int
    count: int
    image: int
    weight: int
    depth: int


@numba_inline
def _multiply_chunk(  # type: ignore[no-untyped-def]
    gemm_pass, column, chunk_index, line0, line1, lines, out, is_prefetching_pixels
):
    """Rows of pixels `line0` to `line1` times a chunk of a column block. Its tiles ask for what
    comes next: pixels, what lies where results will, or weights until they are all there."""
    chunk = GemmChunkArgs.nth(gemm_pass.chunks, chunk_index)
    taps, count, depth = chunk.taps, chunk.count, chunk.depth
    image = gemm_pass.image + column.image + chunk.image
    image_pixel, image_k, out_pixel = gemm_pass.image_pixel, gemm_pass.image_k, gemm_pass.out_pixel
    long_strips, length, short_strips = (
        gemm_pass.long_strips,
        gemm_pass.length,
        gemm_pass.short_strips,
    )
    asked, weight_k, width = gemm_pass.asked, gemm_pass.weight_k, column.columns
    long_tile, short_tile = column.long_tile, column.short_tile
    image_n, image_row = gemm_pass.image_n, gemm_pass.image_row
    ahead, jump, times, results, output_distance = (
        gemm_pass.ahead,
        gemm_pass.jump,
        gemm_pass.times,
        gemm_pass.results,
        gemm_pass.result,
    )
    reads = column.reads if chunk_index + 1 == gemm_pass.chunk_count else 0
    weights = column.weight + chunk.weight
    size = count * depth * weight_k
    weight_prefetch, share = weights + size, count * depth * (asked // 4)
    last = weight_prefetch + size
    for at in range(line0, line1):
        n, r = at // lines, at % lines
        if r >= gemm_pass.rows:
            continue
        a = image + n * image_n + r * image_row
        c = out + n * gemm_pass.out_n + r * gemm_pass.out_row
        for s in range(long_strips + short_strips):
            is_long = s < long_strips
            if is_prefetching_pixels:
                next_at, next_jump, next_times = a + length * ahead, jump, times
            elif results != 0:
                next_at = c + length * out_pixel + output_distance
                next_jump, next_times = out_pixel - asked * (results - 1), results
            else:
                next_at, next_jump, next_times = weight_prefetch, asked, int(weight_prefetch < last)
            call_tile(
                long_tile if is_long else short_tile,
                a, image_pixel, image_k, weights, weight_k, c, out_pixel,
                taps, count, depth, chunk_index, width,
                next_at, next_jump, next_times, reads,
            )  # fmt: skip
            weight_prefetch += share
            step = length if is_long else length - 1
            a += step * image_pixel
            c += step * out_pixel


@numba_inline
def run_row_epilogue(epilogue, low, high, begin, end, slot):  # type: ignore[no-untyped-def]
    """What the kernel does next with rows of pixels `low` to `high` of columns `begin` to `end`, if
    it does anything."""
    if epilogue.function != 0:
        unit = epilogue.unit
        if unit < 0:
            begin, end = 0, -unit
        each = max(unit, 1)
        call_task(epilogue.function, epilogue.args, low * each, high * each, begin, end, slot)


@numba_loop
def product(args, first, last, column0, column1, slot):  # type: ignore[no-untyped-def]
    """Rows of pixels `first` to `last` of all images, of column blocks `column0` to `column1`;
    args: ProductArgs."""
    p = GemmArgs.at(args)
    epilogue = RowEpilogueArgs.at(p.follower)
    lines, scale, height = p.lines, p.scale, p.height
    is_first_call = True
    for line0 in range(first, last, p.block):
        line1 = min(line0 + p.block, last)
        n0, r0 = line0 // lines, line0 % lines
        n1, r1 = (line1 - 1) // lines, (line1 - 1) % lines
        low, high = n0 * height + r0 * scale, n1 * height + min(r1 * scale + scale, height)
        for span0 in range(column0, column1, p.span):
            span1 = min(span0 + p.span, column1)
            begin, end = 0, 0
            for i in range(p.pass_count):
                gemm_pass = GemmPassArgs.nth(p.passes, i)
                out = gemm_pass.out
                begin = GemmColumnArgs.nth(gemm_pass.columns, span0).out // 4
                if epilogue.local != 0:
                    out += epilogue.local + slot * epilogue.size - 4 * begin
                    out -= n0 * gemm_pass.out_n + r0 * gemm_pass.out_row
                for ch in range(0, gemm_pass.chunk_count, gemm_pass.group):
                    for cb in range(span0, span1):
                        column = GemmColumnArgs.nth(gemm_pass.columns, cb)
                        block_out = out + column.out
                        end = column.out // 4 + column.columns
                        is_prefetching_pixels = gemm_pass.ahead != 0 and cb == column0
                        for chunk_index in range(
                            ch, min(ch + gemm_pass.group, gemm_pass.chunk_count)
                        ):
                            _multiply_chunk(
                                gemm_pass,
                                column,
                                chunk_index,
                                line0,
                                line1,
                                lines,
                                block_out,
                                is_prefetching_pixels,
                            )
            run_row_epilogue(epilogue, low, high, begin, end, ~slot if is_first_call else slot)
            is_first_call = False


class PackArgs(Record):
    """Weights and where they are packed: bytes from column to column and from k to k; depth and
    width of a piece; where the pieces of a block begin in it; the blocks."""

    target: int
    column: int
    step: int
    depth: int
    width: int
    pieces: int
    offsets: int
    blocks: int


class PackBlock(Record):
    """Where the weights of a column block begin, and how many columns it has."""

    weights: int
    columns: int


@numba_loop
def pack_weights(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Weights of pieces `first` to `last` (block by block) as the micro-kernel reads them; args:
    PackArgs."""
    p = PackArgs.at(args)
    column, step, depth, width = p.column, p.step, p.depth, p.width
    for i in range(first, last):
        block = PackBlock.nth(p.blocks, i // p.pieces)
        source = block.weights + load_i64(p.offsets, i % p.pieces)
        columns = block.columns
        to = p.target + i * depth * width * 4
        if column == 4:
            for k in range(depth):
                for j in range(columns):
                    store_f32(to + (k * width + j) * 4, load_f32(source + k * step + j * 4))
        else:
            for k0 in range(0, depth, 16):
                for j in range(columns):
                    for k in range(k0, min(depth, k0 + 16)):
                        value = load_f32(source + k * step + j * column)
                        store_f32(to + (k * width + j) * 4, value)
