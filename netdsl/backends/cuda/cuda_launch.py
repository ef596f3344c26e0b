"""Launches: generated source with its grid and its arguments, before buffers have addresses."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.plan.placement import Placement

SCRATCH = "scratch"
"""The buffer that holds partial sums between the two stages of a reduction."""
SCRATCH_BYTES = 32 << 20
WORKSPACE = "workspace"
"""The buffer that one kernel at a time may use, up to this size."""
WORKSPACE_BYTES = 256 << 20
THREADS_PER_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a byte in a buffer."""

    buffer: str
    start: int


KernelArgument = int | Address
"""An argument of a generated kernel, always 64 bits wide: a number or an address."""


@dataclass(frozen=True)
class CudaLaunch:
    """A launch of the kernel `name` in `source`, on `grid` blocks of `threads`. It is passed the
    addresses of `tables`, which are copied to the device once, then `arguments`."""

    source: str
    name: str
    grid: tuple[int, int]
    threads: int
    arguments: tuple[KernelArgument, ...] = ()
    tables: tuple[tuple[KernelArgument, ...], ...] = ()


@dataclass(frozen=True)
class DeviceFunction:
    """A kernel as a device function `body` of its arguments and of its block's column and row, and
    the number of columns. `chunks` blocks share the rows of one result, and leave `scratch_bytes`
    bytes of partial results in the scratch buffer."""

    source: str
    grid: tuple[int, int]
    threads: int
    arguments: tuple[KernelArgument, ...]
    chunks: int = 1
    scratch_bytes: int = 0


def element_address(place: Placement, offset: int) -> Address:
    """Returns the address of element `offset` of a buffer."""
    return Address(place.buffer, offset * place.itemsize)
