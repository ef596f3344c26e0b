"""Max and average pooling over windows, with their gradients."""

from __future__ import annotations

from typing import Any

from netdsl.ops.attributes import PADS, PAIR
from netdsl.ops.dtypes import widen
from netdsl.ops.op import Draw, Example, Op, draw_image_shape, float_operands, require
from netdsl.ops.windows import Pads, Pair, iterate_taps, output_size, pad_image
from netdsl.signature import Param
from netdsl.types import Array, Node, TensorType, dims

_WINDOW_PARAMS = (
    Param("kernel", PAIR),
    Param("stride", PAIR),
    Param("pad", PADS, ((0, 0), (0, 0))),
)
_AVG_POOL_PARAMS = (*_WINDOW_PARAMS, Param("counted", PADS, ((0, 0), (0, 0))))


def _pool_shape(x: TensorType, kernel: Pair, stride: Pair, pad: Pads, **_: Any) -> TensorType:
    require(x.rank == 4, f"pooling needs an image, not {dims(x.shape[1:])}")
    is_smaller = all(max(p) < k for p, k in zip(pad, kernel, strict=True))
    require(is_smaller, f"padding must be smaller than the {dims(kernel)} window")
    size = output_size((x.shape[1], x.shape[2]), kernel, stride, pad)
    return x.with_shape((x.shape[0], *size, x.shape[3]))


def _avg_shape(x: TensorType, counted: Pads, **window: Any) -> TensorType:
    _check_counted(window["pad"], counted)
    return _pool_shape(x, **window)


def _check_counted(pad: Pads, counted: Pads) -> None:
    pairs = zip((*pad[0], *pad[1]), (*counted[0], *counted[1]), strict=True)
    require(
        all(0 <= c <= p for p, c in pairs), f"of the padding {pad}, {counted} cannot be counted"
    )


def _max_pool(xp: Any, x: Array, kernel: Pair, stride: Pair, pad: Pads) -> Array:
    size = output_size(x.shape[1:3], kernel, stride, pad)
    padded_x = pad_image(xp, x, pad, -xp.inf)
    y = None
    for _, _, tap in iterate_taps(padded_x, size, kernel, stride):
        y = tap.copy() if y is None else xp.maximum(y, tap)
    return y


def _max_pool_grad(xp: Any, g: Array, x: Array, kernel: Pair, stride: Pair, pad: Pads) -> Array:
    size = output_size(x.shape[1:3], kernel, stride, pad)
    y = _max_pool(xp, x, kernel, stride, pad)
    padded_x = pad_image(xp, x, pad, -xp.inf)
    grad = xp.zeros(padded_x.shape, dtype=widen(g[:0]).dtype)
    unassigned_mask = xp.ones(y.shape, dtype=bool)
    for (_, _, tap), (_, _, target) in zip(
        iterate_taps(padded_x, size, kernel, stride),
        iterate_taps(grad, size, kernel, stride),
        strict=True,
    ):
        first_max_mask = (tap == y) & unassigned_mask
        target += g * first_max_mask
        unassigned_mask &= ~first_max_mask
    return _crop_padding(grad, x.shape, pad).astype(g.dtype, copy=False)


def _crop_padding(padded_x: Array, shape: tuple[int, ...], pad: Pads) -> Array:
    (top, _), (left, _) = pad
    return padded_x[:, top : top + shape[1], left : left + shape[2]]


def _count_pixels(
    xp: Any, size: Pair, kernel: Pair, stride: Pair, pad: Pads, counted: Pads, dtype: Any
) -> Array:
    """The number of pixels that each window averages: [1, OH, OW, 1], including the `counted` part
    of the padding."""
    out = output_size(size, kernel, stride, pad)
    (top, bottom), (left, right) = counted
    ones = xp.ones((1, size[0] + top + bottom, size[1] + left + right, 1), dtype=dtype)
    rest = tuple((p[0] - c[0], p[1] - c[1]) for p, c in zip(pad, counted, strict=True))
    padded_ones = pad_image(xp, ones, (rest[0], rest[1]))
    return sum(tap for _, _, tap in iterate_taps(padded_ones, out, kernel, stride))


def _avg_pool(xp: Any, x: Array, kernel: Pair, stride: Pair, pad: Pads, counted: Pads) -> Array:
    size = output_size(x.shape[1:3], kernel, stride, pad)
    wide = widen(x)
    total = sum(tap for _, _, tap in iterate_taps(pad_image(xp, wide, pad), size, kernel, stride))
    mean = total / _count_pixels(xp, x.shape[1:3], kernel, stride, pad, counted, wide.dtype)
    return mean.astype(x.dtype, copy=False)


def _avg_pool_grad(
    xp: Any, g: Array, size: Pair, kernel: Pair, stride: Pair, pad: Pads, counted: Pads
) -> Array:
    wide = widen(g)
    share = wide / _count_pixels(xp, size, kernel, stride, pad, counted, wide.dtype)
    (top, bottom), (left, right) = pad
    shape = (g.shape[0], size[0] + top + bottom, size[1] + left + right, g.shape[3])
    padded_grad = xp.zeros(shape, dtype=wide.dtype)
    for _, _, target in iterate_taps(padded_grad, g.shape[1:3], kernel, stride):
        target += share
    return _crop_padding(padded_grad, (g.shape[0], *size), pad).astype(g.dtype, copy=False)


