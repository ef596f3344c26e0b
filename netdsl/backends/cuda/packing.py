"""Operands as a library wants them: copies without gaps, with more channels, or in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from netdsl.backends.array_backend import address
from netdsl.backends.cuda import space
from netdsl.backends.cuda.device import Device
from netdsl.backends.cuda.launch import Launch
from netdsl.backends.cuda.maps import launches
from netdsl.backends.cuda.trace import Traced, copied
from netdsl.plan.layout import IntTuple, Layout, make_contiguous, row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import ITEMSIZE, Array


class Packing:
    """Copies of operands, and what has to be launched before and after a product for them.

    A copy is made by the first product of a step that reads it, in a buffer of its own; zeros
    around it stay. `known` are the copies that earlier products have made.
    """

    def __init__(
        self, device: Device, memory: dict[str, Array], known: Mapping[tuple[str, int], Placement]
    ) -> None:
        self.device = device
        self.memory = memory
        self.known = dict(known)
        self.before: list[Launch] = []
        self.after: list[Launch] = []

    def launches(self, traced: Traced) -> tuple[Launch, ...]:
        return launches(traced, self.device.multiprocessors)

    def packed(self, name: str, place: Placement, channels: int | None = None) -> Placement:
        """The same values row after row, each row with zeros up to `channels`."""
        wide = channels or place.layout.shape[-1]
        into = lambda inner: copied(place, inner)
        inner = self._once((name, wide), place.dtype, place.layout.shape, into, wide)
        return _widened(inner, wide)

    def vector(self, name: str, place: Placement, dtype: str) -> Placement:
        """The values of a vector one after the other, in a type that may be another."""
        size = math.prod(place.layout.shape)
        steps = {t for n, t in zip(place.layout.shape, place.layout.strides, strict=True) if n > 1}
        if place.dtype == dtype and steps <= {1}:
            return place
        into = lambda inner: copied(place, inner)
        return self._once((f"{dtype} of {name}", size), dtype, place.layout.shape, into)

    def unpacked(self, out: Placement, channels: int | None = None) -> Placement:
        """Where a product may write a result with more channels, or without gaps."""
        wide = channels or out.layout.shape[-1]
        inner = self.buffer(out.dtype, out.layout.shape, wide)
        self.after += self.launches(copied(inner, out))
        return _widened(inner, wide)

    def blocked_image(self, name: str, image: Placement, blocks: space.Blocks) -> Placement:
        into = lambda inner: space.image_to(blocks, image, inner)
        key = (f"blocks of {name}", blocks.image[1])
        return self._once(key, image.dtype, blocks.image, into)

    def _once(
        self,
        key: tuple[str, int],
        dtype: str,
        shape: IntTuple,
        into: Callable[[Placement], Traced],
        channels: int | None = None,
    ) -> Placement:
        """The copy under a key; where it is not known yet, a new buffer, and what fills it."""
        if key not in self.known:
            inner = self.buffer(dtype, shape, channels)
            self.before += self.launches(into(inner))
            self.known[key] = inner
        return self.known[key]

    def blocked_weight(self, weight: Placement, blocks: space.Blocks) -> Placement:
        inner = self._weight(weight, blocks)
        self.before += self.launches(space.weight_to(blocks, weight, inner))
        return inner

    def unblocked_weight(self, weight: Placement, blocks: space.Blocks) -> Placement:
        inner = self._weight(weight, blocks)
        self.after += self.launches(space.weight_from(blocks, inner, weight))
        return inner

    def _weight(self, weight: Placement, blocks: space.Blocks) -> Placement:
        return self.buffer(weight.dtype, blocks.weight_shape(weight.layout.shape[0]))

    def pointer(self, place: Placement) -> int:
        return address(self.memory[place.buffer]) + place.start

    def buffer(self, dtype: str, shape: IntTuple, channels: int | None = None) -> Placement:
        """A new buffer of zeros, and the place of values of this shape in it."""
        whole = (*shape[:-1], channels or shape[-1]) if shape else ()
        name = f"packed {len(self.memory)}"
        size = math.prod(whole) * ITEMSIZE[dtype]
        self.memory[name] = self.device.cupy.zeros(size, dtype="uint8")
        layout = Layout(shape, row_major_strides(whole)) if shape else make_contiguous(shape)
        return Placement(name, dtype, layout)


def _widened(place: Placement, channels: int) -> Placement:
    """A place with the zeros behind its rows."""
    shape = (*place.layout.shape[:-1], channels)
    return replace(place, layout=Layout(shape, place.layout.strides))
