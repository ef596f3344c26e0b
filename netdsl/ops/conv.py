"""Convolution, its two gradients, and im2col, which turns it into one matrix product.

Images are N x H x W x C, weights K x R x S x C/groups. As a layer, `conv2d_dgrad` is the
transposed convolution.
"""

from __future__ import annotations

from typing import Any

from netdsl.ops.attributes import PADS, PAIR
from netdsl.ops.dtypes import widen
from netdsl.ops.op import Draw, Example, Op, common_dtype, draw_image_shape, float_operands, require
from netdsl.ops.windows import Pads, Pair, gather, output_size, scatter
from netdsl.parameter_types import Integer
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType, dims

_GEOMETRY_PARAMS = (
    Param("stride", PAIR, (1, 1)),
    Param("pad", PADS, ((0, 0), (0, 0))),
    Param("dilation", PAIR, (1, 1)),
)
_CONV_PARAMS = (*_GEOMETRY_PARAMS, Param("groups", Integer(), 1))


def _check_image(x: TensorType) -> None:
    require(
        x.rank == 4,
        f"an image of height x width x channels is needed, not {dims(x.shape[1:])}",
        "a fully connected layer flattens; put convolutions and pooling before it",
    )


def _check_groups(groups: int, inner: int, outer: int) -> None:
    """Checks that the groups divide the input and output channels."""
    divides = groups >= 1 and inner % groups == outer % groups == 0
    require(divides, f"{inner} channels in and {outer} out cannot be divided into {groups} groups")