def _avg_grad_shape(
    g: TensorType, size: Pair, kernel: Pair, stride: Pair, pad: Pads, counted: Pads
) -> TensorType:
    require(g.rank == 4, f"pooling needs an image, not {dims(g.shape[1:])}")
    x = g.with_shape((g.shape[0], *size, g.shape[3]))
    pooled = _avg_shape(x, counted, kernel=kernel, stride=stride, pad=pad).shape
    require(pooled == g.shape, f"no image of {dims(size)} pools to {dims(g.shape[1:3])}")
    return x


def _max_grad_shape(g: TensorType, x: TensorType, **window: Any) -> TensorType:
    pooled = _pool_shape(x, **window).shape
    require(pooled == g.shape, f"{dims(x.shape)} does not pool to {dims(g.shape)}")
    return x


def _draw_window(draw: Draw, size: Pair) -> dict[str, Any]:
    kernel, pad = [], []
    for axis in (0, 1):
        kernel.append(draw.integer(1, min(4, size[axis])))
        pad.append((draw.integer(0, kernel[axis] - 1), draw.integer(0, kernel[axis] - 1)))
    stride = (draw.integer(1, 3), draw.integer(1, 3))
    return {"kernel": tuple(kernel), "stride": stride, "pad": tuple(pad)}


def _draw_counted(draw: Draw, window: dict[str, Any]) -> Pads:
    """Draws how much of the padding counts: all, none, or some, as in ceil mode."""
    some = tuple((draw.integer(0, low), draw.integer(0, high)) for low, high in window["pad"])
    pads: Pads = draw.choice((window["pad"], ((0, 0), (0, 0)), some))
    return pads


def _max_example(draw: Draw) -> Example:
    shape = draw_image_shape(draw)
    return Example(float_operands(shape, distribution="distinct"), _draw_window(draw, shape[1:3]))


def _avg_example(draw: Draw) -> Example:
    shape = draw_image_shape(draw)
    window = _draw_window(draw, shape[1:3])
    attrs = {**window, "counted": _draw_counted(draw, window)}
    return Example(float_operands(shape), attrs)


def _max_grad_example(draw: Draw) -> Example:
    shape = draw_image_shape(draw)
    window = _draw_window(draw, shape[1:3])
    pooled = (shape[0], *output_size(shape[1:3], **window), shape[3])
    return Example(
        (*float_operands(pooled), *float_operands(shape, distribution="distinct")), window
    )


def _avg_grad_example(draw: Draw) -> Example:
    n, h, w, c = draw_image_shape(draw)
    window = _draw_window(draw, (h, w))
    pooled = (n, *output_size((h, w), **window), c)
    attrs = {**window, "size": (h, w), "counted": _draw_counted(draw, window)}
    return Example(float_operands(pooled), attrs)


def _attributes_without_size(y: Node) -> dict[str, Any]:
    return {k: v for k, v in y.attrs.items() if k != "size"}


_ZERO_SECOND_DERIVATIVE = "the second derivative of a maximum is zero almost everywhere"

OPS = (
    Op(
        name="max_pool",
        kind="opaque",
        operands=("x",),
        shape=_pool_shape,
        reference=_max_pool,
        draw_example=_max_example,
        attrs=_WINDOW_PARAMS,
        vjp=(lambda b, g, y, x: b.max_pool_grad(g, x, **y.attrs),),
        window=lambda types, attrs: (attrs["kernel"], attrs["stride"], (1, 1)),
        doc="the largest value of each window",
        traits=frozenset(("low_precision",)),
    ),
    Op(
        name="max_pool_grad",
        kind="opaque",
        operands=("g", "x"),
        shape=_max_grad_shape,
        reference=_max_pool_grad,
        draw_example=_max_grad_example,
        attrs=_WINDOW_PARAMS,
        nondiff={"g": "no layer needs a derivative of this gradient", "x": _ZERO_SECOND_DERIVATIVE},
        doc="max_pool's gradient: to the first maximum of each window, which is found again",
    ),
    Op(
        name="avg_pool",
        kind="opaque",
        operands=("x",),
        shape=_avg_shape,
        reference=_avg_pool,
        draw_example=_avg_example,
        attrs=_AVG_POOL_PARAMS,
        vjp=(lambda b, g, y, x: b.avg_pool_grad(g, size=x.type.shape[1:3], **y.attrs),),
        window=lambda types, attrs: (attrs["kernel"], attrs["stride"], (1, 1)),
        doc="the mean of each window; of the padding only `counted` pixels count",
        traits=frozenset(("low_precision",)),
    ),
    Op(
        name="avg_pool_grad",
        kind="opaque",
        operands=("g",),
        shape=_avg_grad_shape,
        reference=_avg_pool_grad,
        draw_example=_avg_grad_example,
        attrs=(Param("size", PAIR), *_AVG_POOL_PARAMS),
        vjp=(lambda b, ct, y, g: b.avg_pool(ct, **_attributes_without_size(y)),),
        doc="avg_pool's gradient: every window's share to each of its pixels",
    ),
)
