"""Batches of images that are picked from a set on the GPU: which, and from where each pixel comes."""

from __future__ import annotations

from functools import cache
from math import gcd

from netdsl.backends.cuda.launch import THREADS, Launch
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.lazy_batch import BLACK, GREY, TABLE_COLUMNS, LazyBatch

_MOST_BLOCKS = 4096
_SOURCE = """
extern "C" __global__ void picked(i64 set, i64 table, i64 batch, i64 count) {{
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {{
    const i64 n = i / (SIZE / V);
    const int first = (int)(i % (SIZE / V)) * V;
    const int* of = (const int*)table + n * NUMBERS;
    const u8* image = (const u8*)set + of[NUMBER] * (i64)(TALL * WIDE * C);
    Pack<u8, V> found;
    UNROLL for (int j = 0; j < V; j++) {{
      const int c = (first + j) % C, x = (first + j) / C % W, y = (first + j) / (C * W);
      bool grey = false;
      for (const int* s = of + SQUARES; s < of + NUMBERS; s += 4) grey |= y >= s[0] && y < s[1] && x >= s[2] && x < s[3];
      const bool seen = y >= of[ROW] && y < of[ROW_END] && x >= of[COLUMN] && x < of[COLUMN_END];
      const i64 at = ((i64)(of[TOP] + y) * WIDE + of[LEFT] + of[STEP] * x) * C + c;
      found.v[j] = grey ? {grey} : seen ? image[at] : {black};
    }}
    *(Pack<u8, V>*)((u8*)batch + n * SIZE + first) = found;
  }}
}}
"""


def launch(picked: LazyBatch, there: int, table: int, target: int) -> Launch:
    """The batch written to `target` from the set that lies `there`, by its table on the device."""
    n, h, w, c = picked.shape
    tall, wide = picked.source.shape[1:3]
    numbers, size = len(TABLE_COLUMNS) + 4 * picked.transforms.squares.shape[1], h * w * c
    at_once = gcd(size, target, 4)
    source = _source(("TALL", tall), ("WIDE", wide), ("C", c), ("W", w), ("SIZE", size),
                     ("NUMBERS", numbers), ("V", at_once))  # fmt: skip
    count = n * size // at_once
    blocks = min(-(-count // THREADS), _MOST_BLOCKS)
    return Launch(source, "picked", (blocks, 1), THREADS, (there, table, target, count))


@cache
def _source(*defined: tuple[str, int]) -> str:
    columns = ((name, i) for i, name in enumerate((*TABLE_COLUMNS, "SQUARES")))
    macros = "".join(f"#define {name} {value}\n" for name, value in (*defined, *columns))
    return f"{PRELUDE}\ntypedef unsigned char u8;\n{macros}{_SOURCE.format(grey=GREY, black=BLACK)}"
