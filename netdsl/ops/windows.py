"""Windows over images: output sizes, padding, and the taps that convolution and pooling share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from netdsl.errors import fail
from netdsl.ops.op import require
from netdsl.types import Array, dims

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def dilated_size(kernel: int, dilation: int) -> int:
    """The number of pixels that a dilated kernel spans."""
    return (kernel - 1) * dilation + 1


def output_size(size: Pair, kernel: Pair, stride: Pair, pad: Pads, dilation: Pair = (1, 1)) -> Pair:
    """Returns the output height and width of a sliding window. Raises NetError if it never fits.

    floor((size + pad - dilation * (kernel - 1) - 1) / stride) + 1, Dumoulin & Visin 2016.
    """
    require(min(*kernel, *stride, *dilation) >= 1, "kernel, stride and dilation must be at least 1")
    require(min(*pad[0], *pad[1]) >= 0, "padding cannot be negative")
    out = []
    for axis in (0, 1):
        window_size = dilated_size(kernel[axis], dilation[axis])
        padded_size = size[axis] + sum(pad[axis])
        if window_size > padded_size:
            raise fail(
                f"a {dims(kernel)} window does not fit into {dims(size)}"
                + (" with its padding" if sum(pad[axis]) else ""),
                help="use a smaller kernel, smaller strides before it, or a larger `pad`",
            )
        out.append((padded_size - window_size) // stride[axis] + 1)
    return out[0], out[1]


def pad_image(xp: Any, x: Array, pad: Pads, fill: float = 0) -> Array:
    """Returns `x` with a border; `x` itself if all padding is 0."""
    (top, bottom), (left, right) = pad
    if not (top or bottom or left or right):
        return x
    n, h, w, c = x.shape
    out = xp.full((n, h + top + bottom, w + left + right, c), fill, dtype=x.dtype)
    out[:, top : top + h, left : left + w] = x
    return out


def iterate_taps(
    padded_x: Array, out_shape: Pair, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)
) -> Iterator[tuple[int, int, Array]]:
    """Yields for each kernel position (r, s) a view of the pixels that it is applied to."""
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            top, left = r * dilation[0], s * dilation[1]
            rows = slice(top, top + (out_shape[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (out_shape[1] - 1) * stride[1] + 1, stride[1])
            yield r, s, padded_x[:, rows, columns]


def gather(
    xp: Any, x: Array, kernel: Pair, stride: Pair, pad: Pads, dilation: Pair = (1, 1)
) -> Array:
    """Returns all windows as a view of the padded image: [N, OH, OW, R, S, C]."""
    oh, ow = output_size(x.shape[1:3], kernel, stride, pad, dilation)
    x = pad_image(xp, x, pad)
    sn, sh, sw, sc = x.strides
    return xp.lib.stride_tricks.as_strided(
        x,
        (x.shape[0], oh, ow, *kernel, x.shape[3]),
        (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc),
    )


def scatter(
    xp: Any, windows: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair = (1, 1)
) -> Array:
    """The transpose of `gather`: adds the values of every window back to their pixels."""
    n, oh, ow, r, s, c = windows.shape
    (top, bottom), (left, right) = pad
    padded_image = xp.zeros(
        (n, size[0] + top + bottom, size[1] + left + right, c), dtype=windows.dtype
    )
    for i, j, tap in iterate_taps(padded_image, (oh, ow), (r, s), stride, dilation):
        tap += windows[:, :, :, i, j]
    return padded_image[:, top : top + size[0], left : left + size[1]]
