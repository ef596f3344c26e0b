"""Tasks that write the zeros around images."""

from __future__ import annotations

from netdsl.backends.cpu.intrinsics import store_f32
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.backends.cpu.record import Record


class HaloArgs(Record):
    """An image with its halo: where it begins, bytes to the next image, row and pixel, and how many
    rows and pixels of zeros there are on each side."""

    address: int
    image: int
    row: int
    pixel: int
    rows: int
    columns: int
    top: int
    bottom: int
    left: int
    right: int
    channels: int


@numba_loop
def clear_halo(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Zeros around images `first` to `last`; args: HaloArgs."""
    a = HaloArgs.at(args)
    low, high, left, right = a.top, a.rows - a.bottom, a.left, a.columns - a.right
    columns, pixel, channels = a.columns, a.pixel, a.channels
    for n in range(first, last):
        for h in range(a.rows):
            line = a.address + n * a.image + h * a.row
            outside = h < low or h >= high
            for w in range(columns):
                if outside or w < left or w >= right:
                    for c in range(channels):
                        store_f32(line + w * pixel + 4 * c, 0.0)
