"""The loops of a convolution by minimal filtering: tiles of the image become values at points,
there are products with weights, and results come of them. See winograd_transforms.py."""

from __future__ import annotations

from netdsl.backends.cpu.gemm_loops import RowEpilogueArgs, run_row_epilogue
from netdsl.backends.cpu.intrinsics import atomic_store, call_task, call_tile, test_and_set
from netdsl.backends.cpu.numba_loops import numba_inline, numba_loop
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.winograd_transforms import WinogradColumn


class WinogradArgs(Record):
    """A convolution by minimal filtering, cut for tasks.

    `lines`: rows of tiles of an image, each of them `across` tiles, `block` lines at a time beside
    `span` column blocks, of `every` line of all images; `scale` and `height`: rows of pixels of a
    line and of an image; `rooms`: a Room for each thread, with the products `products` bytes behind
    the image's values, `tile` and `point` bytes each; `asked`: bytes that a tile asks for at a
    time; the depth in `chunks`: where weights come to their points here, each chunk does so
    `weights` bytes behind the image's values just before it is used, `chunk` bytes a point;
    `whole` and `rest`: the strips of a whole block, and of the last one.
    """

    lines: int
    across: int
    block: int
    span: int
    scale: int
    height: int
    follower: int
    rooms: int
    every: int
    products: int
    source: int
    tile: int
    point: int
    out: int
    out_n: int
    out_row: int
    write_args: int
    out_tile: int
    columns: int
    out_point: int
    points: int
    depth: int
    weight_k: int
    taps: int
    asked: int
    weight_at_points: int
    weight_args: int
    weights: int
    chunks: int
    chunk: int
    whole: int
    rest: int


class ThreadWorkspace(Record):
    """A thread's memory, and where the lock lies that whoever uses it holds."""

    lock: int
    address: int


class StripArgs(Record):
    """How many long strips there are, their length, and how many are shorter by one."""

    long_strips: int
    length: int
    short_strips: int


class TransformSourceArgs(Record):
    """Where pixels begin, bytes to the next image and to the next line of tiles, and of a line's
    values; what brings them to their points; tiles of a line, rows of pixels of an image and of a
    line, pixels of a row."""

    pixels: int
    image: int
    row: int
    line: int
    function: int
    args: int
    across: int
    high: int
    scale: int
    wide: int


class TilePair(Record):
    """The tiles of long strips and of short ones."""

    long_tile: int
    short_tile: int


@numba_inline
def _acquire_workspace(workspaces):  # type: ignore[no-untyped-def]
    """The first room that nobody uses, from now on in use."""
    i = 0
    while test_and_set(ThreadWorkspace.nth(workspaces, i).lock) != 0:
        i += 1
    return ThreadWorkspace.nth(workspaces, i)


@numba_inline
def _transform_lines(source, lines, line0, line1, target):  # type: ignore[no-untyped-def]
    """Lines of tiles as their values at all points."""
    for line in range(line0, line1):
        n, r = line // lines, line % lines
        at = source.pixels + n * source.image + r * source.row
        to = target + (line - line0) * source.line
        high = source.high - r * source.scale
        call_task(source.function, source.args, at, to, source.across, high, source.wide)


@numba_inline
def _multiply_at_points(f, column, values, target, weights, chunk, first, last, whole):  # type: ignore[no-untyped-def]
    """All tiles of a block times the weights of a column block along some of the depth, at every
    point; `chunk` bytes of weights a point. Meanwhile the next point's weights come nearer, if they
    are not near."""
    points, weight_k, asked, tile, out_tile = f.points, f.weight_k, f.asked, f.tile, f.out_tile
    strips = StripArgs.at(f.whole if whole else f.rest)
    tiles = TilePair.nth(column.tiles, 0 if whole else 1)
    length = strips.length
    depth = last - first
    share, end = depth * asked // 4, weights + points * chunk
    if f.weight_at_points != 0:
        end = 0
    for p in range(points):
        a, c = values + p * f.point + 4 * first, target + p * f.out_point
        prefetch_address = weights + chunk
        for s in range(strips.long_strips + strips.short_strips):
            is_long = s < strips.long_strips
            call_tile(
                tiles.long_tile if is_long else tiles.short_tile,
                a, tile, 4, weights, weight_k, c, out_tile,
                f.taps, 1, depth, first, column.columns,
                prefetch_address, asked, int(prefetch_address < min(end, weights + 2 * chunk)), 0,
            )  # fmt: skip
            prefetch_address += share
            step = length if is_long else length - 1
            a += step * tile
            c += step * out_tile
        weights += chunk


@numba_inline
def _multiply_all_chunks(f, cb, values, target, whole):  # type: ignore[no-untyped-def]
    """All tiles of a block times all weights of a column block."""
    column = WinogradColumn.nth(f.columns, cb)
    function, chunks, depth = f.weight_at_points, f.chunks, f.depth
    weights = column.weight
    for chunk_index in range(chunks):
        first, last = depth * chunk_index // chunks, depth * (chunk_index + 1) // chunks
        if function != 0:
            weights, i = values + f.weights, cb * chunks + chunk_index
            call_task(function, f.weight_args, i, i + 1, weights, 0, 0)
        _multiply_at_points(f, column, values, target, weights, f.chunk, first, last, whole)


