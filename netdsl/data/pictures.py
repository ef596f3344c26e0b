"""Picture files as arrays of bytes, decoded on demand, and such arrays written as files."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from glob import has_magic, iglob
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from netdsl.data.memory_limits import check_pixels
from netdsl.errors import Diagnostic, NetError, fail
from netdsl.file_io import open_regular_file, write_atomically
from netdsl.ranks.communicator import Communicator
from netdsl.types import Array, dims

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
"""The formats that are decoded, by Pillow's names; a file's content decides its format, never its
name. Other formats may start a program (as PostScript does) or cannot be told from noise."""
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM|RIFF....WEBP|II[*+]\0|MM\0[*+]|P[1-6]\s"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
UNREAD_SUFFIXES = frozenset((".avif", ".cr2", ".dng", ".heic", ".heif", ".nef", ".psd", ".svg"))
"""Suffixes of pictures in formats that are not decoded."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PLAIN_MODES = ("1", "L", "P", "RGB")
_WHOLE_IMAGE_FORMATS = ("WEBP", "JPEG2000")
"""Formats whose decoders hold the whole picture themselves, once or twice."""
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


class BadPicture(NetError):
    """A file that cannot be used as a picture."""


class SkippedPictures:
    """The bad pictures that are skipped, with the error of each. Thread-safe."""

    def __init__(self) -> None:
        self._messages: dict[Path, str] = {}
        self._lock = Lock()

    def add(self, path: Path, error: BadPicture) -> None:
        with self._lock:
            self._messages.setdefault(path, error.diagnostics[0].message)

    def has_path(self, path: Path) -> bool:
        return path in self._messages

    def share(self, communicator: Communicator) -> None:
        """Adds those that the other ranks have found."""
        with self._lock:
            own = [[str(path), message] for path, message in self._messages.items()]
        for text in communicator.all_gather(json.dumps(own).encode()):
            for path, message in json.loads(text):
                with self._lock:
                    self._messages.setdefault(Path(path), message)

    @property
    def messages(self) -> tuple[str, ...]:
        """The errors, one sentence each, in the order in which they were found."""
        with self._lock:
            return tuple(self._messages.values())


@dataclass(frozen=True)
class Pictures:
    """Picture files of any size; `names` is an array of strings, relative to `folder`. Bad pictures
    are added to `skipped_pictures` if given, else they raise an error."""

    folder: Path
    names: Array
    skipped_pictures: SkippedPictures | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Array | slice) -> Pictures:
        return replace(self, names=self.names[index])

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.names]

    def valid_mask(self) -> Array:
        """1 for each picture, 0 for those that are skipped, as far as they have been decoded."""
        skipped_pictures = self.skipped_pictures
        is_valid = [
            skipped_pictures is None or not skipped_pictures.has_path(p) for p in self.paths
        ]
        return np.array(is_valid, dtype=np.float32)

    def checksum(self) -> int:
        """A checksum of the files' names and lengths."""
        lengths = (os.path.getsize(path) for path in self.paths)
        lines = (f"{n} {size}\n" for n, size in zip(self.names, lengths, strict=True))
        return _text_checksum("".join(lines))

    def name_checksum(self) -> int:
        """Like `checksum`, but without lengths, which may change when damaged files are
        restored."""
        return _text_checksum("\n".join(map(str, self.names)))


def _text_checksum(text: str) -> int:
    return zlib.crc32(text.encode(errors="surrogateescape"))


def pictures_from_paths(paths: Sequence[Path]) -> Pictures:
    """Pictures at the given paths."""
    return Pictures(Path(), np.array([str(p) for p in paths], dtype=object))


def _make_error(message: str, help: str | None = None) -> BadPicture:
    return BadPicture(Diagnostic(message, help=help))


def _explain_pattern(path: Path) -> str | None:
    """A help line if a path is a pattern for several files."""
    if not has_magic(str(path)):
        return None
    if not any(iglob(str(path))):
        return "this is a pattern, and no file matches it"
    return "a pattern is expanded by the shell, without quotes, or in Python by `glob.glob`"


