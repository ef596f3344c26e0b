"""What images go through before a net sees them: from files or arrays to one batch of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from netdsl.backends.picked import Moves, Picked, Size
from netdsl.data.geometry import covering_size, middle
from netdsl.data.limits import DECODING, check_work
from netdsl.data.pictures import MODES, BadPicture, Opened, Pictures
from netdsl.errors import NetError, fail
from netdsl.signature import BoundCall
from netdsl.types import Array, dims

Draws = Sequence[Array]


@dataclass(frozen=True)
class Preparation:
    """Changes, one after the other. Pictures that then have not the net's `shape` (height, width,
    channels; none where it is whatever the images have) are resized to cover it, and their middle
    is taken."""

    chosen: tuple[BoundCall, ...] = ()
    shape: tuple[int, ...] | None = None

    def draws(self, rng: np.random.Generator, images: int) -> Draws:
        """What is drawn for the images of an epoch, made at once: image i has the i-th of each."""
        return tuple(rng.random((images, c.record.uses)) for c in self.chosen)

    def __call__(
        self, images: Array | Pictures | Picked, draws: Draws | None = None
    ) -> Array | Picked:
        """A batch of bytes [N,H,W,C]; what happens to an image depends on its own draws alone.
        Images that are picked from a set stay so: all that is done to them must be to move them.
        Raises BadPicture for a file that is no picture, unless such are skipped."""
        if draws is None:
            draws = [np.zeros((len(images), c.record.uses)) for c in self.chosen]
        if isinstance(images, Pictures):
            return self._decoded(images, draws)
        if isinstance(images, Picked):
            moves = self._moves(images.moves, self._window(images.shape[1:]), draws)
            assert moves is not None, "a set is held for what only moves pixels"
            return replace(images, moves=moves)
        if not any(c.record.varies for c in self.chosen):
            return self._changed(images, draws)
        alone = (slice(i, i + 1) for i in range(len(images)))
        return np.concatenate([self._fitted(images[i], [d[i] for d in draws]) for i in alone])

    def picture_shape(self) -> tuple[int, ...]:
        """The shape of the pictures that the net takes. Raises NetError where it takes none."""
        if self.shape is None or len(self.shape) != 3:
            raise fail("the net takes no pictures: its input has no height, width and channels")
        if self.shape[2] not in MODES:
            raise fail(f"pictures have 1, 3 or 4 channels, the net wants {self.shape[2]}")
        return self.shape

    def _decoded(self, pictures: Pictures, draws: Draws) -> Array:
        """A batch of pictures. Where bad ones are skipped, others of the batch stand in their
        places, and black ones where there are none."""

        shape = self.picture_shape()

        def one(path: Path, i: int) -> Array | None:
            try:
                with self._opened(path) as picture:
                    decoded = picture.decoded(shape[2])[None]
                    return self._fitted(decoded, [d[i : i + 1] for d in draws])
            except BadPicture as e:
                if pictures.skipped is None:
                    raise
                pictures.skipped.add(path, e)
                return None

        with ThreadPoolExecutor() as pool:
            found = list(pool.map(one, pictures.paths, range(len(pictures))))
        good = [x for x in found if x is not None] or [np.zeros((1, *shape), np.uint8)]
        filled = [good[i % len(good)] if x is None else x for i, x in enumerate(found)]
        return np.concatenate(filled)

    def check(self, path: Path) -> None:
        """Raises BadPicture where a picture cannot be decoded, or becomes too large."""
        with self._opened(path) as picture:
            picture.decoded(self.picture_shape()[2])

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Opened]:
        """A picture, once there is memory to decode it."""
        with closing(Opened(path)) as picture, self._room(picture):
            yield picture

    def _room(self, picture: Opened) -> AbstractContextManager[None]:
        """Waits until there is memory for a picture, whichever way up it is. Raises BadPicture
        where there never is."""
        h, w = picture.size
        largest = max(self.largest((h, w)), self.largest((w, h)))
        channels = self.picture_shape()[2]
        picture.check_size(channels, largest)
        return DECODING.held(picture.pixel(channels) * (h * w + largest))

    def largest(self, there: Size) -> int:
        """Pixels that an image of that size has at most on its way to the net's size. It is
        resampled by width first, so that there is one more size between each two."""
        most = 0
        for size in self._sizes(there):
            most = max(most, size[0] * size[1], there[0] * size[1])
            there = size
        return most

    def _sizes(self, there: Size) -> Iterator[Size]:
        """The sizes that images of that size are given, one after the other."""
        window = self._window(there)
        for chosen in self.chosen:
            for size in chosen.record.sizes(there, window, **chosen.arguments):
                yield size
                there = size
        if there != window:
            yield covering_size(there, window)

    def _fitted(self, images: Array, draws: Draws) -> Array:
        window = self._window(images.shape[1:])
        images = self._changed(images, draws)
        return images if images.shape[1:3] == window else middle(images, window)

    def _changed(self, images: Array, draws: Draws) -> Array:
        window = self._window(images.shape[1:])
        plain = Moves.none(len(images), images.shape[1:3])
        moves = self._moves(plain, window, draws) if self.chosen else None
        if moves is not None:
            return moves.applied(images)
        for chosen, drawn in zip(self.chosen, draws, strict=True):
            with _blamed(chosen):
                images = chosen.record.apply(images, drawn, window, **chosen.arguments)
        return images

    def _moves(self, moves: Moves, window: Size, draws: Draws) -> Moves | None:
        """The changes added to `moves`, if pixels are only moved by them."""
        found: Moves | None = moves
        for chosen, drawn in zip(self.chosen, draws, strict=True):
            moving = chosen.record.moves
            if moving is None or found is None:
                return None
            with _blamed(chosen):
                found = moving.moved(found, drawn, window, **chosen.arguments)
        return found

    def moves_only(self, image: tuple[int, ...]) -> bool:
        """Whether all that is done to images of that shape is to move their pixels."""
        if len(image) != 3:
            return False
        one = np.zeros((1, *image), np.uint8)
        plain = Moves.none(1, one.shape[1:3])
        draws = [np.zeros((1, c.record.uses)) for c in self.chosen]
        return self._moves(plain, self._window(image), draws) is not None

    def _window(self, image: Sequence[int]) -> Size:
        h, w = (self.shape or image)[:2]
        return h, w

    def outcome(self, image: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
        """The shape that the changes give to images of that shape (None: to pictures that happen
        to have the net's size). Raises NetError where one cannot be made of them, and where so
        many at once need too much memory."""
        if image is None:
            image = self.picture_shape()
        elif len(image) != 3 or (self.shape is not None and len(self.shape) != 3):
            return image
        self._check_room(image, count)
        draws = [np.zeros((1, c.record.uses)) for c in self.chosen]
        shape: tuple[int, ...] = self._changed(np.zeros((1, *image), np.uint8), draws).shape[1:]
        return shape

    def _check_room(self, image: tuple[int, ...], count: int) -> None:
        """Raises NetError where so many images of that shape need too much memory at once."""
        h, w, channels = image
        size = count * channels * self.largest((h, w))
        check_work(f"making {count:,} images of {dims(image)} ready", size)

    def fits_sizes(self, image: tuple[int, ...] | None) -> bool:
        """Whether images of that shape (None: pictures of any size) are brought to the net's size
        by themselves, before a change that wants larger ones or after the last."""
        if image is None:
            height, _, channels = self.picture_shape()
            small = max(1, height // 2)
            image = (small, small + 1, channels)  # of no usual ratio either
        if len(image) != 3 or (self.shape is not None and len(self.shape) != 3):
            return False
        images: Array = np.zeros((1, *image), np.uint8)
        window = self._window(image)
        for chosen in self.chosen:
            drawn, moving = np.zeros((1, chosen.record.uses)), chosen.record.moves
            plain = Moves.none(1, images.shape[1:3])
            if moving and moving.moved(plain, drawn, window, **chosen.arguments) is None:
                return True
            images = chosen.record.apply(images, drawn, window, **chosen.arguments)
        return images.shape[1:3] != window


@contextmanager
def _blamed(chosen: BoundCall) -> Iterator[None]:
    """An error is shown where the change stands that it is about."""
    try:
        yield
    except NetError as e:
        raise e.with_default_span(chosen.span) from None


AS_IT_IS = Preparation()
