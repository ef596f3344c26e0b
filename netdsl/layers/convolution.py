"""Convolution layers: convolution, depthwise, transposed and locally connected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netdsl.errors import fail
from netdsl.layers.init import (
    INITIALISER_KIND,
    INITIALISERS,
    ChannelInitialiser,
    Fans,
    find_initialiser,
)
from netdsl.layers.layer import Layer, Site, Widths, advise_groups, image_shape
from netdsl.ops.distributions import DISTRIBUTIONS
from netdsl.ops.windows import Pads, Pair, dilated_size, output_size
from netdsl.parameter_types import Extent, Integer, TypeMismatch
from netdsl.signature import BoundCall, CallOf, Param, Signature
from netdsl.types import Node, dims
from netdsl.values import Call, Size, Symbol, Value


@dataclass(frozen=True)
class Padding:
    """`same`, one number, `1x2` for height and width, or [top, bottom, left, right]."""

    def accept(self, value: Value) -> str | Pads:
        if isinstance(value, Symbol) and value.name == "same":
            return "same"
        if isinstance(value, tuple) and len(value) == 4:
            t, b, left, right = (Integer(0, 65536).accept(v) for v in value)
            return (t, b), (left, right)
        if isinstance(value, Size | int | float | tuple):
            h, w = Extent(0).accept(value)
            return (h, h), (w, w)
        raise TypeMismatch("`same`, a number, a size such as `1x2`, or [top, bottom, left, right]")


def resolve_padding(pad: str | Pads, kernel: Pair, dilation: Pair = (1, 1)) -> Pads:
    """Returns padding in pixels. `same` makes the output ceil(size / stride): the size of the
    dilated kernel minus one, half on each side whatever the stride, with the odd pixel at the
    bottom and right."""
    if not isinstance(pad, str):
        return pad
    sides = [dilated_size(k, d) - 1 for k, d in zip(kernel, dilation, strict=True)]
    (t, h), (left, w) = ((s // 2, s) for s in sides)
    return (t, h - t), (left, w - left)


@dataclass(frozen=True)
class WeightSpec:
    """A layer's weights: shape, fans, and the axes that one output channel sums over."""

    shape: tuple[int, ...]
    fans: Fans
    reduced_axes: tuple[int, ...]


def _weight_norm(site: Site, spec: WeightSpec, init: BoundCall) -> Node:
    """g * v / |v| for each output channel (Salimans & Kingma 2016). g starts as the expected
    length of v, so that the initialiser has the same effect as without weight norm."""
    distribution, scale = init.record.distribution(spec.fans, **init.arguments)
    if distribution == "constant" or scale == 0:
        raise fail("weight norm needs an initial direction", help="such as weightnorm(he)")
    b = site.b
    deviation = DISTRIBUTIONS[distribution].deviation(spec.shape, scale)
    length = deviation * math.sqrt(math.prod(spec.shape[a] for a in spec.reduced_axes))
    broadcast_shape = tuple(1 if a in spec.reduced_axes else s for a, s in enumerate(spec.shape))
    constant = BoundCall("constant", INITIALISERS["constant"], {"value": length})
    v = site.add_parameter("weight_v", spec.shape, init, spec.fans)
    g = site.add_parameter(
        "weight_g", tuple(s for s in broadcast_shape if s != 1) or (1,), constant
    )
    norm = b.sqrt(b.reduce_sum(b.mul(v, v), axes=spec.reduced_axes, keepdims=True))
    return b.mul(b.div(v, norm), b.reshape(g, shape=broadcast_shape))


@dataclass(frozen=True)
class Weight:
    """An initialiser, or one wrapped in `weightnorm(...)`."""

    def accept(self, value: Value) -> BoundCall:
        name = value.name if isinstance(value, Call | Symbol) else None
        if name != "weightnorm":
            return INITIALISER_KIND.accept(value)
        table = {"weightnorm": _WEIGHT_NORM}
        return CallOf("initialiser", {**INITIALISERS, **table}).accept(value)


@dataclass(frozen=True)
class _WeightNorm:
    signature: Signature


_WEIGHT_NORM = _WeightNorm(
    Signature("weightnorm", (Param("init", INITIALISER_KIND, Symbol("he")),))
)


