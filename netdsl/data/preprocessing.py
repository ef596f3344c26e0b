"""What images go through before a net sees them: from files or arrays to a batch of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from netdsl.backends.lazy_batch import DeviceImages, LazyBatch, Size, SpatialTransforms
from netdsl.data.memory_limits import DECODING_MEMORY, check_decoding_memory
from netdsl.data.pictures import MODES, BadPicture, PictureFile, Pictures
from netdsl.data.spatial_ops import cover_and_center_crop, covering_size
from netdsl.errors import NetError, fail
from netdsl.signature import BoundCall
from netdsl.types import Array, dims

Draws = Sequence[Array]


@dataclass(frozen=True)
class Preprocessing:
    """Applies augmentations in order. Pictures that then do not have the net's `shape` (height,
    width, channels; None accepts any) are resized to cover it, and their centre is cropped."""

    augmentations: tuple[BoundCall, ...] = ()
    shape: tuple[int, ...] | None = None

    def draw(self, rng: np.random.Generator, count: int) -> Draws:
        """The random numbers for the images of an epoch, drawn at once: row i of each array is for
        image i."""
        return tuple(rng.random((count, c.record.draw_count)) for c in self.augmentations)

    def __call__(
        self, images: Array | Pictures | LazyBatch, draws: Draws | None = None
    ) -> Array | LazyBatch:
        """Returns a batch of bytes [N,H,W,C]; what happens to an image depends on its own draws
        alone. A LazyBatch stays lazy; all augmentations must then only move pixels. Raises
        BadPicture for a file that is not a picture, unless bad pictures are skipped."""
        if draws is None:
            draws = [np.zeros((len(images), c.record.draw_count)) for c in self.augmentations]
        if isinstance(images, Pictures):
            return self._decode_batch(images, draws, np.arange(len(images)))
        if isinstance(images, LazyBatch):
            transforms = self._compose(images.transforms, self._window(images.shape[1:]), draws)
            assert transforms is not None, "a lazy batch allows only operations that move pixels"
            return replace(images, transforms=transforms)
        if not any(c.record.has_variable_size for c in self.augmentations):
            return self._apply(images, draws)
        slices = (slice(i, i + 1) for i in range(len(images)))
        return np.concatenate(
            [self._apply_and_fit(images[i], [d[i] for d in draws]) for i in slices]
        )

    def prepare(
        self,
        images: Array | DeviceImages | LazyBatch | Pictures,
        index: Array,
        draws: Draws,
        places: Array,
    ) -> Array | LazyBatch:
        """The images in some `places` of the batch of the images that `index` selects, which have
        these draws. The others are read only to replace pictures that are skipped."""
        if isinstance(images, Pictures):
            return self._decode_batch(images[index], draws, places)
        return self(images[index[places]], [d[places] for d in draws])

    def picture_shape(self) -> tuple[int, ...]:
        """The shape of the pictures that the net takes. Raises NetError if it does not take
        pictures."""
        if self.shape is None or len(self.shape) != 3:
            raise fail("the net does not take pictures: its input is not height x width x channels")
        if self.shape[2] not in MODES:
            raise fail(f"pictures have 1, 3 or 4 channels, but the net expects {self.shape[2]}")
        return self.shape

    def _decode_batch(self, pictures: Pictures, draws: Draws, places: Array) -> Array:
        """Decodes the pictures in some places of a batch. A skipped one is replaced by the next in
        the batch that is not, or by a black one if all are bad."""

        def decode_one(i: int) -> Array | None:
            path = pictures.folder / pictures.names[i]
            try:
                with self._open(path) as picture:
                    decoded = picture.decode(self.picture_shape()[2])[None]
                    return self._apply_and_fit(decoded, [d[i : i + 1] for d in draws])
            except BadPicture as e:
                if pictures.skipped_pictures is None:
                    raise
                pictures.skipped_pictures.add(path, e)
                return None

        wanted: list[int] = places.tolist()
        with ThreadPoolExecutor() as pool:
            found = dict(zip(wanted, pool.map(decode_one, wanted), strict=True))

        def find_next(i: int) -> Array:
            for k in (*range(i, len(pictures)), *range(i)):
                if k not in found:
                    found[k] = decode_one(k)
                if (next_one := found[k]) is not None:
                    return next_one
            return np.zeros((1, *self.picture_shape()), np.uint8)

        return np.concatenate([find_next(i) for i in wanted])

    def check_picture(self, path: Path) -> None:
        """Raises BadPicture if a picture cannot be decoded, or becomes too large."""
        with self._open(path) as picture:
            picture.decode(self.picture_shape()[2])

    @contextmanager
    def _open(self, path: Path) -> Iterator[PictureFile]:
        """Opens a picture once there is memory to decode it."""
        with closing(PictureFile(path)) as picture, self._reserve_memory(picture):
            yield picture

    def _reserve_memory(self, picture: PictureFile) -> AbstractContextManager[None]:
        """Waits until there is memory for a picture, in either orientation. Raises BadPicture if
        the memory limit is too small for it."""
        h, w = picture.size
        max_pixels = max(self.max_pixels((h, w)), self.max_pixels((w, h)))
        channels = self.picture_shape()[2]
        picture.check_size(channels, max_pixels)
        return DECODING_MEMORY.reserve(picture.bytes_per_pixel(channels) * (h * w + max_pixels))

    def max_pixels(self, image_size: Size) -> int:
        """The most pixels that an image of that size has on the way to the net's size. Resampling
        does the width first, which adds an intermediate size to each step."""
        found = 0
        for size in self._intermediate_sizes(image_size):
            found = max(found, size[0] * size[1], image_size[0] * size[1])
            image_size = size
        return found

    def _intermediate_sizes(self, image_size: Size) -> Iterator[Size]:
        """The sizes that images of that size go through, in order."""
        window = self._window(image_size)
        for chosen in self.augmentations:
            for size in chosen.record.intermediate_sizes(image_size, window, **chosen.arguments):
                yield size
                image_size = size
        if image_size != window:
            yield covering_size(image_size, window)

    def fit(self, images: Array) -> Array:
        """Images [N,H,W,C] of one size, as bytes of the net's shape: like pictures, they are
        resized and cropped where the augmentations, none of which is random, do not do so."""
        if not self.augmentations and images.shape[1:3] == self._window(images.shape[1:]):
            return images
        self._check_memory(images.shape[1:], 1)
        draws = [np.zeros((1, 0)) for _ in self.augmentations]
        return np.concatenate([self._apply_and_fit(x[None], draws) for x in images])

    def _apply_and_fit(self, images: Array, draws: Draws) -> Array:
        window = self._window(images.shape[1:])
        images = self._apply(images, draws)
        return images if images.shape[1:3] == window else cover_and_center_crop(images, window)

    def _apply(self, images: Array, draws: Draws) -> Array:
        if not self.augmentations:
            return images
        window = self._window(images.shape[1:])
        identity = SpatialTransforms.identity(len(images), images.shape[1:3])
        transforms = self._compose(identity, window, draws)
        if transforms is not None:
            return transforms.apply(images)
        for chosen, drawn in zip(self.augmentations, draws, strict=True):
            with _add_span_to_errors(chosen):
                images = chosen.record.apply(images, drawn, window, **chosen.arguments)
        return images

    def _compose(
        self, transforms: SpatialTransforms, window: Size, draws: Draws
    ) -> SpatialTransforms | None:
        """Adds the augmentations to `transforms`. Returns None if any does more than move
        pixels."""
        found: SpatialTransforms | None = transforms
        for chosen, drawn in zip(self.augmentations, draws, strict=True):
            spatial = chosen.record.spatial
            if spatial is None or found is None:
                return None
            with _add_span_to_errors(chosen):
                found = spatial.compose(found, drawn, window, **chosen.arguments)
        return found

    def is_spatial_only(self, image_shape: tuple[int, ...]) -> bool:
        """Whether preprocessing only moves the pixels of images of that shape."""
        if len(image_shape) != 3:
            return False
        blank = np.zeros((1, *image_shape), np.uint8)
        identity = SpatialTransforms.identity(1, blank.shape[1:3])
        draws = [np.zeros((1, c.record.draw_count)) for c in self.augmentations]
        return self._compose(identity, self._window(image_shape), draws) is not None

    def _window(self, image_shape: Sequence[int]) -> Size:
        h, w = (self.shape or image_shape)[:2]
        return h, w

    def compute_output_shape(
        self, image_shape: tuple[int, ...] | None, count: int
    ) -> tuple[int, ...]:
        """The shape that the augmentations give to images of that shape (None: to pictures that
        already have the net's size). Raises NetError if that is impossible, or if `count` images at
        once need too much memory."""
        if image_shape is None:
            image_shape = self.picture_shape()
        elif len(image_shape) != 3 or (self.shape is not None and len(self.shape) != 3):
            return image_shape
        self._check_memory(image_shape, count)
        draws = [np.zeros((1, c.record.draw_count)) for c in self.augmentations]
        shape: tuple[int, ...] = self._apply(np.zeros((1, *image_shape), np.uint8), draws).shape[1:]
        return shape

    def _check_memory(self, image_shape: tuple[int, ...], count: int) -> None:
        """Raises NetError if `count` images of that shape need too much memory at once."""
        h, w, channels = image_shape
        size = count * channels * self.max_pixels((h, w))
        check_decoding_memory(f"preparing {count:,} images of {dims(image_shape)}", size)

    def needs_resize(self, image_shape: tuple[int, ...] | None) -> bool:
        """Whether images of that shape (None: pictures of any size) are resized implicitly, before
        an augmentation that needs larger ones or after the last one."""
        if image_shape is None:
            height, _, channels = self.picture_shape()
            side = max(1, height // 2)
            image_shape = (side, side + 1, channels)  # nor of a usual aspect ratio
        if len(image_shape) != 3 or (self.shape is not None and len(self.shape) != 3):
            return False
        images: Array = np.zeros((1, *image_shape), np.uint8)
        window = self._window(image_shape)
        for chosen in self.augmentations:
            drawn, spatial = np.zeros((1, chosen.record.draw_count)), chosen.record.spatial
            identity = SpatialTransforms.identity(1, images.shape[1:3])
            if spatial and spatial.compose(identity, drawn, window, **chosen.arguments) is None:
                return True
            images = chosen.record.apply(images, drawn, window, **chosen.arguments)
        return images.shape[1:3] != window


@contextmanager
def _add_span_to_errors(chosen: BoundCall) -> Iterator[None]:
    """Adds the source location of the augmentation to its errors."""
    try:
        yield
    except NetError as e:
        raise e.with_default_span(chosen.span) from None


NO_PREPROCESSING = Preprocessing()
