"""The loops of a convolution by minimal filtering: tiles of the image become values at points,
there are products with weights, and results come of them. See transforms.py."""

from __future__ import annotations

from netdsl.backends.cpu.loops import inlined, loop
from netdsl.backends.cpu.memory import call_task, call_tile, claim, long_at, publish
from netdsl.backends.cpu.product import follow

HEAD = (
    *("lines", "across", "block", "span", "scale", "height"),
    *("function", "rows", "unit", "local", "size"),
    *("rooms", "every", "products", "source", "tile", "point"),
    *("out", "out_n", "out_row", "write_args", "out_tile", "columns", "out_point"),
    *("points", "depth", "weight_k", "taps", "asked"),
    *("weight_at_points", "weight_args", "weights", "chunks", "chunk", "strips"),
)
# `lines`: rows of tiles of an image, each of them `across` tiles, `block` lines at a time beside
# `span` column blocks, of `every` line of all images; `rooms`: a lock and a place for each thread,
# with the products `products` bytes behind the image's values; `scale` and `height`: rows of
# pixels of a line and of an image; `asked`: bytes that a tile asks for at a time; `strips`: how
# many long ones, their length and how many shorter ones, for a whole block, then for the last one;
# the depth in `chunks`: where weights come to their points here, each chunk does so `weights` bytes
# behind the image's values just before it is used, `chunk` bytes a point
SOURCE = (
    *("pixels", "image", "row", "line", "function", "args"),
    *("across", "high", "scale", "wide"),
)
# where pixels begin, bytes to the next image and to the next line of tiles, and of a line's values;
# what brings them to their points, rows of pixels of an image and of a line, and pixels of a row
COLUMN = ("weight", "write", "out", "columns", "tiles", "reads")
# `tiles`: a long and a short one for a whole block, then for the last one


@inlined
def _at_points(source, lines, line0, line1, target):  # type: ignore[no-untyped-def]
    """Lines of tiles as their values at all points."""
    for line in range(line0, line1):
        n, r = line // lines, line % lines
        at = long_at(source) + n * long_at(source + 8) + r * long_at(source + 16)
        to = target + (line - line0) * long_at(source + 24)
        high = long_at(source + 56) - r * long_at(source + 64)
        call_task(
            long_at(source + 32), long_at(source + 40),
            at, to, long_at(source + 48), high, long_at(source + 72),
        )  # fmt: skip


@inlined
def _products(args, column, values, target, weights, chunk, first, last, whole):  # type: ignore[no-untyped-def]
    """All tiles of a block times the weights of a column block along some of the depth, at every
    point; `chunk` bytes of weights a point. Meanwhile the next point's weights come nearer, if they
    are not near."""
    points, weight_k = long_at(args + 192), long_at(args + 208)
    tile, point, taps = long_at(args + 120), long_at(args + 128), long_at(args + 216)
    out_tile, out_point, asked = long_at(args + 168), long_at(args + 184), long_at(args + 224)
    strips = args + 272 + (0 if whole else 24)
    long_strips, length, short_strips = long_at(strips), long_at(strips + 8), long_at(strips + 16)
    tiles = long_at(column + 32) + (0 if whole else 16)
    depth = last - first
    share, end = depth * asked // 4, weights + points * chunk
    if long_at(args + 232) != 0:
        end = 0
    for p in range(points):
        a, c = values + p * point + 4 * first, target + p * out_point
        then = weights + chunk
        for s in range(long_strips + short_strips):
            is_long = s < long_strips
            call_tile(
                long_at(tiles + (0 if is_long else 8)),
                a, tile, 4, weights, weight_k, c, out_tile,
                taps, 1, depth, first, long_at(column + 24),
                then, asked, int(then < min(end, weights + 2 * chunk)), 0,
            )  # fmt: skip
            then += share
            step = length if is_long else length - 1
            a += step * tile
            c += step * out_tile
        weights += chunk


@inlined
def _all_depth(args, cb, values, target, whole):  # type: ignore[no-untyped-def]
    """All tiles of a block times all weights of a column block."""
    column = long_at(args + 176) + cb * 48
    function, chunks, depth = long_at(args + 232), long_at(args + 256), long_at(args + 200)
    weights = long_at(column)
    for now in range(chunks):
        first, last = depth * now // chunks, depth * (now + 1) // chunks
        if function != 0:
            weights, i = values + long_at(args + 248), cb * chunks + now
            call_task(function, long_at(args + 240), i, i + 1, weights, 0, 0)
        chunk = long_at(args + 264)
        _products(args, column, values, target, weights, chunk, first, last, whole)


