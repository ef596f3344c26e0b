"""Map kernels: elementwise nodes over one domain, and the first stage of reductions over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from netdsl.backends.cuda.expression import Load
from netdsl.backends.cuda.geometry import BLOCKS_EACH, REDUCING_EACH, Geometry, geometry, threads_of
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import SCRATCH, SCRATCH_BYTES, Address, Launch
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.cuda.source import ROW, Body
from netdsl.backends.cuda.sums import Sums, finished, finishing
from netdsl.backends.cuda.trace import Traced

_ALONE = 4
"""Rounds of its threads in which a block adds up a result by itself: that takes no longer than to
start a second launch."""


@dataclass(frozen=True)
class Mapped:
    """A map kernel as a device function: its source, geometry and words; `chunks` blocks share
    the rows of one result."""

    source: str
    grid: tuple[int, int]
    threads: int
    words: tuple[int | Address, ...]
    chunks: int


def launches(traced: Traced, multiprocessors: int) -> tuple[Launch, ...]:
    """The launches of a traced kernel: one, and a second one where it reduces."""
    g = geometry(traced)
    mapped = mapped_of(traced, g, multiprocessors)
    names = [f"w{i}" for i in range(len(mapped.words))]
    given = ", ".join(f"i64 {n}" for n in names)
    passed = ", ".join([*names, "(int)blockIdx.x", "(int)blockIdx.y", "(int)gridDim.x"])
    text = f'{mapped.source}extern "C" __global__ void run({given}) {{ body({passed}); }}\n'
    first = Launch(text, "run", mapped.grid, mapped.threads, mapped.words)
    if not traced.reductions or mapped.chunks == 1:
        return (first,)
    return (first, finishing(traced, g, mapped.chunks))


def mapped_of(traced: Traced, g: Geometry, multiprocessors: int) -> Mapped:
    """The body of a map kernel."""
    body = Body(traced, g)
    sums = Sums(traced, g)
    across, down = threads_of(g)
    slices = -(-g.lanes // across)
    unroll = _unroll(body)
    chunks = _chunks(g, slices, down, unroll, multiprocessors, sums)
    head = [body.word(v) for v in (across, down, g.lanes, g.rows, chunks)]
    part = body.word(Address(SCRATCH, 0)) if traced.reductions else "0"
    lines = _lines(body, sums, head, unroll) + sums.combined(part, across)
    if traced.reductions and chunks == 1:
        lines += finished(traced, g, sums, body.word)
    parameters = ", ".join(f"i64 w{i}" for i in range(len(body.words)))
    text = "\n  ".join(lines)
    source = (
        f"{PRELUDE}\n#define V {g.width}\n#define U {unroll}\n"
        f"__device__ __forceinline__ void body({parameters}, int bx, int by, int nbx) {{\n"
        f"  {text}\n}}\n"
    )
    grid = (g.outers * chunks, slices)
    return Mapped(source, grid, across * down, tuple(body.words), chunks)


def _unroll(body: Body) -> int:
    """Rows in flight: the more, the fewer tensors are read."""
    tensors = sum(1 for e in body.exprs if isinstance(e, Load) and body.level[id(e)] == ROW)
    return 4 if tensors <= 2 else 2


def _chunks(
    g: Geometry, slices: int, down: int, unroll: int, multiprocessors: int, sums: Sums
) -> int:
    """How many blocks share the rows of one result: enough to fill the machine."""
    needed = -(-g.rows // (down * unroll))
    each_one = REDUCING_EACH if sums.count else BLOCKS_EACH
    most = max(1, multiprocessors * each_one // max(1, slices * g.outers))
    if sums.count:
        each = g.outers * sums.count * sums.columns * 8
        room = SCRATCH_BYTES // each
        if room == 0:
            raise Unmappable("too many results for the scratch buffer")
        most = min(most, room) if needed > _ALONE else 1
    elif g.row_extents:
        most = max(most, math.ceil(needed / 16))
    return max(1, min(needed, most))


def _lines(body: Body, sums: Sums, head: list[str], unroll: int) -> list[str]:
    across, down, lanes, rows, chunks = head
    declared, assigned, stored = body.stored(body.traced.stores)
    hoisted = body.hoisted()
    raw, loads = body.raw_loads(body.exprs)
    decode = body.digits()
    row = "const i64 row = base + u * step;"
    return [
        f"const int t = threadIdx.x, across = (int){across}, down = (int){down};",
        f"const int lanes = (int){lanes}, lane = by * across + t % across, r0 = t / across;",
        f"const i64 c = (i64)lane * V, rows = {rows}, chunks = {chunks};",
        "const i64 outer = bx / chunks, begin = outer * rows, end = begin + rows;",
        "const i64 step = chunks * down; (void)c; (void)nbx; (void)r0;",
        *sums.declared(),
        "if (lane < lanes) {",
        *hoisted,
        *sums.shifts(body, raw, loads, decode),
        "for (i64 base = begin + (bx % chunks) * down + r0; base < end; base += step * U) {",
        *raw,
        f"UNROLL for (int u = 0; u < U; u++) {{ {row} if (row < end) {{",
        *decode,
        *loads,
        "} }",
        f"UNROLL for (int u = 0; u < U; u++) {{ {row} if (row < end) {{",
        *decode,
        *body.opened(body.exprs),
        *declared,
        "UNROLL for (int j = 0; j < V; j++) {",
        *body.computed(body.exprs),
        *assigned,
        *sums.added(body),
        "}",
        *stored,
        "} } } }",
    ]