@dataclass(frozen=True)
class Bias:
    """`no`, `yes` or an initialiser."""

    def accept(self, value: Value) -> bool | BoundCall:
        if isinstance(value, bool):
            return value
        mismatch = TypeMismatch("`yes`, `no` or an initialiser")
        if isinstance(value, Symbol) and value.name.lower() in ("true", "false", "none"):
            raise mismatch
        try:
            return ChannelInitialiser(allows_fans=True).accept(value)
        except TypeMismatch:
            raise mismatch from None


WEIGHT_PARAM = Param(
    "weight",
    Weight(),
    Symbol("he"),
    "initialiser of the weights, or weightnorm(initialiser)",
    is_keyword_only=True,
)
BIAS_PARAM = Param("bias", Bias(), True, "`no`, `yes` or an initialiser", is_keyword_only=True)


def add_weight(site: Site, spec: WeightSpec, init: BoundCall) -> Node:
    """Adds a layer's weight: a state, or a value computed from states."""
    if init.name == "weightnorm":
        return _weight_norm(site, spec, init.arguments["init"])
    return site.add_parameter("weight", spec.shape, init, spec.fans)


def add_bias(site: Site, y: Node, bias: bool | BoundCall) -> Node:
    """Adds a trainable value to each channel of `y`, unless `bias` is `no`."""
    if bias is False:
        return y
    init = find_initialiser("zeros") if bias is True else bias
    return site.b.add(y, site.add_parameter("bias", y.type.shape[-1:], init))


