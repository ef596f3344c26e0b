"""How a product is cut into register tiles: how wide its column blocks and how long its strips of
pixels are, chosen by a count of the cycles that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.micro_kernel import list_vector_counts, max_rows

L1_CHUNK_BYTES = 32 * 1024
"""Bytes of a column block's weights that stay in the first cache while the pixels pass by."""
_CACHE_LINE, _L1_SETS, _L1_WAYS = 64, 64, 12
"""Of the first cache. Lines that lie a multiple of 4 KiB apart share a set."""
_FMA_LATENCY = 4
"""Cycles of a multiplication; two begin in each, and two loads."""
_CALL_CYCLES = 60
"""Cycles that a call of a tile takes beside its products, about."""


@dataclass(frozen=True)
class Blocking:
    """Tiles of at most `max_pixels` pixels and `vectors` vectors of columns."""

    vectors: int
    max_pixels: int

    def split_columns(self, count: int) -> list[tuple[int, int, int]]:
        """Column blocks: first column, vectors, columns; all but the last ones alike."""
        lanes = vector_width()
        vectors_left, found, at = -(-count // lanes), [], 0
        while vectors_left > 0:
            vectors = next(v for v in list_vector_counts() if v <= min(self.vectors, vectors_left))
            found.append((at, vectors, min(count - at, vectors * lanes)))
            at += vectors * lanes
            vectors_left -= vectors
        return found

    def split_strips(self, pixels: int) -> tuple[int, int, int]:
        """Long strips, their length, and strips of one pixel less."""
        count = -(-pixels // self.max_pixels)
        length = -(-pixels // count)
        long_strips = pixels - count * (length - 1)
        return long_strips, length, count - long_strips

    def estimate_cycles(self, pixels: int, columns: int, depth: int) -> float:
        """What a row of pixels costs."""
        long_strips, length, short_strips = self.split_strips(pixels)
        full_blocks, left = divmod(-(-columns // vector_width()), self.vectors)
        blocks = [
            (full_blocks, self.vectors),
            *((1, v) for _, v, _ in self.split_columns(left * vector_width())),
        ]
        return sum(
            many
            * (
                long_strips * _estimate_tile_cycles(length, v, depth)
                + short_strips * _estimate_tile_cycles(length - 1, v, depth)
            )
            for many, v in blocks
        )


def _estimate_tile_cycles(rows: int, vectors: int, depth: int) -> float:
    calls = math.ceil(depth * vectors * vector_width() * 4 / L1_CHUNK_BYTES)
    step = max(rows * vectors / 2, (rows + vectors) / 2, _FMA_LATENCY)
    return depth * step + calls * (_CALL_CYCLES + rows * vectors)


def list_blockings(step: int) -> list[Blocking]:
    """The tiles there are for pixels that lie `step` bytes apart: the lines that a tile reads from
    its pixels have to stay in the first cache together."""
    sets = (
        _L1_SETS // math.gcd(step // _CACHE_LINE, _L1_SETS) if step % _CACHE_LINE == 0 else _L1_SETS
    )
    max_rows_in_l1 = sets * _L1_WAYS // 2
    return [Blocking(v, min(max_rows(v), max_rows_in_l1)) for v in list_vector_counts()]


@cache
def choose_blocking(pixels: int, columns: int, depth: int, step: int) -> Blocking:
    """The cheapest tiles for rows of so many pixels, `step` bytes apart."""
    return min(list_blockings(step), key=lambda b: b.estimate_cycles(pixels, columns, depth))


@cache
def choose_row_length(count: int, max_length: int, columns: int, depth: int, step: int) -> int:
    """Rows of a matrix as pixels of an image: the divisor of `count`, at most `max_length`, that
    tiles fill best."""

    def cycles_per_pixel(pixels: int) -> float:
        best = choose_blocking(pixels, columns, depth, step)
        return best.estimate_cycles(pixels, columns, depth) / pixels

    found = min(
        (d for d in range(1, max_length + 1) if count % d == 0),
        key=lambda d: (cycles_per_pixel(d), -d),
    )
    return found if cycles_per_pixel(found) <= 1.5 * cycles_per_pixel(count) else count
