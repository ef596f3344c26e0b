"""Copies that make what a tile reads lie together: in the first cache, and on few pages."""

from __future__ import annotations

from functools import cache

from netdsl.backends.cpu.emit import Function, Lanes, long
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.target import compiled, width


class PanelArgs(Record):
    """`depth` lines, `step` bytes apart, in `pieces` of `piece` bytes; copied, those of a piece lie
    `line` bytes apart and pieces `strip` bytes."""

    depth: int
    step: int
    pieces: int
    piece: int
    line: int
    strip: int


@cache
def panel(vectors: int) -> int:
    """The address of `copy(args, source, places, count, target)`: `depth` lines from each of
    `count` places after `source` on, cut into pieces of at most so many vectors.

    args: PanelArgs. Pieces are written in whole vectors: the next line of a piece covers what is
    too much, and behind the last one is room for it.
    """
    f = Function("panel")
    _, source, places, count, target, _ = f.args
    a = f.record(PanelArgs)
    b, v = f.b, Lanes(f)
    with f.loop(long(0), count, long(1)) as t:
        from_ = b.add(source, f.long_nth(places, t))
        first = b.add(target, b.mul(b.mul(t, a.depth), a.line))
        with f.loop(long(0), a.depth, long(1)) as k:
            line_from = b.add(from_, b.mul(k, a.step))
            line_to = b.add(first, b.mul(k, a.line))
            with f.loop(long(0), a.pieces, long(1)) as i:
                at, to = b.add(line_from, b.mul(i, a.piece)), b.add(line_to, b.mul(i, a.strip))
                for j in range(0, 4 * width() * vectors, 4 * width()):
                    v.store(v.load(b.add(at, long(j))), b.add(to, long(j)))
    return compiled("panel", f.text())
