"""Layers without weights that join branches, slice, pad and upsample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from netdsl.errors import fail
from netdsl.layers.layer import Layer, Site, Widths, image_shape
from netdsl.parameter_types import Extent, Float, Integer, ListOf, NoneLiteral, OneOf, TypeMismatch
from netdsl.signature import Param, Signature
from netdsl.types import Node, dims
from netdsl.values import Value

_NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}


def _format_sizes(xs: Sequence[Node]) -> str:
    return " and ".join(dims(x.type.shape[1:]) for x in xs)


def _branch_mismatch_message(name: str, xs: Sequence[Node]) -> str:
    count = _NUMBER_WORDS.get(len(xs), str(len(xs)))
    return f"the {count} branches of `{name}` differ: {_format_sizes(xs)}"


def _add(site: Site, xs: Sequence[Node]) -> Node:
    if len({x.type.shape for x in xs}) > 1:
        raise fail(_branch_mismatch_message("add", xs), help=_branch_mismatch_help(xs))
    return reduce(site.b.add, xs)


def _mul(site: Site, xs: Sequence[Node]) -> Node:
    """Product; a gate of 1 x 1 x channels, or of 1 channel, is broadcast (Hu et al. 2018)."""
    if len({x.type.shape for x in xs}) > 1 and not _can_broadcast(xs):
        raise fail(_branch_mismatch_message("mul", xs), help=_branch_mismatch_help(xs))
    return reduce(site.b.mul, xs)


def _can_broadcast(xs: Sequence[Node]) -> bool:
    if any(x.type.rank != 4 for x in xs):
        return False
    return all(
        len({s for s in sizes if s != 1}) <= 1
        for sizes in zip(*(x.type.shape for x in xs), strict=True)
    )


def _branch_mismatch_help(xs: Sequence[Node]) -> str:
    ranks = {x.type.rank for x in xs}
    if len(ranks) > 1:
        return "`fc` flattens; `conv(channels, 1x1)` keeps an image of 1x1 pixels"
    if ranks == {2}:
        return "make their units equal, for example with `fc(units)` in one branch"
    sides = len({x.type.shape[1:-1] for x in xs}) > 1
    wide = len({x.type.shape[-1] for x in xs}) > 1
    if sides and wide:
        return (
            "make heights, widths and channels equal, for example with "
            "`conv(channels, 1x1, stride=2)` in one branch"
        )
    if sides:
        return "make the heights and widths equal: look at `stride` and `pad` of both branches"
    return "make the channels equal, for example with `conv(channels, 1x1)` in one branch"


def _concat(site: Site, xs: Sequence[Node]) -> Node:
    if len({x.type.shape[:-1] for x in xs}) > 1:
        mixed = len({x.type.rank for x in xs}) > 1
        sides = "channels may differ; make the heights and widths equal with `stride` and `pad`"
        raise fail(
            _branch_mismatch_message("concat", xs),
            help=_branch_mismatch_help(xs) if mixed else sides,
        )
    return site.b.concat(*xs, axis=xs[0].type.rank - 1)


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


_PAD_AMOUNT = OneOf((ListOf(Integer(0, 65536), 1), ListOf(Integer(0, 65536), 2)))
_SLICE_RANGE = OneOf((_SliceRange(), NoneLiteral()))

LAYERS = (
    Layer("add", Signature("add"), _add, "many", "sum of branches of one shape"),
    Layer(
        "mul",
        Signature("mul"),
        _mul,
        "many",
        "product of branches; a gate of 1 x 1 x channels is broadcast over the image",
    ),
    Layer("concat", Signature("concat"), _concat, "many", "branches side by side along channels"),
    Layer("identity", Signature("identity"), lambda site, x: x, doc="the input, unchanged"),
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
)
