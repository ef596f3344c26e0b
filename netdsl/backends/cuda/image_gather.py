"""Gathers batches of images from a set on the GPU, cropped, flipped and cut out."""

from __future__ import annotations

from functools import cache
from math import gcd

from netdsl.backends.cuda.cuda_launch import THREADS_PER_BLOCK, CudaLaunch
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.lazy_batch import BLACK, GREY, TABLE_COLUMNS, LazyBatch

_MAX_BLOCKS = 4096
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


def gather_launch(batch: LazyBatch, images: int, table: int, target: int) -> CudaLaunch:
    """Returns the launch that writes a batch to `target`, from the set at `images` and the batch's
    table at `table`, all addresses on the device."""
    n, h, w, c = batch.shape
    source_height, source_width = batch.source.shape[1:3]
    table_width, size = len(TABLE_COLUMNS) + 4 * batch.transforms.squares.shape[1], h * w * c
    vector_width = gcd(size, target, 4)
    source = _generate_source(("TALL", source_height), ("WIDE", source_width), ("C", c), ("W", w), ("SIZE", size),
                     ("NUMBERS", table_width), ("V", vector_width))  # fmt: skip
    count = n * size // vector_width
    blocks = min(-(-count // THREADS_PER_BLOCK), _MAX_BLOCKS)
    return CudaLaunch(
        source, "picked", (blocks, 1), THREADS_PER_BLOCK, (images, table, target, count)
    )


@cache
def _generate_source(*defined: tuple[str, int]) -> str:
    columns = ((name, i) for i, name in enumerate((*TABLE_COLUMNS, "SQUARES")))
    macros = "".join(f"#define {name} {value}\n" for name, value in (*defined, *columns))
    return f"{PRELUDE}\ntypedef unsigned char u8;\n{macros}{_SOURCE.format(grey=GREY, black=BLACK)}"
