"""What a convolution, its gradient for the image and a matrix product have in common: passes over
pixels, taps and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from netdsl.backends.cpu.blocking import row_of
from netdsl.backends.cpu.columns import flat
from netdsl.backends.cpu.expression import Unsupported
from netdsl.backends.cpu.maps import Launch, Memory
from netdsl.backends.cpu.opaque import copied
from netdsl.backends.cpu.room import floats
from netdsl.backends.cpu.target import width
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple, Layout
from netdsl.types import Node

_MOST_PIXELS = 112
_FEW = 32
"""Rows of a product that are too few for packing its weights to be worth while."""


@dataclass(frozen=True)
class Tap:
    """A run of weights beside a run of the image: `offset` bytes from the first pixel, and the
    pieces of weight (bytes from a block's first) that lie one behind the other in it."""

    offset: int
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """Pixels that are computed alike: where they begin, their strides, and the taps of each."""

    image: int
    image_strides: tuple[int, int, int]
    out: int
    out_strides: tuple[int, int, int]
    rows: int
    pixels: int
    taps: tuple[Tap, ...]


@dataclass(frozen=True)
class Weights:
    """Where weights lie: bytes from column to column and along the depth; `depth` of a piece."""

    address: int
    column: int
    step: int
    depth: int


@dataclass(frozen=True)
class Group:
    """Columns that read the same channels: offsets in bytes."""

    image: int
    weight: int
    out: int
    columns: int


@dataclass
class Product:
    """A whole product, before it is cut into tasks."""

    images: int
    height: int
    scale: int
    passes: list[Pass]
    weights: Weights
    groups: list[Group]
    image_k: int
    direct: bool = False
    before: Launch = field(default_factory=Launch)


def conv(memory: Memory, kernel: Kernel, node: Node) -> tuple[Product, IntTuple]:
    w, a = memory.operand(node.args[1]), node.attrs
    (top, bottom), (left, right) = a["pad"]
    before = Launch()
    at, (sn, sh, sw) = image_of(memory, node.args[0], (top, bottom, left, right), before)
    k, r, s, c = w.layout.shape
    n, oh, ow, _ = node.type.shape
    dh, dw = a["dilation"]
    st = [4 * t for t in w.layout.strides]
    taps = []
    for i in range(r):
        columns = [(j * dw * sw, i * st[1] + j * st[2]) for j in range(s)]
        merged = sw == 4 * c and a["groups"] == 1
        taps += _merged(columns, i * dh * sh, 4 * c if merged else 0)
    image = at - top * sh - left * sw
    strides = (sn, a["stride"][0] * sh, a["stride"][1] * sw)
    one = Pass(image, strides, 0, (oh * ow * k * 4, ow * k * 4, k * 4), oh, ow, tuple(taps))
    weights = Weights(w.address + 4 * w.layout.offset, st[0], st[3], c)
    each = k // a["groups"]
    groups = [Group(g * c * 4, g * each * st[0], g * each * 4, each) for g in range(a["groups"])]
    return Product(n, oh, 1, [one], weights, groups, 4, before=before), node.type.shape


def _merged(columns: list[tuple[int, int]], row: int, pixel: int) -> list[Tap]:
    """Taps of one row of a kernel; one tap where their pixels lie one behind the other."""
    columns = sorted(columns)
    steps = {b[0] - a[0] for a, b in pairwise(columns)}
    if columns and steps <= {pixel}:
        return [Tap(row + columns[0][0], tuple(piece for _, piece in columns))]
    return [Tap(row + offset, (piece,)) for offset, piece in columns]


def dgrad(memory: Memory, kernel: Kernel, node: Node) -> tuple[Product, IntTuple]:
    g, w = (memory.operand(a) for a in node.args)
    a = node.attrs
    k, r, s, c = w.layout.shape
    n, h, wide, channels = node.type.shape
    if a["stride"][0] != a["stride"][1]:
        raise Unsupported("different strides along height and width")
    stride = a["stride"][0]
    starts = (a["pad"][0][0], a["pad"][1][0])
    rows = [_phase(p, starts[0], r, a["dilation"][0], stride) for p in range(stride)]
    columns = [_phase(p, starts[1], s, a["dilation"][1], stride) for p in range(stride)]
    need = (
        *_need(rows, h, stride, g.layout.shape[1]),
        *_need(columns, wide, stride, g.layout.shape[2]),
    )
    before = Launch()
    at, (sn, sh, sw) = image_of(memory, node.args[0], need, before)
    st = [4 * t for t in w.layout.strides]
    each = k // a["groups"]
    pixel = 4 * each if sw == 4 * k and a["groups"] == 1 else 0
    passes = []
    for ph, down in enumerate(rows[:h]):
        for pw, right in enumerate(columns[:wide]):
            taps = []
            for i, oi in down:
                across = [(oj * sw, i * st[1] + j * st[2]) for j, oj in right]
                taps += _merged(across, oi * sh, pixel)
            strides = (h * wide * channels * 4, stride * wide * channels * 4, stride * channels * 4)
            first = (ph * wide + pw) * channels * 4
            size = (-(-(h - ph) // stride), -(-(wide - pw) // stride))
            passes.append(Pass(at, (sn, sh, sw), first, strides, *size, tuple(taps)))
    weights = Weights(w.address + 4 * w.layout.offset, st[3], st[0], each)
    groups = [Group(q * each * 4, q * each * st[0], q * c * 4, c) for q in range(a["groups"])]
    return Product(n, h, stride, passes, weights, groups, 4, before=before), node.type.shape


def _phase(p: int, pad: int, kernel: int, dilation: int, stride: int) -> list[tuple[int, int]]:
    """Which taps reach the pixels p, p + stride, ...: and how far from theirs the gradient lies."""
    reached = ((i, p + pad - i * dilation) for i in range(kernel))
    return [(i, far // stride) for i, far in reached if far % stride == 0]


def _need(phases: list[list[tuple[int, int]]], size: int, stride: int, have: int) -> IntTuple:
    """Zeros that are read before and behind."""
    low = high = 0
    for p, taps in enumerate(phases):
        count = -(-(size - p) // stride)
        for _, far in taps:
            low, high = max(low, -far), max(high, far + count - have)
    return low, high


def image_of(
    memory: Memory, name: str, need: IntTuple, before: Launch
) -> tuple[int, tuple[int, int, int]]:
    """Where an image begins that has at least these zeros around it: its own place, or a copy."""
    place = memory.plan.placements[name]
    operand = memory.operand(name)
    halo = tuple(v for side in place.padding.halo for v in side) if place.padding else (0,) * 4
    layout = operand.layout
    enough = all(h >= n for h, n in zip(halo, need, strict=True))
    if enough and (layout.strides[3] == 1 or layout.shape[3] == 1):
        sn, sh, sw, _ = layout.strides
        return operand.address + 4 * layout.offset, (4 * sn, 4 * sh, 4 * sw)
    n, h, w, c = layout.shape
    top, bottom, left, right = need
    high, wide = h + top + bottom, w + left + right
    copy = floats(n * high * wide * c)
    strides = (high * wide * c, wide * c, c, 1)
    first = copy.ctypes.data + 4 * (top * strides[1] + left * strides[2])
    before.kept.append(copy)
    before.then(copied(operand, Layout((n, h, w, c), strides), first))
    return first, (4 * strides[0], 4 * strides[1], 4 * strides[2])


def matmul(memory: Memory, kernel: Kernel, node: Node) -> tuple[Product, IntTuple]:
    x, w = (memory.operand(a) for a in node.args)
    if len(w.layout.shape) != 2:
        raise Unsupported("a batch of matrix products")
    depth = x.layout.shape[-1]
    columns = w.layout.shape[0]
    axes = _lead(x.layout, columns, memory, kernel)
    (n, sn), (rows, sr), (pixels, sp) = axes
    out = (rows * pixels * columns * 4, pixels * columns * 4, columns * 4)
    sc, sk = (4 * t for t in w.layout.strides)
    sc = 4 if columns == 1 else sc
    direct = sc == 4 and n * rows * pixels <= _FEW
    one = Pass(
        x.address + 4 * x.layout.offset,
        (4 * sn, 4 * sr, 4 * sp),
        0,
        out,
        rows,
        pixels,
        (Tap(0, (0,)),),
    )
    weights = Weights(w.address + 4 * w.layout.offset, sc, sk, depth)
    step = 4 * x.layout.strides[-1]
    found = Product(n, rows, 1, [one], weights, [Group(0, 0, 0, columns)], step, direct)
    return found, (n, rows, pixels, columns)


def _lead(layout: Layout, columns: int, memory: Memory, kernel: Kernel) -> list[tuple[int, int]]:
    """The axes before the last as three: images, rows, pixels; each with its stride."""
    lead = layout.shape[:-1]
    step = flat(layout, len(lead))
    if step is None and len(lead) == 3:
        return [(s, t) for s, t in zip(lead, layout.strides, strict=False)]
    if step is None:
        raise Unsupported("rows that no stride expresses")
    beside = [memory.operand(v).layout for v in (*kernel.inputs, *kernel.outputs)]
    images = [v for v in beside if len(v.shape) == 4 and v.shape[:3] == lead]
    if len(lead) == 3 and any(flat(v, 3) is None for v in images):
        return [(s, t) for s, t in zip(lead, layout.strides, strict=False)]
    count = math.prod(lead)
    workers = memory.workers(kernel)
    most = max(6, min(_MOST_PIXELS, count // (2 * workers)))
    # few pixels are one row where there are columns enough for all threads
    wide = count <= _MOST_PIXELS and columns >= 8 * width() * workers
    pixels = count if wide else row_of(count, most, columns, layout.shape[-1], 4 * step)
    return [(1, 0), (count // pixels, pixels * step), (pixels, step)]
