"""Lazy batches, picked from a set of images by numbers: which images, and which source pixel each
pixel comes from. Whoever holds the set can make the batch, the host or a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from netdsl.types import Array

Size = tuple[int, int]
"""Height and width."""
BLACK, GREY = 0, 128
TABLE_COLUMNS = ("NUMBER", "TOP", "LEFT", "STEP", "ROW", "ROW_END", "COLUMN", "COLUMN_END")
"""The numbers of an image in a table; those of its squares follow, four each."""


@dataclass(frozen=True)
class SpatialTransforms:
    """The transforms of n images. The pixel in row y and column x of a transformed image is that of
    the source image in row `top + y` and column `left + step * x`, with `step` 1 or -1, if y and x
    are within `rows` and `columns` (n x 2: first, and one past the last), else black; but grey
    within any of `squares` (n x k x 4: first row, last, first column, last; the last ones
    exclusive)."""

    size: Size
    top: Array
    left: Array
    step: Array
    rows: Array
    columns: Array
    squares: Array

    @staticmethod
    def identity(count: int, size: Size) -> SpatialTransforms:
        """Returns the identity transform for images of this size."""
        zeros = np.zeros(count, np.int32)
        rows, columns = (np.stack([zeros, zeros + side], axis=1) for side in size)
        no_squares = np.zeros((count, 0, 4), np.int32)
        return SpatialTransforms(size, zeros, zeros, zeros + 1, rows, columns, no_squares)

    def crop(self, top: Array, left: Array, size: Size) -> SpatialTransforms:
        """Crops each image at its own row and column; the crop may extend beyond the image."""
        sides = ((self.rows, top, size[0]), (self.columns, left, size[1]))
        rows, columns = (np.clip(ends - at[:, None], 0, side) for ends, at, side in sides)
        corner = np.stack([top, top, left, left], axis=1)[:, None]
        return replace(
            self,
            size=size,
            top=self.top + top,
            left=self.left + self.step * left,
            rows=rows,
            columns=columns,
            squares=np.clip(self.squares - corner, 0, np.repeat(size, 2)),
        )

    def flip(self, mask: Array) -> SpatialTransforms:
        """Flips the images of `mask` (n booleans) horizontally."""
        wide, (y0, y1, x0, x1) = self.size[1], np.moveaxis(self.squares, 2, 0)
        flipped = np.stack([y0, y1, wide - x1, wide - x0], axis=2)
        return replace(
            self,
            left=np.where(mask, self.left + self.step * (wide - 1), self.left),
            step=np.where(mask, -self.step, self.step),
            columns=np.where(mask[:, None], wide - self.columns[:, ::-1], self.columns),
            squares=np.where(mask[:, None, None], flipped, self.squares),
        )

    def add_square(self, top: Array, left: Array, side: int) -> SpatialTransforms:
        """Adds a grey square to each image, clipped to it."""
        h, w = self.size
        corners = np.stack([top, top + side, left, left + side], axis=1)
        square = np.clip(corners, 0, (h, h, w, w))[:, None].astype(np.int32)
        return replace(self, squares=np.concatenate([self.squares, square], axis=1))

    def __getitem__(self, index: Array) -> SpatialTransforms:
        """Selects the transforms of some of the images."""
        fields = ("top", "left", "step", "rows", "columns", "squares")
        return replace(self, **{name: getattr(self, name)[index] for name in fields})

    def to_table(self) -> Array:
        """Returns all numbers, one row per image."""
        first = np.stack([self.top, self.left, self.step], axis=1)
        squares = self.squares.reshape(len(first), -1)
        return np.concatenate([first, self.rows, self.columns, squares], axis=1, dtype=np.int32)

    def apply(self, images: Array) -> Array:
        """Returns the transformed images [n,H,W,C] of `images` [n,H,W,C]."""
        found = self._crop_windows(images)
        is_flipped = self.step < 0
        if is_flipped.any():
            pixels = found.view(f"V{found.shape[3]}")[..., 0]
            pixels[is_flipped] = pixels[is_flipped][:, :, ::-1]
        if not self._is_black_only_outside(images.shape[1:3]):
            found[~self._box_mask(np.concatenate([self.rows, self.columns], axis=1))] = BLACK
        for square in np.moveaxis(self.squares, 1, 0):
            found[self._box_mask(square)] = GREY
        return found

    def _crop_windows(self, images: Array) -> Array:
        """Returns the source windows of the transformed images, not yet flipped, with black outside
        the images."""
        n, h, w, c = images.shape
        (tall, wide), top = self.size, self.top
        left = np.where(self.step < 0, self.left - (wide - 1), self.left)
        if self.size == (h, w) and not top.any() and not left.any():
            return images.copy()
        pad_top, pad_left = (max(0, -int(at.min(initial=0))) for at in (top, left))
        pad_bottom, pad_right = (
            max(0, int(at.max(initial=0)) + side - extent)
            for at, side, extent in ((top, tall, h), (left, wide, w))
        )
        padding = ((0, 0), (pad_top, pad_bottom), (pad_left, pad_right), (0, 0))
        # rows of bytes, each copied as a whole
        padded = np.pad(images, padding).reshape(n, h + pad_top + pad_bottom, -1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (tall, wide * c), axis=(1, 2))
        parts = windows[np.arange(n), top + pad_top, (left + pad_left) * c]
        return np.ascontiguousarray(parts).reshape(n, tall, wide, c)

    def _is_black_only_outside(self, source: Size) -> bool:
        """Returns whether pixels are black only outside a source image of this size."""
        (h, w), (tall, wide) = source, self.size
        left = np.where(self.step < 0, self.left - (w - 1), -self.left)
        ends = ((-self.top, h, tall, self.rows), (left, w, wide, self.columns))
        return all(
            np.array_equal(np.clip(np.stack([first, first + n], axis=1), 0, side), visible)
            for first, n, side, visible in ends
        )

    def _box_mask(self, box: Array) -> Array:
        """Returns a mask of the pixels between rows and columns (n x 4)."""
        (y0, y1, x0, x1), (h, w) = box.T[..., None], self.size
        rows, columns = (
            (at >= low) & (at < high)
            for at, low, high in ((np.arange(h), y0, y1), (np.arange(w), x0, x1))
        )
        return rows[:, :, None] & columns[:, None, :]


@dataclass(frozen=True)
class DeviceImages:
    """A set of images [N,H,W,C] of bytes that is also on a device, as `device_array`."""

    host_array: Array
    device_array: Any

    def __len__(self) -> int:
        return len(self.host_array)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.host_array.shape)

    def __getitem__(self, index: Array) -> LazyBatch:
        return LazyBatch(
            self, index, SpatialTransforms.identity(len(index), self.host_array.shape[1:3])
        )


@dataclass(frozen=True)
class LazyBatch:
    """The images of a set that `index` selects, each transformed."""

    source: DeviceImages
    index: Array
    transforms: SpatialTransforms

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.transforms.size, self.source.host_array.shape[3])

    @property
    def dtype(self) -> Any:
        return self.source.host_array.dtype

    def __getitem__(self, index: Array) -> LazyBatch:
        return LazyBatch(self.source, self.index[index], self.transforms[index])

    def to_table(self) -> Array:
        """Returns a row per image: its number in the set, then its transform (`TABLE_COLUMNS`)."""
        return np.concatenate(
            [self.index[:, None], self.transforms.to_table()], axis=1, dtype=np.int32
        )

    def materialize(self) -> Array:
        """Returns the batch, computed on the host."""
        return self.transforms.apply(self.source.host_array[self.index])


def materialize(images: Any) -> Array:
    """Returns a batch as an array, whether it is lazy or not."""
    return images.materialize() if isinstance(images, LazyBatch) else images
