"""Packs operands for a library: contiguous, with padded channels, or in blocks of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from netdsl.backends.array_backend import address
from netdsl.backends.cuda import space_to_depth
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from netdsl.backends.cuda.device import Device
from netdsl.backends.cuda.map_kernels import map_launches
from netdsl.lower.trace import TracedKernel, trace_copy
from netdsl.plan.layout import IntTuple, Layout, make_contiguous, row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import ITEMSIZE, Array


class OperandPacking:
    """Packed copies of operands, and the launches before and after a product that make them.

    The first product of a step that needs a copy makes it, in its own buffer, whose padding stays
    zero. `copies` are those that earlier products have made.
    """

    def __init__(
        self, device: Device, memory: dict[str, Array], copies: Mapping[tuple[str, int], Placement]
    ) -> None:
        self.device = device
        self.memory = memory
        self.copies = dict(copies)
        self.launches_before: list[CudaLaunch] = []
        self.launches_after: list[CudaLaunch] = []

    def make_launches(self, traced: TracedKernel) -> tuple[CudaLaunch, ...]:
        return map_launches(traced, self.device.multiprocessors)

    def pack(self, name: str, place: Placement, channels: int | None = None) -> Placement:
        """Returns a contiguous copy, with the last axis padded with zeros to `channels`."""
        padded_channels = channels or place.layout.shape[-1]
        make_copy = lambda inner: trace_copy(place, inner)
        inner = self._copy_once(
            (name, padded_channels), place.dtype, place.layout.shape, make_copy, padded_channels
        )
        return _widen_channels(inner, padded_channels)

    def pack_vector(self, name: str, place: Placement, dtype: str) -> Placement:
        """Returns a contiguous copy of a vector as `dtype`, or the vector itself if it is that."""
        size = math.prod(place.layout.shape)
        steps = {t for n, t in zip(place.layout.shape, place.layout.strides, strict=True) if n > 1}
        if place.dtype == dtype and steps <= {1}:
            return place
        make_copy = lambda inner: trace_copy(place, inner)
        return self._copy_once((f"{dtype} of {name}", size), dtype, place.layout.shape, make_copy)

    def unpack(self, out: Placement, channels: int | None = None) -> Placement:
        """Returns a contiguous, padded place for a result, which is copied to `out` afterwards."""
        padded_channels = channels or out.layout.shape[-1]
        inner = self.allocate(out.dtype, out.layout.shape, padded_channels)
        self.launches_after += self.make_launches(trace_copy(inner, out))
        return _widen_channels(inner, padded_channels)

    def block_image(
        self, name: str, image: Placement, blocks: space_to_depth.SpaceToDepth
    ) -> Placement:
        make_copy = lambda inner: space_to_depth.trace_image_copy(blocks, image, inner)
        key = (f"blocks of {name}", blocks.image_shape[1])
        return self._copy_once(key, image.dtype, blocks.image_shape, make_copy)

    def _copy_once(
        self,
        key: tuple[str, int],
        dtype: str,
        shape: IntTuple,
        make_copy: Callable[[Placement], TracedKernel],
        channels: int | None = None,
    ) -> Placement:
        """Returns the copy under a key; allocates it and adds its launches if there is none yet."""
        if key not in self.copies:
            inner = self.allocate(dtype, shape, channels)
            self.launches_before += self.make_launches(make_copy(inner))
            self.copies[key] = inner
        return self.copies[key]

    def block_weight(self, weight: Placement, blocks: space_to_depth.SpaceToDepth) -> Placement:
        inner = self._allocate_weight(weight, blocks)
        self.launches_before += self.make_launches(
            space_to_depth.trace_weight_copy(blocks, weight, inner)
        )
        return inner

    def unblock_weight(self, weight: Placement, blocks: space_to_depth.SpaceToDepth) -> Placement:
        inner = self._allocate_weight(weight, blocks)
        self.launches_after += self.make_launches(
            space_to_depth.trace_weight_gradient_copy(blocks, inner, weight)
        )
        return inner

    def _allocate_weight(self, weight: Placement, blocks: space_to_depth.SpaceToDepth) -> Placement:
        return self.allocate(weight.dtype, blocks.weight_shape(weight.layout.shape[0]))

    def pointer(self, place: Placement) -> int:
        return address(self.memory[place.buffer]) + place.start

    def allocate(self, dtype: str, shape: IntTuple, channels: int | None = None) -> Placement:
        """Allocates a buffer of zeros, and returns the placement of a value of this shape in it."""
        padded_shape = (*shape[:-1], channels or shape[-1]) if shape else ()
        name = f"packed {len(self.memory)}"
        size = math.prod(padded_shape) * ITEMSIZE[dtype]
        self.memory[name] = self.device.cupy.zeros(size, dtype="uint8")
        layout = Layout(shape, row_major_strides(padded_shape)) if shape else make_contiguous(shape)
        return Placement(name, dtype, layout)


def _widen_channels(place: Placement, channels: int) -> Placement:
    """Returns the placement with the padding of its channels included."""
    shape = (*place.layout.shape[:-1], channels)
    return replace(place, layout=Layout(shape, place.layout.strides))
