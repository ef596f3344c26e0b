"""Many small kernels as few launches: parts of the same source share one, whatever their sizes."""

from __future__ import annotations

from collections.abc import Sequence

from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import SCRATCH_BYTES, THREADS, Launch, Mapped, Word
from netdsl.backends.cuda.maps import bodies
from netdsl.backends.cuda.trace import Traced


def together(parts: Sequence[Traced], multiprocessors: int) -> tuple[Launch, ...]:
    """One launch for all parts that have the same body; second stages come after all first ones.

    The words of a launch are a table: for each part its arguments and its grid; after the table,
    for each block, the part that it belongs to and its place in it.
    """
    stages: tuple[dict[str, list[Mapped]], ...] = ({}, {})
    scratch = 0
    for traced in parts:
        # threads of a block that wait for each other are as many in each part
        threads = THREADS if traced.reductions else None
        found = bodies(traced, multiprocessors, scratch, threads)
        scratch += found[0].left
        for alike, body in zip(stages, found, strict=False):
            alike.setdefault(body.source, []).append(body)
    if scratch > SCRATCH_BYTES:
        raise Unmappable("too many partial results for the scratch buffer")
    return tuple(_many(source, group) for alike in stages for source, group in alike.items())


def _many(source: str, group: Sequence[Mapped]) -> Launch:
    count = len(group[0].words)
    each = count + 2
    passed = ", ".join([*(f"p[{i}]" for i in range(count)), "at % nbx", "at / nbx", "nbx"])
    text = (
        f'{source}extern "C" __global__ void many(const i64* table, const i64* blocks) {{\n'
        f"  const i64* p = table + blocks[2 * blockIdx.x] * {each};\n"
        f"  const int at = (int)blocks[2 * blockIdx.x + 1], nbx = (int)p[{count}];\n"
        f"  if (threadIdx.x < p[{count + 1}]) body({passed});\n}}\n"
    )
    table: list[Word] = []
    blocks: list[Word] = []
    for i, mapped in enumerate(group):
        table += [*mapped.words, mapped.grid[0], mapped.threads]
        for at in range(mapped.grid[0] * mapped.grid[1]):
            blocks += [i, at]
    threads = max(m.threads for m in group)
    return Launch(text, "many", (len(blocks) // 2, 1), threads, (), (tuple(table), tuple(blocks)))