class PictureFile:
    """A picture whose header has been read and whose pixels are not decoded. Raises BadPicture if
    the file is missing, not a regular file, or not a picture of a known format. Must be closed with
    `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular_file(path)
        except NetError as e:
            missing = f"there is no picture {path}"
            if not path.exists():
                raise _make_error(missing, _explain_pattern(path)) from None
            raise _make_error(e.diagnostics[0].message) from None
        try:
            with _add_path_to_errors(path):
                self._picture = _pillow().open(self._file, formats=FORMATS)
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored, before the EXIF orientation is applied."""
        width, height = self._picture.size
        return height, width

    def bytes_per_pixel(self, channels: int) -> int:
        """Bytes that a pixel takes while it is decoded, converted, resized and copied into a batch
        with that many channels."""
        is_plain = self._picture.mode in _PLAIN_MODES and "transparency" not in self._picture.info
        return (12 if is_plain and channels < 4 else 20) + 8 * (
            self._picture.format in _WHOLE_IMAGE_FORMATS
        )

    def check_size(self, channels: int = 3, max_pixels: int = 0) -> None:
        """Raises BadPicture if it has too many pixels to decode, alone or together with the
        `max_pixels` that it is resized to."""
        pixels = self.size[0] * self.size[1]
        bytes_per_pixel = self.bytes_per_pixel(channels)
        what = f"the picture {self.path} of {dims(self.size)}"
        try:
            check_pixels(what, pixels, bytes_per_pixel)
            check_pixels(
                f"{what}, together with the resized picture,",
                pixels + max_pixels,
                bytes_per_pixel,
            )
        except NetError as e:
            raise BadPicture(*e.diagnostics) from None

    def check_range(self) -> None:
        """Raises BadPicture if it is unknown which of its values is white."""
        with _add_path_to_errors(self.path):
            _check_range(self._picture)

    def decode(self, channels: int) -> Array:
        """The picture as bytes [H,W,channels] (1, 3 or 4): upright, and on white if it is
        transparent. Raises BadPicture if it is damaged."""
        with _add_path_to_errors(self.path):
            values = _to_array(_apply_orientation(self._picture), channels)
            self._picture.close()  # takes as much memory as the values, which are a copy
            return values

    def close(self) -> None:
        self._picture.close()
        self._file.close()


@contextmanager
def _add_path_to_errors(path: Path) -> Iterator[None]:
    """Adds the file's path to errors."""
    try:
        yield
    except NetError as e:
        first = e.diagnostics[0]
        raise _make_error(f"{path}: {first.message}", first.help) from None
    except Exception as e:  # third-party decoders raise anything for damaged files
        help = "convert it to JPEG or PNG" if path.suffix.lower() in UNREAD_SUFFIXES else None
        message = f"{path} is not a readable picture: {_describe_error(e, path)}"
        raise _make_error(message, help) from None


def _describe_error(e: Exception, path: Path) -> str:
    formats = ", ".join(FORMATS)
    is_unknown_format = type(e).__name__ == "UnidentifiedImageError"
    return f"it is not one of {formats}" if is_unknown_format else str(e)[:200] or type(e).__name__


def read_picture(path: Path, channels: int) -> Array:
    """A picture as bytes [H,W,channels], as `PictureFile.decode` returns them. Raises BadPicture if
    it cannot be read, or has more pixels than the memory limit allows."""
    with closing(PictureFile(path)) as picture:
        picture.check_size(channels)
        return picture.decode(channels)


def is_pillow_image(value: object) -> bool:
    """Whether a value is an image of Pillow."""
    return "PIL.Image" in sys.modules and isinstance(value, _pillow().Image)


def convert_image(image: Any, channels: int) -> Array:
    """An image of Pillow as bytes [H,W,channels], as `PictureFile.decode` returns them. Raises
    NetError if it is unknown which of its values is white."""
    return _to_array(_apply_orientation(image.copy()), channels)


def encode_png(picture: Array) -> bytes:
    """Bytes [H,W,1 or 3] as a PNG file."""
    from PIL import Image

    content = io.BytesIO()
    pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, format="PNG")
    return content.getvalue()


def shrink_picture(picture: Array, max_side: int) -> Array:
    """Bytes [H,W,1 or 3] with at most `max_side` pixels per side, averaged over the area; the same
    if it is no larger."""
    height, width, channels = picture.shape
    if max(height, width) <= max_side:
        return picture
    from PIL import Image

    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if channels == 1 else picture))
    return np.asarray(image.resize(size, Image.Resampling.BOX)).reshape(*size[::-1], channels)


