"""Layers without weights that move an image's values: slices, borders, shuffles, enlargement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netdsl.errors import fail
from netdsl.ir.views import slice_axis
from netdsl.layers.layer import (
    MAX_PARTS,
    Layer,
    Site,
    Widths,
    advise_groups,
    channel_count,
    image_shape,
)
from netdsl.parameter_types import (
    OPTIONAL_EXTENT,
    Choice,
    Extent,
    Float,
    Integer,
    ListOf,
    NoneLiteral,
    OneOf,
    Shape,
    TypeMismatch,
)
from netdsl.signature import Param, Signature
from netdsl.types import Node, dims
from netdsl.values import Symbol, Value


@dataclass(frozen=True)
class _SampleShape(Shape):
    """The shape that a sample gets. No size of it is inferred."""

    def accept(self, value: Value) -> tuple[int, ...]:
        sizes = value if isinstance(value, tuple) else (value,)
        if -1 in sizes:
            raise fail(
                "`reshape` does not infer sizes: give all of them",
                help="`flatten` turns each sample into one row; `in.height`, `in.width` and "
                "`in.channels` are the sizes of the input",
            )
        return super().accept(value)


@dataclass(frozen=True)
class _SliceRange:
    """[start, stop]; `stop` is exclusive."""

    def accept(self, value: Value) -> tuple[int, int]:
        if not isinstance(value, tuple) or len(value) != 2:
            raise TypeMismatch("[start, stop]")
        start, stop = (Integer(0).accept(v) for v in value)
        if stop <= start:
            raise TypeMismatch("[start, stop] with stop after start")
        return start, stop


def _slice(
    site: Site,
    x: Node,
    height: tuple[int, int] | None,
    width: tuple[int, int] | None,
    channels: tuple[int, int] | None,
    step: tuple[int, int],
) -> Node:
    shape = image_shape(x, "slice")
    cuts = [(0, shape[0])]
    for size, cut, axis in zip(shape[1:], (height, width, channels), _AXIS_NAMES, strict=True):
        if cut is not None and cut[1] > size:
            raise fail(f"`{axis}` of the slice ends at {cut[1]}, the image has {size}")
        cuts.append(cut or (0, size))
    start, stop = zip(*cuts, strict=True)
    return site.b.slice(x, start=start, stop=stop, step=(1, *step, 1))


def _narrow_slice(arguments: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Keeps the same fraction of the channels; adjacent slices stay adjacent."""
    cut = arguments["channels"]
    if cut is None:
        return {}
    start, stop = (at * widths.narrowed // widths.original for at in cut)
    return {"channels": (start, max(stop, start + 1))}


PadAmount = tuple[int, ...]


def _pad(
    site: Site,
    x: Node,
    height: PadAmount,
    width: PadAmount,
    channels: PadAmount,
    value: float,
    mode: str,
) -> Node:
    image_shape(x, "pad")
    pairs = [(a[0], a[-1]) for a in (height, width, channels)]
    if mode == "constant":
        low, high = zip((0, 0), *pairs, strict=True)
        return site.b.pad(x, low=low, high=high, interior=(0, 0, 0, 0), value=value)
    if value != 0:
        raise fail(
            f"`value` of `pad` cannot be used with `mode={mode}`",
            help="`mode=constant` fills the border with `value`; `edge` and `reflect` fill it "
            "from the image",
        )
    for axis, (name, pair) in enumerate(zip(_AXIS_NAMES, pairs, strict=True), start=1):
        size = x.type.shape[axis]
        if max(pair) > MAX_PARTS:
            raise fail(
                f"`pad(mode={mode})` adds at most {MAX_PARTS:,} to a side, not {max(pair):,}"
            )
        if mode == "reflect" and max(pair) >= size:
            raise fail(
                f"`pad(mode=reflect)` cannot add {max(pair)} to a {name} of {size}",
                help=f"a reflection does not repeat the edge: at most {size - 1} here; "
                f"`mode=edge` allows more",
            )
        x = _extend(site, x, axis, *pair, mode)
    return x


def _extend(site: Site, x: Node, axis: int, low: int, high: int, mode: str) -> Node:
    """Repeats the edges of an axis, or reflects what is next to them."""
    if not low and not high:
        return x
    last = x.type.shape[axis] - 1
    if mode == "edge":
        before, after = [0] * low, [last] * high
    else:
        before, after = list(range(low, 0, -1)), [last - 1 - i for i in range(high)]
    parts = ([slice_axis(site.b, x, axis, i, i + 1) for i in side] for side in (before, after))
    first, second = parts
    return site.b.concat(*first, x, *second, axis=axis)


def _narrow_padding(arguments: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Pads to the narrowed value of the padded count, split between the sides as before."""
    low, high = arguments["channels"][0], arguments["channels"][-1]
    if low + high == 0:
        return {}
    added_channels = max(0, widths.narrow(widths.original + low + high) - widths.narrowed)
    before = added_channels * low // (low + high)
    return {"channels": (before, added_channels - before)}


def _upsample(
    site: Site, x: Node, factor: tuple[int, int] | None, mode: str, to: tuple[int, int] | None
) -> Node:
    n, h, w, c = image_shape(x, "upsample")
    fh, fw = _find_factor((h, w), factor, to)
    if mode == "bilinear":
        if max(fh, fw) > MAX_PARTS:
            raise fail(
                f"a bilinear `upsample` takes factors up to {MAX_PARTS:,}, not {max(fh, fw):,}"
            )
        return _interpolate(site, _interpolate(site, x, 1, fh), 2, fw)
    column = site.b.reshape(x, shape=(n, h, 1, w, 1, c))
    repeated = site.b.broadcast(column, shape=(n, h, fh, w, fw, c))
    return site.b.reshape(repeated, shape=(n, h * fh, w * fw, c))


def _find_factor(
    size: tuple[int, int], factor: tuple[int, int] | None, to: tuple[int, int] | None
) -> tuple[int, int]:
    """How many times higher and wider the result is, given that or the result's size."""
    if factor is not None and to is None:
        return factor
    if factor is not None or to is None:
        given = "needs `factor` or" if to is None else "has both `factor` and"
        raise fail(
            f"`upsample` {given} `to`",
            help="`upsample(2)` makes an image twice as high and wide, `upsample(to=64x64)` makes "
            "it 64x64",
        )
    if any(wanted % side for wanted, side in zip(to, size, strict=True)):
        smaller = [max(1, wanted // side) * side for wanted, side in zip(to, size, strict=True)]
        larger = [-(-wanted // side) * side for wanted, side in zip(to, size, strict=True)]
        possible = list(dict.fromkeys((dims(smaller), dims(larger))))
        if any(wanted < side for wanted, side in zip(to, size, strict=True)):
            raise fail(
                f"`upsample(to={dims(to)})` is smaller than the image, which is {dims(size)}",
                help=f"`avgpool(to={dims(to)})` or `maxpool(to={dims(to)})` makes an image smaller",
            )
        raise fail(
            f"`upsample(to={dims(to)})` needs a multiple of the image size, which is {dims(size)}",
            help=f"the nearest sizes that work: {' and '.join(possible)}"
            if len(possible) > 1
            else f"the nearest size that works: {possible[0]}",
        )
    return to[0] // size[0], to[1] // size[1]


def _interpolate(site: Site, x: Node, axis: int, factor: int) -> Node:
    """Linear interpolation along an axis between the centres of pixels; beyond the outermost ones
    their values stay.

    Each interval between neighbours, and before and after all, has `factor` pixels of the result;
    the first and the last interval are cut in the middle of an edge pixel."""
    if factor == 1:
        return x
    b, size = site.b, x.type.shape[axis]
    wide = _extend(site, x, axis, 1, 1, "edge")
    low, high = (slice_axis(site.b, wide, axis, i, i + size + 1) for i in (0, 1))
    before, after = x.type.shape[:axis], x.type.shape[axis + 1 :]
    slope, offset = b.sub(high, low), 0.5 if factor % 2 == 0 else 0.0
    pixels = [b.add(low, b.mul(slope, b.const((p + offset) / factor))) for p in range(factor)]
    split = [b.reshape(y, shape=(*before, size + 1, 1, *after)) for y in pixels]
    found = b.concat(*split, axis=axis + 1)
    found = b.reshape(found, shape=(*before, (size + 1) * factor, *after))
    first = (factor + 1) // 2
    return slice_axis(site.b, found, axis, first, first + size * factor)


def _pixel_shuffle(site: Site, x: Node, factor: tuple[int, int]) -> Node:
    """Shi et al. 2016: pixel (i, j) of a block is channel (c * height + i) * width + j, as in
    PyTorch."""
    n, h, w, c = image_shape(x, "pixel_shuffle")
    fh, fw = factor
    if c % (fh * fw):
        raise fail(
            f"{c} channels cannot be divided into blocks of {fh}x{fw} pixels",
            help=f"`pixel_shuffle({dims(factor) if fh != fw else fh})` needs a multiple of "
            f"{fh * fw} channels",
        )
    split = site.b.reshape(x, shape=(n, h, w, c // (fh * fw), fh, fw))
    blocks = site.b.transpose(split, perm=(0, 1, 4, 2, 5, 3))
    return site.b.reshape(blocks, shape=(n, h * fh, w * fw, c // (fh * fw)))


def _reshape(site: Site, x: Node, shape: tuple[int, ...]) -> Node:
    size, count = math.prod(x.type.shape[1:]), math.prod(shape)
    if size != count:
        raise fail(
            f"`reshape({dims(shape)})` needs {count:,} values, "
            f"but {dims(x.type.shape[1:])} has {size:,}",
            help="a reshape keeps the values of a sample and their order; `fc` or `conv` changes "
            "their number",
        )
    return site.b.reshape(x, shape=(x.type.shape[0], *shape))


def _narrow_reshape(arguments: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Divides the last axis as the channels that come in, so that the values fit."""
    *rest, last = arguments["shape"]
    scaled, remainder = divmod(last * widths.narrowed, widths.original)
    return {"shape": (*rest, widths.narrow(last) if remainder else scaled)}


def _reshape_multiple(arguments: Mapping[str, Any], channels: int) -> int:
    """Of what the channels must be a multiple so that the last axis is an integer."""
    return channels // math.gcd(channels, arguments["shape"][-1])


def _shuffle(site: Site, x: Node, groups: int) -> Node:
    """Channel shuffle (Zhang et al. 2018): g groups of n channels become n groups of g."""
    c = channel_count(x)
    if c % groups:
        raise fail(
            f"{c} channels cannot be divided into {groups} groups",
            help=advise_groups(c, "shuffle({})"),
        )
    b, last = site.b, x.type.rank
    split = b.reshape(x, shape=(*x.type.shape[:-1], groups, c // groups))
    mixed = b.transpose(split, perm=(*range(last - 1), last, last - 1))
    return b.reshape(mixed, shape=x.type.shape)


_AXIS_NAMES = ("height", "width", "channels")
_PAD_AMOUNT = OneOf((ListOf(Integer(0, 65536), 1), ListOf(Integer(0, 65536), 2)))
_SLICE_RANGE = OneOf((_SliceRange(), NoneLiteral()))

LAYERS = (
    Layer(
        "slice",
        Signature(
            "slice",
            (
                Param(
                    "height",
                    _SLICE_RANGE,
                    None,
                    "`[start, stop]`: these rows, from 0, without stop",
                ),
                Param("width", _SLICE_RANGE, None, "the same for columns"),
                Param(
                    "channels",
                    _SLICE_RANGE,
                    None,
                    "the same for channels: `[0, 32]` are the first 32",
                ),
                Param(
                    "step",
                    Extent(),
                    1,
                    "keep every n-th pixel, counted from the first row and column that is kept: "
                    "`step=2`, or `step=1x2` for columns only",
                ),
            ),
        ),
        _slice,
        doc="part of an image, its channels, or every n-th pixel",
        narrow=_narrow_slice,
    ),
    Layer(
        "pad",
        Signature(
            "pad",
            (
                Param("height", _PAD_AMOUNT, 0, "rows above and below"),
                Param("width", _PAD_AMOUNT, 0, "columns at the left and right"),
                Param("channels", _PAD_AMOUNT, 0, "channels before and after"),
                Param("value", Float(), 0.0),
                Param(
                    "mode",
                    Choice(("constant", "reflect", "edge")),
                    Symbol("constant"),
                    f"`edge` and `reflect` add at most {MAX_PARTS:,} pixels per side, `reflect` "
                    f"fewer than the image has",
                ),
            ),
        ),
        _pad,
        doc="adds a border, given as one amount for both sides or as [before, after]; it contains "
        "`value` or, with mode `edge` or `reflect`, pixels of the image",
        narrow=_narrow_padding,
    ),
    Layer(
        "upsample",
        Signature(
            "upsample",
            (
                Param(
                    "factor", OPTIONAL_EXTENT, None, "how many times higher and wider the result is"
                ),
                Param(
                    "mode",
                    Choice(("nearest", "bilinear")),
                    Symbol("nearest"),
                    f"`nearest`, or `bilinear` with factors up to {MAX_PARTS:,}",
                ),
                Param(
                    "to",
                    OPTIONAL_EXTENT,
                    None,
                    "size of the result, a multiple of the image size",
                    is_keyword_only=True,
                ),
            ),
        ),
        _upsample,
        doc="enlarges an image by repeating pixels, or by interpolating between the centres of "
        "pixels: upsample(2), or upsample(to=64x64)",
    ),
    Layer(
        "pixel_shuffle",
        Signature("pixel_shuffle", (Param("factor", Extent()),)),
        _pixel_shuffle,
        doc="enlarges an image: consecutive channels become blocks of pixels (Shi et al. 2016)",
        channel_multiple=lambda arguments, channels: math.prod(arguments["factor"]),
    ),
    Layer(
        "reshape",
        Signature(
            "reshape", (Param("shape", _SampleShape(), doc="shape of one sample, as in `input`"),)
        ),
        _reshape,
        doc="gives the values of each sample another shape, in row-major order",
        narrow=_narrow_reshape,
        channel_multiple=_reshape_multiple,
    ),
    Layer(
        "shuffle",
        Signature("shuffle", (Param("groups", Integer(1, 10**8)),)),
        _shuffle,
        doc="shuffles channels: the first of each group, then the second of each, and so on "
        "(Zhang et al. 2018)",
        narrow=lambda arguments, w: {"groups": w.max_groups(arguments["groups"], w.narrowed)},
    ),
)
