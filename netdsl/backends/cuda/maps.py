"""Map kernels: elementwise nodes over one domain, and the first stage of reductions over it."""

from __future__ import annotations

import math
from dataclasses import replace

from netdsl.backends.cuda.expression import Load, Number
from netdsl.backends.cuda.geometry import BLOCKS_EACH, REDUCING_EACH, Geometry, geometry, threads_of
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import SCRATCH, SCRATCH_BYTES, Address, Launch, Mapped
from netdsl.backends.cuda.source import LANE, ROW, Body, device_function
from netdsl.backends.cuda.sums import Sums, ending, finished
from netdsl.backends.cuda.trace import Traced

_MOST_ROWS = 65535
"""Of blocks, that a GPU takes."""
_MOST_KEPT = 192
"""Values in registers, which are 255."""
_ALONE = 4
"""Rounds of its threads in which a block adds up a result by itself: that takes no longer than to
start a second launch."""


def launches(traced: Traced, multiprocessors: int) -> tuple[Launch, ...]:
    """The launches of a traced kernel: one, and a second one where several blocks share a sum."""
    named = zip(("run", "finish"), bodies(traced, multiprocessors), strict=False)
    return tuple(_alone(name, body) for name, body in named)


def _alone(name: str, body: Mapped) -> Launch:
    names = [f"w{i}" for i in range(len(body.words))]
    given = ", ".join(f"i64 {n}" for n in names)
    (columns, rows), at = body.grid, "(int)blockIdx.x"
    where = at, "(int)blockIdx.y", "(int)gridDim.x"
    if rows > _MOST_ROWS:
        where = f"{at} % {columns}", f"{at} / {columns}", f"{columns}"
    passed = ", ".join([*names, *where])
    text = f'{body.source}extern "C" __global__ void {name}({given}) {{ body({passed}); }}\n'
    grid = (columns * rows, 1) if rows > _MOST_ROWS else body.grid
    return Launch(text, name, grid, body.threads, body.words)


def bodies(
    traced: Traced, multiprocessors: int, scratch: int = 0, threads: int | None = None
) -> tuple[Mapped, ...]:
    """The stages of a kernel. Partial sums lie from byte `scratch` of the buffer for them on; a
    block has so many `threads`, else no more than there is work for."""
    body = _light(Body(traced, geometry(traced)))
    first = _first(body, multiprocessors, scratch, threads)
    if not traced.reductions or first.chunks == 1:
        return (first,)
    return (first, ending(traced, body.g, first.chunks, scratch, threads))


def _light(body: Body) -> Body:
    """With so few elements at once that a thread's sums, and what it keeps of its lanes, have
    place in registers."""
    traced, g = body.traced, body.g
    laned = [e for e in body.exprs if body.level[id(e)] == LANE and not isinstance(e, Number)]
    kept, width = len(laned) + Sums(traced, g).count, g.width
    while width > 1 and width * kept > _MOST_KEPT and not g.digits.width:
        width //= 2
    return body if width == g.width else Body(traced, replace(g, width=width))


def _first(body: Body, multiprocessors: int, scratch: int, threads: int | None) -> Mapped:
    """What runs over the domain."""
    traced, g = body.traced, body.g
    sums = Sums(traced, g)
    across, down = threads_of(g)
    down = max(1, threads // across) if threads else down
    slices = -(-g.lanes // across)
    unroll = _unroll(body)
    chunks = _chunks(g, slices, down, unroll, multiprocessors, sums)
    head = [body.word(v) for v in (across, down, g.lanes, g.rows, chunks)]
    part = body.word(Address(SCRATCH, scratch)) if traced.reductions else "0"
    lines = _lines(body, sums, head, unroll) + sums.combined(part, across)
    if traced.reductions and chunks == 1:
        lines += finished(traced, g, sums, body.word)
    macros = f"#define V {g.width}\n#define U {unroll}\n"
    source = device_function(lines, len(body.words), macros)
    grid = (g.outers * chunks, slices)
    left = 8 * sums.count * sums.columns * g.outers * chunks
    return Mapped(source, grid, across * down, tuple(body.words), chunks, left)


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
