"""Small tasks written by hand: zeros around images, and sums folded into what is asked for."""

from __future__ import annotations

import math

from netdsl.backends.cpu.intrinsics import load_f32, store_f32
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.backends.cpu.record import Record

SUM, MEAN, MAXIMUM, MOMENTS, NORMALIZE_DMOMENTS, TRUST_RATIO = range(6)
"""What sums are folded into."""


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
    """Zeros around images `first` to `last`; args: BorderArgs."""
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


class ReductionArgs(Record):
    """Where sums were gathered: bytes of a slot and of a sum in it; parts of a group; the period of
    channels and how often it repeats; whether all becomes one number; the results."""

    slots: int
    slot: int
    sum: int
    parts: int
    period: int
    repeat: int
    single: int
    results: int
    result_count: int


class ReductionResultArgs(Record):
    """What is made of some sums: of which kind, the first of them, where it is written with bytes
    to the next channel, to the second row and to the next group; how many elements were summed;
    what moments were taken relative to; the variance with bytes to its next channel and group; the
    attributes of the node."""

    kind: int
    first_sum: int
    target: int
    channel: int
    second: int
    group: int
    count: int
    shift: int
    variance: int
    variance_channel: int
    variance_group: int
    eps: float
    trust: float
    weight_decay: float


@numba_loop
def finalize_reductions(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Sums of the parts of groups `first` to `last`, a row of channels each, or one number; args:
    FoldArgs."""
    f = ReductionArgs.at(args)
    parts, slot, period, second = f.parts, f.slot, f.period, f.sum
    channels, repeat, width = period, f.repeat, 1
    if f.single:
        channels, repeat, width = 1, 1, period * repeat
    for g in range(first, last):
        for i in range(f.result_count):
            r = ReductionResultArgs.nth(f.results, i)
            kind = r.kind
            base = f.slots + g * parts * slot + r.first_sum * second
            for c in range(channels):
                a = -math.inf if kind == MAXIMUM else 0.0
                b = 0.0
                for p in range(parts):
                    for k in range(repeat):
                        at = base + p * slot + 4 * (c + k * period)
                        for j in range(width):
                            value = load_f32(at + 4 * j)
                            if kind == MAXIMUM:
                                a = value if value > a or value != value else a
                                continue
                            a += value
                            if kind >= MOMENTS:
                                b += load_f32(at + second + 4 * j)
                to = r.target + c * r.channel + g * r.group
                if kind in (SUM, MAXIMUM):
                    store_f32(to, a)
                elif kind == MEAN:
                    store_f32(to, a / r.count)
                elif kind == MOMENTS:
                    mean = a / r.count
                    store_f32(to, load_f32(r.shift + 4 * c) + mean)
                    store_f32(to + r.second, max(b / r.count - mean * mean, 0.0))
                elif kind == TRUST_RATIO:
                    norm, gradient = math.sqrt(a), math.sqrt(b)
                    scale = gradient + r.weight_decay * norm + r.eps
                    has_both = norm > 0.0 and gradient > 0.0
                    store_f32(to, r.trust * norm / scale if has_both else 1.0)
                else:
                    place = r.variance + c * r.variance_channel + g * r.variance_group
                    root = 1.0 / math.sqrt(load_f32(place) + r.eps)
                    store_f32(to, -a * root)
                    store_f32(to + r.second, -0.5 * b * root * root * root)
