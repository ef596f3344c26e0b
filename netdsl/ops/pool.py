"""Max and average pooling over windows, with their gradients."""

from __future__ import annotations

from typing import Any

from netdsl.ops.attributes import PADS, PAIR
from netdsl.ops.dtypes import widened
from netdsl.ops.op import Draw, Example, Op, floats, image, require
from netdsl.ops.windows import Pads, Pair, out_size, padded, taps
from netdsl.signature import Param
from netdsl.types import Array, Node, TensorType, dims

_WINDOW = (Param("kernel", PAIR), Param("stride", PAIR), Param("pad", PADS, ((0, 0), (0, 0))))
_AVERAGE = (*_WINDOW, Param("counted", PADS, ((0, 0), (0, 0))))


def _pool_shape(x: TensorType, kernel: Pair, stride: Pair, pad: Pads, **_: Any) -> TensorType:
    require(x.rank == 4, f"pooling needs an image, not {dims(x.shape[1:])}")
    inside = all(max(p) < k for p, k in zip(pad, kernel, strict=True))
    require(inside, f"padding must be smaller than the {dims(kernel)} window")
    size = out_size((x.shape[1], x.shape[2]), kernel, stride, pad)
    return x.with_shape((x.shape[0], *size, x.shape[3]))


def _avg_shape(x: TensorType, counted: Pads, **window: Any) -> TensorType:
    _check_counted(window["pad"], counted)
    return _pool_shape(x, **window)


def _check_counted(pad: Pads, counted: Pads) -> None:
    pairs = zip((*pad[0], *pad[1]), (*counted[0], *counted[1]), strict=True)
    require(all(0 <= c <= p for p, c in pairs), f"of the padding {pad} no {counted} can count")


def _max_pool(xp: Any, x: Array, kernel: Pair, stride: Pair, pad: Pads) -> Array:
    size = out_size(x.shape[1:3], kernel, stride, pad)
    whole = padded(xp, x, pad, -xp.inf)
    y = None
    for _, _, tap in taps(whole, size, kernel, stride):
        y = tap.copy() if y is None else xp.maximum(y, tap)
    return y


def _max_pool_grad(xp: Any, g: Array, x: Array, kernel: Pair, stride: Pair, pad: Pads) -> Array:
    size = out_size(x.shape[1:3], kernel, stride, pad)
    y = _max_pool(xp, x, kernel, stride, pad)
    whole = padded(xp, x, pad, -xp.inf)
    grad = xp.zeros(whole.shape, dtype=widened(g[:0]).dtype)
    free = xp.ones(y.shape, dtype=bool)
    for (_, _, tap), (_, _, to) in zip(
        taps(whole, size, kernel, stride), taps(grad, size, kernel, stride), strict=True
    ):
        first = (tap == y) & free
        to += g * first
        free &= ~first
    return _inner(grad, x.shape, pad).astype(g.dtype, copy=False)


def _inner(whole: Array, shape: tuple[int, ...], pad: Pads) -> Array:
    (top, _), (left, _) = pad
    return whole[:, top : top + shape[1], left : left + shape[2]]


def _counts(
    xp: Any, size: Pair, kernel: Pair, stride: Pair, pad: Pads, counted: Pads, dtype: Any
) -> Array:
    """How many pixels each window averages: [1, OH, OW, 1]; of the padding, `counted` counts."""
    out = out_size(size, kernel, stride, pad)
    (top, bottom), (left, right) = counted
    ones = xp.ones((1, size[0] + top + bottom, size[1] + left + right, 1), dtype=dtype)
    rest = tuple((p[0] - c[0], p[1] - c[1]) for p, c in zip(pad, counted, strict=True))
    whole = padded(xp, ones, (rest[0], rest[1]))
    return sum(tap for _, _, tap in taps(whole, out, kernel, stride))


def _avg_pool(xp: Any, x: Array, kernel: Pair, stride: Pair, pad: Pads, counted: Pads) -> Array:
    size = out_size(x.shape[1:3], kernel, stride, pad)
    wide = widened(x)
    total = sum(tap for _, _, tap in taps(padded(xp, wide, pad), size, kernel, stride))
    mean = total / _counts(xp, x.shape[1:3], kernel, stride, pad, counted, wide.dtype)
    return mean.astype(x.dtype, copy=False)