@numba_loop
def winograd_conv(args, first, last, column0, column1, slot):  # type: ignore[no-untyped-def]
    """Blocks of lines `first` to `last` of all images, of column blocks `column0` to `column1`;
    args: FilteredArgs."""
    f = WinogradArgs.at(args)
    epilogue = RowEpilogueArgs.at(f.follower)
    source = TransformSourceArgs.at(f.source)
    lines, scale, height = f.lines, f.scale, f.height
    workspace = _acquire_workspace(f.rooms)
    workspace_address = workspace.address
    products = workspace_address + f.products
    is_first_call = True
    for b in range(first, last):
        line0, line1 = b * f.block, min(b * f.block + f.block, f.every)
        _transform_lines(source, lines, line0, line1, workspace_address)
        whole = line1 - line0 == f.block
        n0, r0 = line0 // lines, line0 % lines
        n1, r1 = (line1 - 1) // lines, (line1 - 1) % lines
        low, high = n0 * height + r0 * scale, n1 * height + min(r1 * scale + scale, height)
        for span0 in range(column0, column1, f.span):
            span1 = min(span0 + f.span, column1)
            begin, end = WinogradColumn.nth(f.columns, span0).out // 4, 0
            for cb in range(span0, span1):
                column = WinogradColumn.nth(f.columns, cb)
                end = column.out // 4 + column.columns
                _multiply_all_chunks(f, cb, workspace_address, products, whole)
                out = f.out + column.out
                if epilogue.local != 0:
                    out += epilogue.local + slot * epilogue.size - 4 * begin
                    out -= n0 * f.out_n + r0 * f.out_row
                for line in range(line0, line1):
                    n, r = line // lines, line % lines
                    values = products + (line - line0) * f.across * f.out_tile
                    to = out + n * f.out_n + r * f.out_row
                    call_task(column.write, f.write_args, values, to, cb, height - r * scale, 0)
            run_row_epilogue(epilogue, low, high, begin, end, ~slot if is_first_call else slot)
            is_first_call = False
    atomic_store(workspace.lock, 0)


class WinogradWgradArgs(Record):
    """A weight's gradient by minimal filtering, cut for tasks; as FilteredArgs. `gradients`: bytes
    from the image's values to the gradient's, whose pixels are `source`; `part`: bytes of a part of
    the sums, `line` of a line of them, one for each channel of the gradient, `sum_point` of a
    point."""

    lines: int
    across: int
    block: int
    every: int
    rooms: int
    gradients: int
    tile: int
    point: int
    source: int
    gradient_tile: int
    gradient_point: int
    groups: int
    columns: int
    sums: int
    part: int
    line: int
    sum_point: int
    points: int
    taps: int
    strips: int


class ChannelGroup(Record):
    """Channels of the image that a task takes: its pixels, and their column blocks."""

    source: int
    first: int
    last: int


class WinogradWgradColumn(Record):
    """A column block: bytes to its channels of the image's values and to its sums; its tiles."""

    image: int
    out: int
    long_tile: int
    short_tile: int


@numba_loop
def winograd_wgrad_sums(args, first, last, part, group, add):  # type: ignore[no-untyped-def]
    """Blocks of lines `first` to `last` of all images, and their gradient: sums of products at all
    points, of a group of the image's channels. They are added to a part that is there. args:
    FilteredSumArgs."""
    f = WinogradWgradArgs.at(args)
    channel_group = ChannelGroup.nth(f.groups, group)
    strips = StripArgs.at(f.strips)
    image_source, source = (
        TransformSourceArgs.at(channel_group.source),
        TransformSourceArgs.at(f.source),
    )
    gradient_tile, line, length = f.gradient_tile, f.line, strips.length
    sums = f.sums + part * f.part
    workspace = _acquire_workspace(f.rooms)
    workspace_address = workspace.address
    gradients = workspace_address + f.gradients
    for b in range(first, last):
        line0, line1 = b * f.block, min(b * f.block + f.block, f.every)
        _transform_lines(image_source, f.lines, line0, line1, workspace_address)
        _transform_lines(source, f.lines, line0, line1, gradients)
        depth = (line1 - line0) * f.across
        for p in range(f.points):
            for cb in range(channel_group.first, channel_group.last):
                column = WinogradWgradColumn.nth(f.columns, cb)
                a = gradients + p * f.gradient_point
                image = workspace_address + p * f.point + column.image
                c = sums + p * f.sum_point + column.out
                for s in range(strips.long_strips + strips.short_strips):
                    is_long = s < strips.long_strips
                    call_tile(
                        column.long_tile if is_long else column.short_tile,
                        a, 4, gradient_tile, image, f.tile, c, line,
                        f.taps, 1, depth, add + b - first, 0,
                        a, 0, 0, 0,
                    )  # fmt: skip
                    step = length if is_long else length - 1
                    a += step * 4
                    c += step * line
    atomic_store(workspace.lock, 0)
