"""A launch: generated source, its geometry and its arguments, before anything has an address."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.plan.placement import Placement

SCRATCH = "scratch"
"""The buffer that holds partial sums between the two stages of a reduction."""
SCRATCH_BYTES = 32 << 20
WORKSPACE = "workspace"
"""The buffer that one kernel may use for itself, up to this size."""
WORKSPACE_BYTES = 256 << 20
THREADS = 256


@dataclass(frozen=True, slots=True)
class Address:
    """A byte in a buffer."""

    buffer: str
    start: int


Word = int | Address
"""Every argument of a generated kernel is 64 bits wide: a number, or an address."""


@dataclass(frozen=True)
class Launch:
    """`name` of the kernel in `source`, on `grid` blocks of `threads`. Its arguments are the
    addresses of `tables`, which are written to the device once, and `words`."""

    source: str
    name: str
    grid: tuple[int, int]
    threads: int
    words: tuple[Word, ...] = ()
    tables: tuple[tuple[Word, ...], ...] = ()


@dataclass(frozen=True)
class Mapped:
    """A kernel as a device function `body` of its words and of where its block is: column, row,
    columns in all. `chunks` blocks share the rows of one result, and `left` bytes of partial ones
    lie in the scratch buffer after it."""

    source: str
    grid: tuple[int, int]
    threads: int
    words: tuple[Word, ...]
    chunks: int = 1
    left: int = 0


def address_of(place: Placement, offset: int) -> Address:
    """Where the element `offset` of a buffer begins."""
    return Address(place.buffer, offset * place.itemsize)