def _avg_pool_grad(
    xp: Any, g: Array, size: Pair, kernel: Pair, stride: Pair, pad: Pads, counted: Pads
) -> Array:
    wide = widened(g)
    share = wide / _counts(xp, size, kernel, stride, pad, counted, wide.dtype)
    (top, bottom), (left, right) = pad
    shape = (g.shape[0], size[0] + top + bottom, size[1] + left + right, g.shape[3])
    whole = xp.zeros(shape, dtype=wide.dtype)
    for _, _, to in taps(whole, g.shape[1:3], kernel, stride):
        to += share
    return _inner(whole, (g.shape[0], *size), pad).astype(g.dtype, copy=False)


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


def _window(draw: Draw, size: Pair) -> dict[str, Any]:
    kernel, pad = [], []
    for axis in (0, 1):
        kernel.append(draw.whole(1, min(4, size[axis])))
        pad.append((draw.whole(0, kernel[axis] - 1), draw.whole(0, kernel[axis] - 1)))
    stride = (draw.whole(1, 3), draw.whole(1, 3))
    return {"kernel": tuple(kernel), "stride": stride, "pad": tuple(pad)}


def _counted(draw: Draw, window: dict[str, Any]) -> Pads:
    """All of the padding, none of it, or some, as in ceil mode."""
    some = tuple((draw.whole(0, low), draw.whole(0, high)) for low, high in window["pad"])
    pads: Pads = draw.pick((window["pad"], ((0, 0), (0, 0)), some))
    return pads


def _max_example(draw: Draw) -> Example:
    shape = image(draw)
    return Example(floats(shape, values="distinct"), _window(draw, shape[1:3]))


def _avg_example(draw: Draw) -> Example:
    shape = image(draw)
    window = _window(draw, shape[1:3])
    attrs = {**window, "counted": _counted(draw, window)}
    return Example(floats(shape), attrs)


def _max_grad_example(draw: Draw) -> Example:
    shape = image(draw)
    window = _window(draw, shape[1:3])
    pooled = (shape[0], *out_size(shape[1:3], **window), shape[3])
    return Example((*floats(pooled), *floats(shape, values="distinct")), window)


def _avg_grad_example(draw: Draw) -> Example:
    n, h, w, c = image(draw)
    window = _window(draw, (h, w))
    pooled = (n, *out_size((h, w), **window), c)
    attrs = {**window, "size": (h, w), "counted": _counted(draw, window)}
    return Example(floats(pooled), attrs)


def _unsized(y: Node) -> dict[str, Any]:
    return {k: v for k, v in y.attrs.items() if k != "size"}


_SECOND = "the second derivative of a maximum is zero almost everywhere"

OPS = (
    Op(
        name="max_pool",
        kind="opaque",
        operands=("x",),
        shape=_pool_shape,
        reference=_max_pool,
        examples=_max_example,
        attrs=_WINDOW,
        vjp=(lambda b, g, y, x: b.max_pool_grad(g, x, **y.attrs),),
        window=lambda types, attrs: (attrs["kernel"], attrs["stride"], (1, 1)),
        doc="the largest value of each window",
    ),
    Op(
        name="max_pool_grad",
        kind="opaque",
        operands=("g", "x"),
        shape=_max_grad_shape,
        reference=_max_pool_grad,
        examples=_max_grad_example,
        attrs=_WINDOW,
        nondiff={"g": "no layer needs a derivative of this gradient", "x": _SECOND},
        doc="max_pool's gradient: to the first maximum of each window, which is found again",
    ),
    Op(
        name="avg_pool",
        kind="opaque",
        operands=("x",),
        shape=_avg_shape,
        reference=_avg_pool,
        examples=_avg_example,
        attrs=_AVERAGE,
        vjp=(lambda b, g, y, x: b.avg_pool_grad(g, size=x.type.shape[1:3], **y.attrs),),
        window=lambda types, attrs: (attrs["kernel"], attrs["stride"], (1, 1)),
        doc="the mean of each window; of the padding only `counted` pixels count",
    ),
    Op(
        name="avg_pool_grad",
        kind="opaque",
        operands=("g",),
        shape=_avg_grad_shape,
        reference=_avg_pool_grad,
        examples=_avg_grad_example,
        attrs=(Param("size", PAIR), *_AVERAGE),
        vjp=(lambda b, ct, y, g: b.avg_pool(ct, **_unsized(y)),),
        doc="avg_pool's gradient: every window's share to each of its pixels",
    ),
)
