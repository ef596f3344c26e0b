"""How a product is cut into register tiles: how wide its column blocks and how long its strips of
pixels are, chosen by a count of the cycles that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import most_rows, widths

CHUNK = 32 * 1024
"""Bytes of a column block's weights that stay in the first cache while the pixels pass by."""
_LINE, _SETS, _WAYS = 64, 64, 12
"""Of the first cache. Lines that lie a multiple of 4 KiB apart share a set."""
_LATENCY = 4
"""Cycles of a multiplication; two begin in each, and two loads."""
_CALL = 60
"""Cycles that a call of a tile takes beside its products, about."""


@dataclass(frozen=True)
class Blocking:
    """Tiles of at most `rows` pixels and `vectors` vectors of columns."""

    vectors: int
    rows: int

    def columns(self, count: int) -> list[tuple[int, int, int]]:
        """Column blocks: first column, vectors, columns; all but the last ones alike."""
        lanes = width()
        left, found, at = -(-count // lanes), [], 0
        while left > 0:
            take = next(v for v in widths() if v <= min(self.vectors, left))
            found.append((at, take, min(count - at, take * lanes)))
            at += take * lanes
            left -= take
        return found

    def strips(self, pixels: int) -> tuple[int, int, int]:
        """Long strips, their length, and strips of one pixel less."""
        count = -(-pixels // self.rows)
        length = -(-pixels // count)
        longer = pixels - count * (length - 1)
        return longer, length, count - longer

    def cycles(self, pixels: int, columns: int, depth: int) -> float:
        """What a row of pixels costs."""
        longer, length, shorter = self.strips(pixels)
        whole, left = divmod(-(-columns // width()), self.vectors)
        blocks = [(whole, self.vectors), *((1, v) for _, v, _ in self.columns(left * width()))]
        return sum(
            many * (longer * _cycles(length, v, depth) + shorter * _cycles(length - 1, v, depth))
            for many, v in blocks
        )


def _cycles(rows: int, vectors: int, depth: int) -> float:
    calls = math.ceil(depth * vectors * width() * 4 / CHUNK)
    step = max(rows * vectors / 2, (rows + vectors) / 2, _LATENCY)
    return depth * step + calls * (_CALL + rows * vectors)


def blockings(step: int) -> list[Blocking]:
    """The tiles there are for pixels that lie `step` bytes apart: the lines that a tile reads from
    its pixels have to stay in the first cache together."""
    sets = _SETS // math.gcd(step // _LINE, _SETS) if step % _LINE == 0 else _SETS
    most = sets * _WAYS // 2
    return [Blocking(v, min(most_rows(v), most)) for v in widths()]


@cache
def blocking(pixels: int, columns: int, depth: int, step: int) -> Blocking:
    """The cheapest tiles for rows of so many pixels, `step` bytes apart."""
    return min(blockings(step), key=lambda b: b.cycles(pixels, columns, depth))


@cache
def row_of(count: int, most: int, columns: int, depth: int, step: int) -> int:
    """Rows of a matrix as pixels of an image: the divisor of `count`, at most `most`, that tiles
    fill best."""

    def each(pixels: int) -> float:
        best = blocking(pixels, columns, depth, step)
        return best.cycles(pixels, columns, depth) / pixels

    found = min((d for d in range(1, most + 1) if count % d == 0), key=lambda d: (each(d), -d))
    return found if each(found) <= 1.5 * each(count) else count
