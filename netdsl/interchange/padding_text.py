"""Padding of a window as it is written: `same`, a number of pixels, or [top, bottom, left, "
"right]."""

from __future__ import annotations

from netdsl.layers.convolution import Padding, resolve_padding
from netdsl.ops.windows import Pads, Pair
from netdsl.values import Size, Symbol, Value


def pair(values: Pair) -> Value:
    """Two sizes as they are written: one number for a square."""
    return values[0] if values[0] == values[1] else Size(values)


def write_padding(pads: Pads, kernel: Pair, dilation: Pair = (1, 1)) -> Value:
    """Padding as it is written: `same` where it is that."""
    (top, bottom), (left, right) = pads
    if pads == resolve_padding("same", kernel, dilation) and any(map(sum, pads)):
        return Symbol("same")
    if top == bottom and left == right:
        return pair((top, left))
    return (top, bottom, left, right)


def read_padding(value: Value, kernel: Pair, dilation: Pair = (1, 1)) -> Pads:
    """Padding in pixels."""
    return resolve_padding(Padding().accept(value), kernel, dilation)
