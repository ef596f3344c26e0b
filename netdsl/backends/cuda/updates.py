"""Many small maps as few launches: parts of the same source share one, whatever their sizes."""

from __future__ import annotations

from collections.abc import Sequence

from netdsl.backends.cuda.geometry import geometry
from netdsl.backends.cuda.launch import Launch, Word
from netdsl.backends.cuda.maps import Mapped, mapped_of
from netdsl.backends.cuda.trace import Traced


def together(parts: Sequence[Traced], multiprocessors: int) -> tuple[Launch, ...]:
    """One launch for all parts that have the same body.

    Its words are a table: for each part its arguments and its grid; after the table, for each
    block, the part that it belongs to and its place in it.
    """
    alike: dict[str, list[Mapped]] = {}
    for traced in parts:
        mapped = mapped_of(traced, geometry(traced), multiprocessors)
        alike.setdefault(mapped.source, []).append(mapped)
    return tuple(_many(source, group) for source, group in alike.items())


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
