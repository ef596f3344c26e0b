"""Copies that make what a tile reads lie together: in the first cache, and on few pages."""

from __future__ import annotations

from functools import cache

from netdsl.backends.cpu.llvm_builder import Lanes, LlvmFunction, const_i64
from netdsl.backends.cpu.llvm_jit import compile_llvm, vector_width
from netdsl.backends.cpu.record import Record


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
def compile_panel_copy(vectors: int) -> int:
    """The address of `copy(args, source, places, count, target)`: `depth` lines from each of
    `count` places after `source` on, cut into pieces of at most so many vectors.

    args: PanelArgs. Pieces are written in whole vectors: the next line of a piece covers what is
    too much, and behind the last one is room for it.
    """
    f = LlvmFunction("panel")
    _, source, places, count, target, _ = f.args
    a = f.record(PanelArgs)
    b, v = f.b, Lanes(f)
    with f.loop(const_i64(0), count, const_i64(1)) as t:
        from_ = b.add(source, f.load_i64(places, t))
        first = b.add(target, b.mul(b.mul(t, a.depth), a.line))
        with f.loop(const_i64(0), a.depth, const_i64(1)) as k:
            line_from = b.add(from_, b.mul(k, a.step))
            line_to = b.add(first, b.mul(k, a.line))
            with f.loop(const_i64(0), a.pieces, const_i64(1)) as i:
                at, to = b.add(line_from, b.mul(i, a.piece)), b.add(line_to, b.mul(i, a.strip))
                for j in range(0, 4 * vector_width() * vectors, 4 * vector_width()):
                    v.store(v.load(b.add(at, const_i64(j))), b.add(to, const_i64(j)))
    return compile_llvm("panel", f.text())