def write_picture(path: Path, picture: Array) -> None:
    """Writes bytes [H,W,1 or 3] as a PNG file. Raises NetError if it cannot be written."""
    write_atomically(path, encode_png(picture))


def is_picture(path: Path) -> bool:
    """Whether a file starts with the magic bytes of a picture and has a readable header."""
    try:
        with open_regular_file(path) as f:
            has_magic = _MAGIC.match(f.read(16)) is not None
    except (NetError, OSError):
        return False
    return has_magic and find_picture_error(path) is None


def find_picture_errors(paths: Sequence[Path]) -> list[BadPicture | None]:
    """The error of each file, as far as its header shows; None for those without."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(find_picture_error, paths))


def find_picture_error(path: Path) -> BadPicture | None:
    """The error of a file, as far as its header shows; None if there is none."""
    try:
        with closing(PictureFile(path)) as picture:
            picture.check_size()
            picture.check_range()
    except BadPicture as e:
        return e
    return None


@cache
def _pillow() -> Any:
    """Pillow, without its own pixel limit, as the limit here depends on the available memory, and
    without its warnings, most of which are about metadata."""
    Image: Any = import_module("PIL.Image")
    warnings.filterwarnings("ignore", module="PIL")
    Image.MAX_IMAGE_PIXELS = None
    # malloc returns blocks of this size to the system when they are freed, instead of keeping them
    # for the next picture that the thread may decode
    Image.core.set_block_size(2**26)
    return Image


def decoder_version() -> str:
    """The library that decodes pictures, with its version."""
    return f"Pillow {_pillow().__version__}"


def _apply_orientation(picture: Any) -> Any:
    """Applies the EXIF orientation."""
    from PIL import ImageOps

    ImageOps.exif_transpose(picture, in_place=True)  # otherwise it is copied even if it is upright
    return picture


def _to_array(picture: Any, channels: int) -> Array:
    picture = _to_eight_bits(picture)
    shape = (*picture.size[::-1], channels)
    return np.asarray(_convert_mode(picture, channels)).reshape(shape)


def _convert_mode(picture: Any, channels: int) -> Any:
    if channels < 4 and (picture.mode in _ALPHA_MODES or "transparency" in picture.info):
        rgba = picture.convert("RGBA")
        background = _pillow().new("RGBA", rgba.size, "white")
        picture = _pillow().alpha_composite(background, rgba).convert("RGB")
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""TIFF tags: bits per sample, whether 0 is white, whether samples are unsigned (1)."""


def _check_range(picture: Any) -> None:
    """Raises NetError if it is unknown which of a picture's values is white."""
    if not picture.mode.startswith(("F", "I")):
        return
    tags = _tags(picture)
    bits, kind = _bits_per_sample(tags), None
    if picture.mode == "F":
        kind = "floating-point numbers"
    elif bits > 16:
        kind = f"{bits}-bit integers"
    elif _first_value(tags.get(_SAMPLE_FORMAT, 1)) != 1:
        kind = "signed integers"
    if kind is not None:
        message = f"pictures of {kind} have no fixed range of brightness"
        raise fail(message, help="save it with 8 or 16 bits per channel")


def _to_eight_bits(picture: Any) -> Any:
    """Scales a picture of 9 to 16 bits to 8, which Pillow's own conversion would clip. Raises
    NetError if it is unknown which of its values is white."""
    _check_range(picture)
    if not picture.mode.startswith("I"):
        return picture
    tags = _tags(picture)
    white = 2 ** _bits_per_sample(tags) - 1
    values = np.asarray(picture).clip(0, white).astype(np.uint32)
    scaled = ((values * 255 + white // 2) // white).astype(np.uint8)
    return _pillow().fromarray(255 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled)


def _tags(picture: Any) -> Any:
    return picture.tag_v2 if picture.format == "TIFF" else {}


def _bits_per_sample(tags: Any) -> int:
    return _first_value(tags.get(_BITS_PER_SAMPLE, 16))


def _first_value(tag: Any) -> int:
    """The value of a tag, which may have one value per channel."""
    return int(tag[0] if isinstance(tag, tuple) else tag)
