"""Pooling layers: over windows, with padding and ceil mode, to a size, and over the whole image."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from netdsl.errors import fail
from netdsl.ir.views import slice_axis
from netdsl.layers.convolution import Padding, resolve_padding
from netdsl.layers.layer import MAX_PARTS, Layer, Site, image_shape
from netdsl.ops.windows import Pads, Pair
from netdsl.parameter_types import OPTIONAL_EXTENT, Boolean
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


_NO_PADS: Pads = ((0, 0), (0, 0))
_Pool = Callable[[Node, Pair, Pair], Node]
"""`pool(x, kernel, stride)` emits a pooling without padding."""


def _window_attributes(
    x: Node, kernel: Pair, stride: Pair | None, pad: str | Pads, ceil: bool
) -> dict[str, object]:
    stride = stride or kernel
    size = x.type.shape[1], x.type.shape[2]
    edges = _pad_for_ceil(size, kernel, stride, resolve_padding(pad, kernel), ceil)
    return {"kernel": kernel, "stride": stride, "pad": edges}


def _check_windows(name: str, to: Pair | None, window: dict[str, Any]) -> None:
    """Checks that a pooling has either windows or the size of its result."""
    if to is None and window["kernel"] is None:
        raise fail(
            f"`{name}` needs `kernel` or `to`",
            help=f"`{name}(2x2)` pools windows of 2x2; `{name}(to=7x7)` chooses windows that "
            f"give 7x7",
        )
    defaults = {"stride": None, "pad": _NO_PADS, "kernel": None}
    given = [k for k, v in window.items() if v != defaults.get(k, False)]
    if to is not None and given:
        raise fail(
            f"`{name}` has both `to` and `{given[0]}`",
            help="`to` determines the windows: leave out one of them",
        )


def _maxpool(site: Site, x: Node, to: Pair | None, **window: Any) -> Node:
    image_shape(x, "maxpool")
    _check_windows("maxpool", to, window)
    if to is None:
        return site.b.max_pool(x, **_window_attributes(x, **window))
    return _pool_to(
        site, x, to, lambda x, k, s: site.b.max_pool(x, kernel=k, stride=s, pad=_NO_PADS)
    )


def _avgpool(site: Site, x: Node, to: Pair | None, include_pad: bool, **window: Any) -> Node:
    image_shape(x, "avgpool")
    _check_windows("avgpool", to, {**window, "include_pad": include_pad})
    if to is None:
        counted = resolve_padding(window["pad"], window["kernel"]) if include_pad else _NO_PADS
        return site.b.avg_pool(x, counted=counted, **_window_attributes(x, **window))
    return _pool_to(
        site,
        x,
        to,
        lambda x, k, s: site.b.avg_pool(x, kernel=k, stride=s, pad=_NO_PADS, counted=_NO_PADS),
    )


def _adaptive_windows(size: int, count: int) -> list[tuple[int, int]]:
    """Start and stop of `count` windows over an axis, as in PyTorch: they cover it as evenly as
    whole pixels allow, and may overlap."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _find_uniform_window(windows: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Size and step of windows that are all alike; None if they differ."""
    sizes = {stop - start for start, stop in windows}
    steps = {b - a for (a, _), (b, _) in pairwise(windows)} or {1}
    return (sizes.pop(), steps.pop()) if len(sizes) == len(steps) == 1 and 0 not in steps else None


def _pool_to(site: Site, x: Node, to: Pair, pool: _Pool) -> Node:
    """Pools to a size: at once where the windows are alike, else along one axis and then along the
    other."""
    windows = [_adaptive_windows(x.type.shape[a + 1], to[a]) for a in (0, 1)]
    uniform = [_find_uniform_window(w) for w in windows]
    if any(u is None and n > MAX_PARTS for u, n in zip(uniform, to, strict=True)):
        raise fail(f"`to` is at most {MAX_PARTS:,} where the windows differ")
    if uniform[0] is not None and uniform[1] is not None:
        (kh, sh), (kw, sw) = uniform[0], uniform[1]
        return pool(x, (kh, kw), (sh, sw))
    for axis in (0, 1):
        x = _pool_axis(site, x, axis, windows[axis], uniform[axis], pool)
    return x


def _pool_axis(
    site: Site,
    x: Node,
    axis: int,
    windows: list[tuple[int, int]],
    uniform: tuple[int, int] | None,
    pool: _Pool,
) -> Node:
    def along(n: int) -> Pair:
        return (n, 1) if axis == 0 else (1, n)

    if uniform is not None:
        size, step = uniform
        return pool(x, along(size), along(step))
    parts = []
    for start, stop in windows:
        part = slice_axis(site.b, x, axis + 1, start, stop)
        parts.append(pool(part, along(stop - start), (1, 1)))
    return site.b.concat(*parts, axis=axis + 1)


def _globalavgpool(site: Site, x: Node) -> Node:
    image_shape(x, "globalavgpool")
    return site.b.reduce_mean(x, axes=(1, 2), keepdims=True)


def _globalmaxpool(site: Site, x: Node) -> Node:
    image_shape(x, "globalmaxpool")
    return site.b.reduce_max(x, axes=(1, 2), keepdims=True)


_TO = Param(
    "to",
    OPTIONAL_EXTENT,
    None,
    f"size of the result; if it is larger than the image, windows overlap; at most {MAX_PARTS:,} "
    "if the windows have different sizes",
    is_keyword_only=True,
)
_WINDOW_PARAMS = (
    Param("kernel", OPTIONAL_EXTENT, None, "height x width of the windows"),
    Param("stride", OPTIONAL_EXTENT, None, "defaults to the kernel"),
    Param("pad", Padding(), 0),
    Param("ceil", Boolean(), False, "keep the last, partial window"),
)

LAYERS = (
    Layer(
        "maxpool",
        Signature("maxpool", (*_WINDOW_PARAMS, _TO)),
        _maxpool,
        doc="largest value of each window: maxpool(2x2), or maxpool(to=7x7) for a 7x7 result",
    ),
    Layer(
        "avgpool",
        Signature(
            "avgpool",
            (
                *_WINDOW_PARAMS,
                Param("include_pad", Boolean(), False, "count padding as zeros in the mean"),
                _TO,
            ),
        ),
        _avgpool,
        doc="mean of each window: avgpool(2x2), or avgpool(to=7x7) for a 7x7 result",
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
