"""Pooling layers: over windows, with padding and ceil mode, and over the whole image."""

from __future__ import annotations

from netdsl.layers.convolution import Padding, resolve_padding
from netdsl.layers.layer import Layer, Site, image_shape
from netdsl.ops.windows import Pads, Pair
from netdsl.parameter_types import Boolean, Extent, NoneLiteral, OneOf
from netdsl.signature import Param, Signature
from netdsl.types import Node


def _pad_for_ceil(size: Pair, kernel: Pair, stride: Pair, pad: Pads, ceil: bool) -> Pads:
    """Extends the padding so that the last, partial window is complete in ceil mode.

    As in Caffe and PyTorch, no window may start beyond the image and its leading padding.
    """
    if not ceil:
        return pad
    edges = []
    for n, k, s, (low, high) in zip(size, kernel, stride, pad, strict=True):
        count = -(-(n + low + high - k) // s) + 1
        if (count - 1) * s >= n + low:
            count -= 1
        edges.append((low, max(high, (count - 1) * s + k - n - low)))
    return edges[0], edges[1]


def _window_attributes(
    site: Site, x: Node, name: str, kernel: Pair, stride: Pair | None, pad: str | Pads, ceil: bool
) -> dict[str, object]:
    _, h, w, _ = image_shape(x, name)
    stride = stride or kernel
    edges = _pad_for_ceil((h, w), kernel, stride, resolve_padding(pad, kernel), ceil)
    return {"kernel": kernel, "stride": stride, "pad": edges}


def _maxpool(
    site: Site, x: Node, kernel: Pair, stride: Pair | None, pad: str | Pads, ceil: bool
) -> Node:
    return site.b.max_pool(x, **_window_attributes(site, x, "maxpool", kernel, stride, pad, ceil))


def _avgpool(
    site: Site,
    x: Node,
    kernel: Pair,
    stride: Pair | None,
    pad: str | Pads,
    ceil: bool,
    include_pad: bool,
) -> Node:
    geometry = _window_attributes(site, x, "avgpool", kernel, stride, pad, ceil)
    counted = resolve_padding(pad, kernel) if include_pad else ((0, 0), (0, 0))
    return site.b.avg_pool(x, counted=counted, **geometry)


def _globalavgpool(site: Site, x: Node) -> Node:
    image_shape(x, "globalavgpool")
    return site.b.reduce_mean(x, axes=(1, 2), keepdims=True)


def _globalmaxpool(site: Site, x: Node) -> Node:
    image_shape(x, "globalmaxpool")
    return site.b.reduce_max(x, axes=(1, 2), keepdims=True)


_WINDOW_PARAMS = (
    Param("kernel", Extent()),
    Param("stride", OneOf((Extent(), NoneLiteral())), None, "defaults to the kernel"),
    Param("pad", Padding(), 0),
    Param("ceil", Boolean(), False, "keep the last, partial window"),
)

LAYERS = (
    Layer(
        "maxpool",
        Signature("maxpool", _WINDOW_PARAMS),
        _maxpool,
        doc="largest value of each window",
    ),
    Layer(
        "avgpool",
        Signature(
            "avgpool",
            (
                *_WINDOW_PARAMS,
                Param("include_pad", Boolean(), False, "count padding as zeros in the mean"),
            ),
        ),
        _avgpool,
        doc="mean of each window",
    ),
    Layer(
        "globalavgpool",
        Signature("globalavgpool"),
        _globalavgpool,
        doc="mean of each channel over the whole image: 1 x 1 x channels",
    ),
    Layer(
        "globalmaxpool",
        Signature("globalmaxpool"),
        _globalmaxpool,
        doc="largest value of each channel over the whole image: 1 x 1 x channels",
    ),
)