def _conv2d_shape(
    x: TensorType, w: TensorType, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> TensorType:
    _check_image(x)
    require(w.rank == 4, f"a convolution's weight has 4 axes, not {w.rank}")
    k, r, s, c = w.shape
    _check_groups(groups, x.shape[3], k)
    fits = c * groups == x.shape[3]
    require(fits, f"the weight takes {c * groups} channels, the image has {x.shape[3]}")
    oh, ow = output_size((x.shape[1], x.shape[2]), (r, s), stride, pad, dilation)
    return TensorType((x.shape[0], oh, ow, k), common_dtype(x, w))


def _columns(xp: Any, x: Array, kernel: Pair, groups: int, **geometry: Any) -> Array:
    """Returns the windows as one matrix per group: [G, N*OH*OW, R*S*C/G]."""
    windows = gather(xp, x, kernel, **geometry)
    n, oh, ow, r, s, c = windows.shape
    split = windows.reshape(n * oh * ow, r, s, groups, c // groups)
    return xp.moveaxis(split, 3, 0).reshape(groups, n * oh * ow, -1)


def _split_groups(xp: Any, y: Array, groups: int) -> Array:
    """Splits the channels of an image into groups: [G, N*H*W, K/G]."""
    return xp.moveaxis(y.reshape(-1, groups, y.shape[3] // groups), 1, 0)


def _conv2d(xp: Any, x: Array, w: Array, groups: int, **geometry: Any) -> Array:
    oh, ow = output_size(x.shape[1:3], w.shape[1:3], **geometry)
    columns = _columns(xp, x, w.shape[1:3], groups, **geometry)
    weights = w.reshape(groups, w.shape[0] // groups, -1)
    y = xp.matmul(widen(columns), widen(weights).swapaxes(1, 2))
    return xp.moveaxis(y, 0, 1).reshape(x.shape[0], oh, ow, w.shape[0]).astype(x.dtype, copy=False)


def _dgrad(xp: Any, g: Array, w: Array, size: Pair, groups: int, **geometry: Any) -> Array:
    k, r, s, c = w.shape
    weights = widen(w).reshape(groups, k // groups, -1)
    columns = xp.matmul(_split_groups(xp, widen(g), groups), weights)
    windows = columns.reshape(groups, *g.shape[:3], r, s, c)
    merged = xp.moveaxis(windows, 0, 5).reshape(*g.shape[:3], r, s, groups * c)
    return scatter(xp, merged, size, **geometry).astype(g.dtype, copy=False)


def _wgrad(xp: Any, g: Array, x: Array, kernel: Pair, groups: int, **geometry: Any) -> Array:
    columns = _columns(xp, x, kernel, groups, **geometry)
    w = xp.matmul(_split_groups(xp, widen(g), groups).swapaxes(1, 2), widen(columns))
    return w.reshape(g.shape[3], *kernel, x.shape[3] // groups).astype(g.dtype, copy=False)


def _dgrad_shape(
    g: TensorType,
    w: TensorType,
    size: Pair,
    stride: Pair,
    pad: Pads,
    dilation: Pair,
    groups: int,
) -> TensorType:
    _check_image(g)
    require(w.rank == 4, f"a convolution's weight has 4 axes, not {w.rank}")
    k, r, s, c = w.shape
    require(k == g.shape[3], f"the weight takes {k} channels, the image has {g.shape[3]}")
    _check_groups(groups, c * groups, k)
    forward_size = output_size(size, (r, s), stride, pad, dilation)
    require(forward_size == g.shape[1:3], f"no image of {dims(size)} gives {dims(g.shape[1:3])}")
    return TensorType((g.shape[0], *size, c * groups), common_dtype(g, w))


def _wgrad_shape(
    g: TensorType,
    x: TensorType,
    kernel: Pair,
    stride: Pair,
    pad: Pads,
    dilation: Pair,
    groups: int,
) -> TensorType:
    _check_image(x)
    _check_image(g)
    _check_groups(groups, x.shape[3], g.shape[3])
    size = output_size((x.shape[1], x.shape[2]), kernel, stride, pad, dilation)
    require(g.shape[:3] == (x.shape[0], *size), f"{g} is not a gradient of windows over {x}")
    return TensorType((g.shape[3], *kernel, x.shape[3] // groups), common_dtype(g, x))


def _conv_attributes(y: Node) -> dict[str, Any]:
    return {k: y.attrs[k] for k in ("stride", "pad", "dilation", "groups")}


def _image_gradient(b: Emitter, g: Node, w: Node, x: Node, y: Node) -> Node:
    return b.conv2d_dgrad(g, w, size=x.type.shape[1:3], **_conv_attributes(y))


def _weight_gradient(b: Emitter, g: Node, x: Node, kernel: Pair, y: Node) -> Node:
    return b.conv2d_wgrad(g, x, kernel=kernel, **_conv_attributes(y))


def _draw_geometry(draw: Draw, size: Pair) -> tuple[Pair, dict[str, Any]]:
    """Draws a kernel that fits an image of `size`, with stride, padding and dilation."""
    pad = tuple((draw.integer(0, 2), draw.integer(0, 2)) for _ in range(2))
    kernel, stride, dilation = [], [], []
    for axis in (0, 1):
        padded_size = size[axis] + sum(pad[axis])
        dilation.append(draw.integer(1, 3))
        kernel.append(draw.integer(1, max(1, min(3, (padded_size - 1) // dilation[axis] + 1))))
        stride.append(draw.integer(1, 3))
    geometry = {"stride": tuple(stride), "pad": pad, "dilation": tuple(dilation)}
    return (kernel[0], kernel[1]), geometry


def _draw_conv_shapes(draw: Draw) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Draws the shapes of image, weight and output of a small convolution, and its attributes."""
    groups = draw.choice((1, 1, 2, 3))
    n, h, w, _ = draw_image_shape(draw, side=8)
    c, k = groups * draw.integer(1, 3), groups * draw.integer(1, 3)
    kernel, geometry = _draw_geometry(draw, (h, w))
    oh, ow = output_size((h, w), kernel, **geometry)
    return (n, h, w, c), (k, *kernel, c // groups), (n, oh, ow, k), {**geometry, "groups": groups}


def _conv_example(draw: Draw) -> Example:
    x, w, _, attrs = _draw_conv_shapes(draw)
    return Example(float_operands(x, w), attrs)


def _dgrad_example(draw: Draw) -> Example:
    x, w, y, attrs = _draw_conv_shapes(draw)
    return Example(float_operands(y, w), {**attrs, "size": x[1:3]})


def _wgrad_example(draw: Draw) -> Example:
    x, w, y, attrs = _draw_conv_shapes(draw)
    return Example(float_operands(y, x), {**attrs, "kernel": w[1:3]})


def _im2col_shape(
    x: TensorType, kernel: Pair, stride: Pair, pad: Pads, dilation: Pair
) -> TensorType:
    _check_image(x)
    oh, ow = output_size((x.shape[1], x.shape[2]), kernel, stride, pad, dilation)
    return x.with_shape((x.shape[0], oh, ow, kernel[0] * kernel[1] * x.shape[3]))


def _im2col(xp: Any, x: Array, kernel: Pair, **geometry: Any) -> Array:
    windows = gather(xp, x, kernel, **geometry)
    return windows.reshape(*windows.shape[:3], -1)


def _col2im_shape(
    g: TensorType, size: Pair, kernel: Pair, stride: Pair, pad: Pads, dilation: Pair
) -> TensorType:
    _check_image(g)
    forward_size = output_size(size, kernel, stride, pad, dilation)
    require(
        forward_size == g.shape[1:3], f"no image of {dims(size)} gives {dims(g.shape[1:3])} windows"
    )
    taps = kernel[0] * kernel[1]
    require(g.shape[3] % taps == 0, f"{g.shape[3]} values are not windows of {dims(kernel)} pixels")
    return g.with_shape((g.shape[0], *size, g.shape[3] // taps))


def _col2im(xp: Any, g: Array, size: Pair, kernel: Pair, **geometry: Any) -> Array:
    windows = widen(g).reshape(*g.shape[:3], *kernel, -1)
    return scatter(xp, windows, size, **geometry).astype(g.dtype, copy=False)


def _window_attributes(y: Node) -> dict[str, Any]:
    return {k: y.attrs[k] for k in ("kernel", "stride", "pad", "dilation")}


def _im2col_example(draw: Draw) -> Example:
    shape = draw_image_shape(draw)
    kernel, geometry = _draw_geometry(draw, shape[1:3])
    return Example(float_operands(shape), {**geometry, "kernel": kernel})


def _col2im_example(draw: Draw) -> Example:
    n, h, w, c = draw_image_shape(draw)
    kernel, geometry = _draw_geometry(draw, (h, w))
    oh, ow = output_size((h, w), kernel, **geometry)
    cols = (n, oh, ow, kernel[0] * kernel[1] * c)
    return Example(float_operands(cols), {**geometry, "kernel": kernel, "size": (h, w)})


OPS = (
    Op(
        name="conv2d",
        kind="anchor",
        operands=("x", "w"),
        shape=_conv2d_shape,
        reference=_conv2d,
        draw_example=_conv_example,
        attrs=_CONV_PARAMS,
        vjp=(
            lambda b, g, y, x, w: _image_gradient(b, g, w, x, y),
            lambda b, g, y, x, w: _weight_gradient(b, g, x, w.type.shape[1:3], y),
        ),
        macs=lambda out, x, w, **_: out.size * w.size // w.shape[0],
        window=lambda types, attrs: (types[1].shape[1:3], attrs["stride"], attrs["dilation"]),
        doc="sliding dot products of an image [N,H,W,C] with weights [K,R,S,C/groups]",
        traits=frozenset(("takes_epilogue",)),
    ),
    Op(
        name="conv2d_dgrad",
        kind="anchor",
        operands=("g", "w"),
        shape=_dgrad_shape,
        reference=_dgrad,
        draw_example=_dgrad_example,
        attrs=(Param("size", PAIR), *_CONV_PARAMS),
        vjp=(
            lambda b, ct, y, g, w: b.conv2d(ct, w, **_conv_attributes(y)),
            lambda b, ct, y, g, w: _weight_gradient(b, g, ct, w.type.shape[1:3], y),
        ),
        macs=lambda out, g, w, **_: g.size * w.size // w.shape[0],
        doc="conv2d's gradient for its image; as a layer, the transposed convolution",
        traits=frozenset(("takes_epilogue",)),
    ),
    Op(
        name="conv2d_wgrad",
        kind="anchor",
        operands=("g", "x"),
        shape=_wgrad_shape,
        reference=_wgrad,
        draw_example=_wgrad_example,
        attrs=(Param("kernel", PAIR), *_CONV_PARAMS),
        vjp=(
            lambda b, ct, y, g, x: b.conv2d(x, ct, **_conv_attributes(y)),
            lambda b, ct, y, g, x: _image_gradient(b, g, ct, x, y),
        ),
        macs=lambda out, g, x, **_: g.size * out.size // out.shape[0],
        doc="conv2d's gradient for its weight",
        traits=frozenset(("takes_epilogue",)),
    ),
    Op(
        name="im2col",
        kind="opaque",
        operands=("x",),
        shape=_im2col_shape,
        reference=_im2col,
        draw_example=_im2col_example,
        attrs=(Param("kernel", PAIR), *_GEOMETRY_PARAMS),
        vjp=(lambda b, g, y, x: b.col2im(g, size=x.type.shape[1:3], **_window_attributes(y)),),
        flops_per_element=0,
        window=lambda types, attrs: (attrs["kernel"], attrs["stride"], attrs["dilation"]),
        doc="every window of an image as one row: [N,OH,OW,R*S*C]",
        traits=frozenset(("low_precision",)),
    ),
    Op(
        name="col2im",
        kind="opaque",
        operands=("g",),
        shape=_col2im_shape,
        reference=_col2im,
        draw_example=_col2im_example,
        attrs=(Param("size", PAIR), Param("kernel", PAIR), *_GEOMETRY_PARAMS),
        vjp=(lambda b, ct, y, g: b.im2col(ct, **_window_attributes(y)),),
        doc="the transpose of im2col: rows added back to the pixels they came from",
        traits=frozenset(("low_precision",)),
    ),
)