@loop
def filtered(args, first, last, column0, column1, slot):  # type: ignore[no-untyped-def]
    """Blocks of lines `first` to `last` of all images, of column blocks `column0` to `column1`."""
    lines, across, block = long_at(args), long_at(args + 8), long_at(args + 16)
    span, scale, height = long_at(args + 24), long_at(args + 32), long_at(args + 40)
    local = long_at(args + 72)
    products = long_at(args + 104)
    out_n, out_row = long_at(args + 144), long_at(args + 152)
    lock, every = long_at(args + 88), long_at(args + 96)
    while claim(lock) != 0:
        lock += 16
    room = long_at(lock + 8)
    fresh = True
    for b in range(first, last):
        line0, line1 = b * block, min(b * block + block, every)
        _at_points(long_at(args + 112), lines, line0, line1, room)
        whole = line1 - line0 == block
        n0, r0 = line0 // lines, line0 % lines
        n1, r1 = (line1 - 1) // lines, (line1 - 1) % lines
        low, high = n0 * height + r0 * scale, n1 * height + min(r1 * scale + scale, height)
        for span0 in range(column0, column1, span):
            span1 = min(span0 + span, column1)
            begin, end = long_at(long_at(args + 176) + span0 * 48 + 16) // 4, 0
            for cb in range(span0, span1):
                column = long_at(args + 176) + cb * 48
                end = long_at(column + 16) // 4 + long_at(column + 24)
                _all_depth(args, cb, room, room + products, whole)
                out = long_at(args + 136) + long_at(column + 16)
                if local != 0:
                    out += local + slot * long_at(args + 80) - 4 * begin
                    out -= n0 * out_n + r0 * out_row
                for line in range(line0, line1):
                    n, r = line // lines, line % lines
                    source = room + products + (line - line0) * across * long_at(args + 168)
                    call_task(
                        long_at(column + 8), long_at(args + 160),
                        source, out + n * out_n + r * out_row, column, height - r * scale, 0,
                    )  # fmt: skip
            follow(args, low, high, begin, end, ~slot if fresh else slot)
            fresh = False
    publish(lock, 0)


SUM_HEAD = (
    *("lines", "across", "block", "every", "rooms", "gradients", "tile", "point"),
    *("source", "gradient_tile", "gradient_point", "groups", "columns"),
    *("sums", "part", "line", "sum_point", "points", "taps", "strips"),
)
# as above; `gradients`: bytes from the image's values to the gradient's, whose pixels are `source`;
# `part`: bytes of a part of the sums, `line` of a line of them, one for each channel of the
# gradient, `sum_point` of a point
GROUP = ("source", "first", "last")
# channels of the image that a task takes: its pixels, and their column blocks
SUM_COLUMN = ("image", "out", "long_tile", "short_tile")


@loop
def filtered_sums(args, first, last, part, group, add):  # type: ignore[no-untyped-def]
    """Blocks of lines `first` to `last` of all images, and their gradient: sums of products at all
    points, of a group of the image's channels. They are added to a part that is there."""
    lines, across, block = long_at(args), long_at(args + 8), long_at(args + 16)
    every, lock = long_at(args + 24), long_at(args + 32)
    group_at = long_at(args + 88) + group * 24
    tile, point = long_at(args + 48), long_at(args + 56)
    gradient_tile, gradient_point = long_at(args + 72), long_at(args + 80)
    line_bytes, sum_point = long_at(args + 120), long_at(args + 128)
    points, taps, strips = long_at(args + 136), long_at(args + 144), args + 152
    long_strips, length, short_strips = long_at(strips), long_at(strips + 8), long_at(strips + 16)
    sums = long_at(args + 104) + part * long_at(args + 112)
    while claim(lock) != 0:
        lock += 16
    room = long_at(lock + 8)
    gradients = room + long_at(args + 40)
    for b in range(first, last):
        line0, line1 = b * block, min(b * block + block, every)
        _at_points(long_at(group_at), lines, line0, line1, room)
        _at_points(long_at(args + 64), lines, line0, line1, gradients)
        depth = (line1 - line0) * across
        for p in range(points):
            for cb in range(long_at(group_at + 8), long_at(group_at + 16)):
                column = long_at(args + 96) + cb * 32
                a = gradients + p * gradient_point
                image = room + p * point + long_at(column)
                c = sums + p * sum_point + long_at(column + 8)
                for s in range(long_strips + short_strips):
                    is_long = s < long_strips
                    call_tile(
                        long_at(column + (16 if is_long else 24)),
                        a, 4, gradient_tile, image, tile, c, line_bytes,
                        taps, 1, depth, add + b - first, 0,
                        a, 0, 0, 0,
                    )  # fmt: skip
                    step = length if is_long else length - 1
                    a += step * 4
                    c += step * line_bytes
    publish(lock, 0)
