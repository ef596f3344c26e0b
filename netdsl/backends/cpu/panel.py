"""Copies that make what a tile reads lie together: in the first cache, and on few pages."""

from __future__ import annotations

from functools import cache

from netdsl.backends.cpu.emit import Function, Lanes, long
from netdsl.backends.cpu.target import compiled, width


@cache
def panel(vectors: int) -> int:
    """The address of `copy(args, source, places, count, target)`: `depth` lines from each of
    `count` places after `source` on, cut into pieces of at most so many vectors.

    args: depth; bytes from line to line; pieces of a line and their bytes in it; bytes from line to
    line of a piece that is copied, and from piece to piece. Pieces are written in whole vectors:
    the next line of a piece covers what is too much, and behind the last one is room for it.
    """
    f = Function("panel")
    _, source, places, count, target, _ = f.args
    depth, step, pieces, piece, line, apart = (f.argument(i) for i in range(6))
    b, v = f.b, Lanes(f)
    with f.loop(long(0), count, long(1)) as t:
        from_ = b.add(source, f.long_at(b.add(places, b.mul(t, long(8)))))
        first = b.add(target, b.mul(b.mul(t, depth), line))
        with f.loop(long(0), depth, long(1)) as k:
            line_from = b.add(from_, b.mul(k, step))
            line_to = b.add(first, b.mul(k, line))
            with f.loop(long(0), pieces, long(1)) as i:
                at, to = b.add(line_from, b.mul(i, piece)), b.add(line_to, b.mul(i, apart))
                for j in range(0, 4 * width() * vectors, 4 * width()):
                    v.store(v.load(b.add(at, long(j))), b.add(to, long(j)))
    return compiled("panel", f.text())