def _check_groups(inner: int, outer: int, groups: int) -> None:
    if inner % groups or outer % groups:
        raise fail(
            f"{inner} channels in and {outer} out cannot be divided into {groups} groups",
            help=advise_groups(math.gcd(inner, outer), "groups={}", whole="both"),
        )


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
    c = image_shape(x, "conv")[3]
    _check_groups(c, channels, groups)
    area = kernel[0] * kernel[1]
    fans = Fans(area * c // groups, area * channels // groups)
    spec = WeightSpec((channels, *kernel, c // groups), fans, (1, 2, 3))
    w = add_weight(site, spec, states["weight"])
    y = site.b.conv2d(
        x,
        w,
        stride=stride,
        pad=resolve_padding(pad, kernel, dilation),
        dilation=dilation,
        groups=groups,
    )
    return add_bias(site, y, states["bias"])


def _depthwise(
    site: Site,
    x: Node,
    kernel: Pair,
    stride: Pair,
    pad: str | Pads,
    dilation: Pair,
    multiplier: int,
    **states: Any,
) -> Node:
    """The convolution with a group for each channel."""
    _, h, w, c = image_shape(x, "depthwise")
    edges = resolve_padding(pad, kernel, dilation)
    sizes = zip((h, w), kernel, dilation, edges, strict=True)
    if any(dilated_size(k, d) > n + sum(edge) for n, k, d, edge in sizes):
        raise fail(
            f"a {dims(kernel)} window does not fit into {h}x{w}",
            help="`depthwise` takes a kernel, stride and `pad`, as in `depthwise(3x3, pad=1)`; "
            "the number of channels comes from the input",
        )
    return _conv(site, x, c * multiplier, kernel, stride, pad, dilation, c, **states)


def _convtranspose(
    site: Site,
    x: Node,
    channels: int,
    kernel: Pair,
    stride: Pair,
    pad: Pads | str,
    output_pad: Pair,
    dilation: Pair,
    groups: int,
    **states: Any,
) -> Node:
    """`same` makes the output the input size times the stride. For fan in, an output pixel sums
    kernel / stride taps on each axis."""
    _, h, w, c = image_shape(x, "convtranspose")
    _check_groups(c, channels, groups)
    if groups > 1 and states["weight"].name == "weightnorm":
        raise fail(
            "`convtranspose` has weight norm only without `groups`",
            help="give `weight` an initialiser, or leave out `groups`",
        )
    sizes, edges = [], []
    for axis, n in enumerate((h, w)):
        k, s, extra = dilated_size(kernel[axis], dilation[axis]), stride[axis], output_pad[axis]
        if extra >= s:
            raise fail("`output_pad` must be smaller than the stride")
        border = max(k - s, 0) if isinstance(pad, str) else sum(pad[axis])
        size = n * s if isinstance(pad, str) else (n - 1) * s + k - border + extra
        if size < 1:
            raise fail("padding leaves nothing of the output")
        sizes.append(size)
        edges.append((border // 2, border - border // 2) if isinstance(pad, str) else pad[axis])
    area = kernel[0] * kernel[1]
    fan_in = area * c / (stride[0] * stride[1] * groups)
    fans = Fans(max(1, fan_in), area * channels // groups)
    spec = WeightSpec((c, *kernel, channels // groups), fans, (0, 1, 2))
    y = site.b.conv2d_dgrad(
        x,
        add_weight(site, spec, states["weight"]),
        size=tuple(sizes),
        stride=stride,
        pad=tuple(edges),
        dilation=dilation,
        groups=groups,
    )
    return add_bias(site, y, states["bias"])


def _local(
    site: Site, x: Node, channels: int, kernel: Pair, stride: Pair, pad: Any, **states: Any
) -> Node:
    """im2col, then a separate matrix for each position: einsum nhwp,hwkp -> nhwk."""
    b = site.b
    _, h, w, _ = image_shape(x, "local")
    edges = resolve_padding(pad, kernel)
    oh, ow = output_size((h, w), kernel, stride, edges)
    columns = b.im2col(x, kernel=kernel, stride=stride, pad=edges)
    inner = columns.type.shape[3]
    fans = Fans(inner, channels * kernel[0] * kernel[1])
    spec = WeightSpec((oh, ow, channels, inner), fans, (3,))
    w_node = add_weight(site, spec, states["weight"])
    product = b.matmul(b.transpose(columns, perm=(1, 2, 0, 3)), w_node)
    y = b.transpose(product, perm=(2, 0, 1, 3))
    if states["bias"] is False:
        return y
    init = find_initialiser("zeros") if states["bias"] is True else states["bias"]
    return b.add(y, site.add_parameter("bias", (oh, ow, channels), init))


def _narrow_channels(arguments: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    return {"channels": widths.narrow(arguments["channels"])}


def _narrow_groups(arguments: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Keeps the number of groups, or reduces it to what divides the narrowed channels: a depthwise
    convolution stays depthwise."""
    narrowed = _narrow_channels(arguments, widths)
    groups = widths.max_groups(arguments["groups"], widths.narrowed, narrowed["channels"])
    return narrowed | {"groups": groups}


_CHANNELS = Param("channels", Integer(1, 10**8), doc="output channels")
_KERNEL = Param("kernel", Extent(), doc="height x width")
_STRIDE = Param("stride", Extent(), 1)
_PAD = Param("pad", Padding(), 0, "`same`, a number of pixels, or [top, bottom, left, right]")
_DILATION = Param("dilation", Extent(), 1)
_GROUPS = Param("groups", Integer(1, 10**8), 1)

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
                _DILATION,
                _GROUPS,
                BIAS_PARAM,
                WEIGHT_PARAM,
            ),
        ),
        _conv,
        doc="convolution with learnable weights K x R x S x C/groups",
        narrow=_narrow_groups,
    ),
    Layer(
        "depthwise",
        Signature(
            "depthwise",
            (
                _KERNEL,
                _STRIDE,
                _PAD,
                _DILATION,
                Param("multiplier", Integer(1, 65536), 1, "output channels per input channel"),
                BIAS_PARAM,
                WEIGHT_PARAM,
            ),
        ),
        _depthwise,
        doc="convolves each channel separately (Howard et al. 2017); the output has `multiplier` "
        "times as many channels",
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
                Param("output_pad", Extent(0), 0, "pixels added at the bottom and right"),
                _DILATION,
                _GROUPS,
                BIAS_PARAM,
                WEIGHT_PARAM,
            ),
        ),
        _convtranspose,
        doc="transposed convolution with weights C x R x S x K/groups; upsamples by its stride",
        narrow=_narrow_groups,
    ),
    Layer(
        "local",
        Signature("local", (_CHANNELS, _KERNEL, _STRIDE, _PAD, BIAS_PARAM, WEIGHT_PARAM)),
        _local,
        doc="locally connected: a convolution whose weights differ from place to place",
        narrow=_narrow_channels,
    ),
)
