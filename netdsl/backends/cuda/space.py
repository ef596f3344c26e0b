"""Thin images for strided convolutions: blocks of pixels as channels, so that the stride is 1.

A convolution over s x s pixels of c channels at a stride of s is one over pixels of s * s * c
channels at stride 1 with a kernel an s-th as large, its weight moved and filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.backends.cuda.expression import REGISTER, Load, Window
from netdsl.backends.cuda.index import Ints, regrouped, terms, whole
from netdsl.backends.cuda.trace import Store, Traced, copied
from netdsl.plan.layout import Layout, row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Attrs, Node

_MOST = 64
"""Channels of a pixel of the blocked image at most."""


@dataclass(frozen=True)
class Blocks:
    """How an image and a weight are blocked: `block` pixels, `lead` blocks of zeros before the
    image and `shift` zeros before the weight, on each axis."""

    block: tuple[int, int]
    lead: tuple[int, int]
    shift: tuple[int, int]
    kernel: tuple[int, int]
    image: Ints
    channels: int

    @property
    def attrs(self) -> dict[str, object]:
        """What the blocked convolution has instead of stride and padding."""
        return {"stride": (1, 1), "pad": ((0, 0), (0, 0)), "kernel": self.kernel}

    def weight_shape(self, count: int) -> Ints:
        return (count, *self.kernel, self.image[3])


def blocks_of(node: Node, image: Ints, weight: Ints, out: Ints) -> Blocks | None:
    """The blocks for a convolution of these shapes; None where it does not gain by them."""
    stride = node.attrs["stride"]
    wide = stride[0] * stride[1] * image[3]
    fits = all(size % s == 0 for size, s in zip(image[1:3], stride, strict=True))
    if node.attrs["dilation"] != (1, 1) or min(stride) < 2 or wide > _MOST or not fits:
        return None
    before = [p[0] for p in node.attrs["pad"]]
    lead = [-(-p // s) for p, s in zip(before, stride, strict=True)]
    shift = [n * s - p for n, s, p in zip(lead, stride, before, strict=True)]
    kernel = [-(-(r + q) // s) for r, q, s in zip(weight[1:3], shift, stride, strict=True)]
    size = [o + r - 1 for o, r in zip(out[1:3], kernel, strict=True)]
    channels = -(-wide // 8) * 8
    if any(n + i // s > z for n, i, s, z in zip(lead, image[1:3], stride, size, strict=True)):
        return None
    shape = (image[0], size[0], size[1], channels)
    return Blocks(stride, _pair(lead), _pair(shift), _pair(kernel), shape, image[3])


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


def blocked(node: Node, found: Blocks) -> Node:
    """The convolution over the blocked image."""
    kept = {k: v for k, v in node.attrs.items() if k not in found.attrs}
    return Node(node.name, node.op, node.args, Attrs({**kept, **found.attrs}), node.type)


def image_to(found: Blocks, image: Placement, target: Placement) -> Traced:
    """The image into blocks; `target` holds zeros elsewhere."""
    (sh, sw), (lh, lw), c = found.block, found.lead, found.channels
    n, h, w, _ = image.layout.shape
    tn, th, tw, tc = image.layout.strides
    shape = (n, h // sh, sh, w // sw, sw, c)
    source = Layout(shape, (tn, sh * th, th, sw * tw, tw, tc), image.layout.offset)
    on, oh, ow, _ = row_major_strides(found.image)
    strides = (on, oh, sw * c, ow, c, 1)
    inner = Layout(shape, strides, lh * oh + lw * ow)
    return copied(_moved(image, source), _moved(target, inner))


def weight_to(found: Blocks, weight: Placement, target: Placement) -> Traced:
    """The weight into blocks, with zeros where it has no element."""
    (sh, sw), (qh, qw), (r, s), c = found.block, found.shift, found.kernel, found.channels
    k, kh, kw, _ = weight.layout.shape
    tk, th, tw, tc = weight.layout.strides
    at = whole((k, r * sh, s * sw, c))
    windows = (Window(at[1], qh, 1, kh, th), Window(at[2], qw, 1, kw, tw))
    plain = terms((at[0], at[3]), (tk, tc))
    kind = REGISTER[weight.dtype]
    load = Load(kind, "", (), weight, plain, weight.layout.offset, windows)
    wide = found.image[3]
    strides = (r * s * wide, s * wide, sw * c, wide, c, 1)
    split = regrouped(at, (k, r, sh, s, sw, c))
    place = _moved(target, Layout((k, r, sh, s, sw, c), strides))
    return Traced(k * r * sh * s * sw * c, (Store(load, place, terms(split, strides)),), ())


def weight_from(found: Blocks, source: Placement, weight: Placement) -> Traced:
    """A weight's gradient out of its blocks."""
    (sh, sw), (qh, qw), (r, s), c = found.block, found.shift, found.kernel, found.channels
    k, kh, kw, _ = weight.layout.shape
    at = whole((k, kh, kw, c))
    wide = found.image[3]
    windows = (
        Window(at[1], -qh, sh, r, s * wide, sw * c),
        Window(at[2], -qw, sw, s, wide, c),
    )
    kind = REGISTER[source.dtype]
    plain = terms((at[0], at[3]), (r * s * wide, 1))
    load = Load(kind, "", (), source, plain, 0, windows)
    return Traced(k * kh * kw * c, (Store(load, weight, terms(at, weight.layout.strides)),), ())


def _moved(place: Placement, layout: Layout) -> Placement:
    return Placement(place.buffer, place.dtype, layout)
