"""Layers that slide weights over an image: convolution, transposed and locally connected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from netdsl.errors import fail
from netdsl.kinds import Extent, Flag, Mismatch, OneOf, Whole
from netdsl.layers.init import INIT, INITS, initialiser
from netdsl.layers.layer import Layer, Site, image_of
from netdsl.ops.windows import Pads, Pair, out_size, reach
from netdsl.signature import Chosen, OneFrom, Param, Signature
from netdsl.types import Node, dims
from netdsl.values import Call, Size, Symbol, Value


@dataclass(frozen=True)
class Padding:
    """`same`, one number, `1x2` for height and width, or [top, bottom, left, right]."""

    def accept(self, value: Value) -> str | Pads:
        if isinstance(value, Symbol) and value.name == "same":
            return "same"
        if isinstance(value, tuple) and len(value) == 4:
            t, b, left, right = (Whole(0, 65536).accept(v) for v in value)
            return (t, b), (left, right)
        if isinstance(value, Size | int | float | tuple):
            h, w = Extent(0).accept(value)
            return (h, h), (w, w)
        raise Mismatch("`same`, a number, a size such as `1x2`, or [top, bottom, left, right]")


def pads(pad: str | Pads, kernel: Pair, dilation: Pair = (1, 1)) -> Pads:
    """Padding in pixels. `same` makes the output ceil(size / stride): the kernel's reach less one,
    the odd pixel below and to the right."""
    if not isinstance(pad, str):
        return pad
    sides = [reach(k, d) - 1 for k, d in zip(kernel, dilation, strict=True)]
    (t, h), (left, w) = ((s // 2, s) for s in sides)
    return (t, h - t), (left, w - left)


def _weight_norm(site: Site, shape: tuple[int, ...], init: Chosen) -> Node:
    """g * v / |v| for each output channel, Salimans & Kingma 2016."""
    b = site.b
    v = site.param("weight_v", shape, init)
    g = site.param("weight_g", (shape[0],), initialiser("ones"))
    axes = tuple(range(1, len(shape)))
    length = b.sqrt(b.reduce_sum(b.mul(v, v), axes=axes, keepdims=True))
    return b.mul(b.div(v, length), b.reshape(g, shape=(shape[0], *(1 for _ in axes))))


@dataclass(frozen=True)
class Weight:
    """An initialiser, or one wrapped in `weightnorm(...)`."""

    def accept(self, value: Value) -> Chosen:
        name = value.name if isinstance(value, Call | Symbol) else None
        if name != "weightnorm":
            return INIT.accept(value)
        table = {"weightnorm": _WEIGHT_NORM}
        return OneFrom("initialiser", {**INITS, **table}).accept(value)


@dataclass(frozen=True)
class _Wrapped:
    signature: Signature


_WEIGHT_NORM = _Wrapped(Signature("weightnorm", (Param("init", INIT, Symbol("he")),)))

WEIGHT = Param(
    "weight", Weight(), Symbol("he"), "initialiser of the weights, or weightnorm(initialiser)"
)
BIAS = Param("bias", OneOf((Flag(), INIT)), True, "`no`, `yes` or an initialiser")


def weight(site: Site, shape: tuple[int, ...], init: Chosen) -> Node:
    """A layer's weight: a state, or whatever is computed from states."""
    if init.name == "weightnorm":
        return _weight_norm(site, shape, init.arguments["init"])
    return site.param("weight", shape, init)


def biased(site: Site, y: Node, bias: bool | Chosen) -> Node:
    """`y` with a learnable value added to each channel, unless bias is `no`."""
    if bias is False:
        return y
    init = initialiser("zeros") if bias is True else bias
    return site.b.add(y, site.param("bias", y.type.shape[-1:], init))


def _conv(
    site: Site,
    x: Node,
    channels: int,
    kernel: Pair,
    stride: Pair,
    pad: str | Pads,
    dilation: Pair,
    groups: int,
    **states: Any,
) -> Node:
    c = image_of(x, "conv")[3]
    if c % groups or channels % groups:
        raise fail(
            f"{c} channels in and {channels} out do not divide into {groups} groups",
            help="both must be multiples of `groups`",
        )
    w = weight(site, (channels, *kernel, c // groups), states["weight"])
    y = site.b.conv2d(
        x,
        w,
        stride=stride,
        pad=pads(pad, kernel, dilation),
        dilation=dilation,
        groups=groups,
    )
    return biased(site, y, states["bias"])


def _convtranspose(
    site: Site,
    x: Node,
    channels: int,
    kernel: Pair,
    stride: Pair,
    pad: Pads | str,
    output_pad: Pair,
    **states: Any,
) -> Node:
    _, h, w, c = image_of(x, "convtranspose")
    edges = pads(pad, kernel)
    size = tuple(
        (n - 1) * s + k - sum(p) + extra
        for n, s, k, p, extra in zip((h, w), stride, kernel, edges, output_pad, strict=True)
    )
    if min(size) < 1:
        raise fail(f"padding leaves nothing of the {dims(size)} output")
    if any(extra >= s for extra, s in zip(output_pad, stride, strict=True)):
        raise fail("`output_pad` must be smaller than the stride")
    weights = weight(site, (c, *kernel, channels), states["weight"])
    y = site.b.conv2d_dgrad(x, weights, size=size, stride=stride, pad=edges)
    return biased(site, y, states["bias"])


def _local(
    site: Site, x: Node, channels: int, kernel: Pair, stride: Pair, pad: Any, **states: Any
) -> Node:
    """im2col, then for each place its own matrix: einsum nhwp,hwkp -> nhwk."""
    b = site.b
    _, h, w, _ = image_of(x, "local")
    edges = pads(pad, kernel)
    oh, ow = out_size((h, w), kernel, stride, edges)
    columns = b.im2col(x, kernel=kernel, stride=stride, pad=edges)
    w_node = weight(site, (oh, ow, channels, columns.type.shape[3]), states["weight"])
    product = b.matmul(b.transpose(columns, perm=(1, 2, 0, 3)), w_node)
    y = b.transpose(product, perm=(2, 0, 1, 3))
    if states["bias"] is False:
        return y
    init = initialiser("zeros") if states["bias"] is True else states["bias"]
    return b.add(y, site.param("bias", (oh, ow, channels), init))


_CHANNELS = Param("channels", Whole(1, 10**8), doc="output channels")
_KERNEL = Param("kernel", Extent(), doc="height x width")
_STRIDE = Param("stride", Extent(), 1)
_PAD = Param("pad", Padding(), 0, "`same`, pixels, or [top, bottom, left, right]")

LAYERS = (
    Layer(
        "conv",
        Signature(
            "conv",
            (
                _CHANNELS,
                _KERNEL,
                _STRIDE,
                _PAD,
                Param("dilation", Extent(), 1),
                Param("groups", Whole(1, 10**8), 1),
                BIAS,
                WEIGHT,
            ),
        ),
        _conv,
        doc="convolution with learnable weights K x R x S x C/groups",
    ),
    Layer(
        "convtranspose",
        Signature(
            "convtranspose",
            (
                _CHANNELS,
                _KERNEL,
                _STRIDE,
                _PAD,
                Param("output_pad", Extent(0), 0, "pixels added below and to the right"),
                BIAS,
                WEIGHT,
            ),
        ),
        _convtranspose,
        doc="transposed convolution: enlarges by its stride",
    ),
    Layer(
        "local",
        Signature("local", (_CHANNELS, _KERNEL, _STRIDE, _PAD, BIAS, WEIGHT)),
        _local,
        doc="locally connected: a convolution whose weights differ from place to place",
    ),
)
