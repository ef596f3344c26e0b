"""Layers without weights that move an image's values: slices, borders, shuffles, enlargement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netdsl.errors import fail
from netdsl.layers.layer import Layer, Site, Widths, channel_count, image_shape
from netdsl.parameter_types import Extent, Float, Integer, ListOf, NoneLiteral, OneOf, TypeMismatch
from netdsl.signature import Param, Signature
from netdsl.types import Node
from netdsl.values import Value


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
    for size, cut, axis in zip(
        shape[1:], (height, width, channels), ("height", "width", "channels"), strict=True
    ):
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
    site: Site, x: Node, height: PadAmount, width: PadAmount, channels: PadAmount, value: float
) -> Node:
    image_shape(x, "pad")
    pairs = [(0, 0)]
    pairs += [(a[0], a[-1]) for a in (height, width, channels)]
    low, high = zip(*pairs, strict=True)
    return site.b.pad(x, low=low, high=high, interior=(0, 0, 0, 0), value=value)


def _narrow_padding(arguments: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Pads to the narrowed value of the padded count, split between the sides as before."""
    low, high = arguments["channels"][0], arguments["channels"][-1]
    if low + high == 0:
        return {}
    added_channels = max(0, widths.narrow(widths.original + low + high) - widths.narrowed)
    before = added_channels * low // (low + high)
    return {"channels": (before, added_channels - before)}


def _upsample(site: Site, x: Node, factor: tuple[int, int]) -> Node:
    n, h, w, c = image_shape(x, "upsample")
    fh, fw = factor
    column = site.b.reshape(x, shape=(n, h, 1, w, 1, c))
    repeated = site.b.broadcast(column, shape=(n, h, fh, w, fw, c))
    return site.b.reshape(repeated, shape=(n, h * fh, w * fw, c))


def _shuffle(site: Site, x: Node, groups: int) -> Node:
    """Channel shuffle (Zhang et al. 2018): g groups of n channels become n groups of g."""
    c = channel_count(x)
    if c % groups:
        raise fail(
            f"{c} channels do not divide into {groups} groups",
            help="`shuffle` needs a number of channels that is a multiple of `groups`",
        )
    b, last = site.b, x.type.rank
    split = b.reshape(x, shape=(*x.type.shape[:-1], groups, c // groups))
    mixed = b.transpose(split, perm=(*range(last - 1), last, last - 1))
    return b.reshape(mixed, shape=x.type.shape)


_PAD_AMOUNT = OneOf((ListOf(Integer(0, 65536), 1), ListOf(Integer(0, 65536), 2)))
_SLICE_RANGE = OneOf((_SliceRange(), NoneLiteral()))

LAYERS = (
    Layer(
        "slice",
        Signature(
            "slice",
            (
                Param("height", _SLICE_RANGE, None),
                Param("width", _SLICE_RANGE, None),
                Param("channels", _SLICE_RANGE, None),
                Param("step", Extent(), 1, "keep every n-th pixel"),
            ),
        ),
        _slice,
        doc="part of an image, or every second pixel of it",
        narrow=_narrow_slice,
    ),
    Layer(
        "pad",
        Signature(
            "pad",
            (
                Param("height", _PAD_AMOUNT, 0),
                Param("width", _PAD_AMOUNT, 0),
                Param("channels", _PAD_AMOUNT, 0),
                Param("value", Float(), 0.0),
            ),
        ),
        _pad,
        doc="a border: one amount, or [before, after]",
        narrow=_narrow_padding,
    ),
    Layer(
        "upsample",
        Signature("upsample", (Param("factor", Extent()),)),
        _upsample,
        doc="every pixel repeated",
    ),
    Layer(
        "shuffle",
        Signature("shuffle", (Param("groups", Integer(1, 10**8)),)),
        _shuffle,
        doc="the first channel of each group, then the second of each (Zhang et al. 2018)",
        narrow=lambda arguments, w: {"groups": w.max_groups(arguments["groups"], w.narrowed)},
    ),
)
