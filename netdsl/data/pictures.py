"""Picture files as arrays of bytes, decoded when they are asked for, and such arrays as files."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.errors import NetError, fail
from netdsl.files import write_atomically
from netdsl.types import Array

SUFFIXES = (
    *[".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga"],
    *[".tif", ".tiff", ".webp"],
)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


@dataclass(frozen=True)
class Pictures:
    """Files of pictures of any size: names within a folder, an array of texts."""

    folder: Path
    names: Array

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Array | slice) -> Pictures:
        return Pictures(self.folder, self.names[index])

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.names]

    def checksum(self) -> int:
        """What tells these files apart from others: their names and lengths."""
        lengths = (os.path.getsize(path) for path in self.paths)
        lines = (f"{n} {size}\n" for n, size in zip(self.names, lengths, strict=True))
        return zlib.crc32("".join(lines).encode(errors="surrogateescape"))


def listed(paths: Sequence[Path]) -> Pictures:
    """Pictures that somebody names."""
    return Pictures(Path(), np.array([str(p) for p in paths], dtype=object))


def read_picture(path: Path, channels: int) -> Array:
    """A picture as bytes [H,W,channels] (1, 3 or 4): upright, on white where it is transparent.

    Raises NetError where the file is missing or no picture.
    """
    if not path.is_file():
        raise fail(f"there is no picture {path}")
    try:
        with _pillow().open(path) as opened:
            picture = _eight_bits(_upright(opened))
        return np.array(_coloured(picture, channels)).reshape(*picture.size[::-1], channels)
    except NetError as e:
        raise fail(f"{path}: {e.diagnostics[0].message}") from None
    except Exception as e:  # somebody else's decoders: damaged files raise anything
        raise fail(f"{path} is no readable picture: {e}") from None


def write_picture(path: Path, picture: Array) -> None:
    """Bytes [H,W,1 or 3] as a PNG file. Raises NetError where it cannot be written."""
    from PIL import Image

    content = io.BytesIO()
    shown = picture[..., 0] if picture.shape[-1] == 1 else picture
    Image.fromarray(np.ascontiguousarray(shown)).save(content, format="PNG")
    write_atomically(path, content.getvalue())


def unreadable(paths: Sequence[Path]) -> list[str]:
    """What is wrong with files that are no pictures, as far as their first bytes tell."""
    with ThreadPoolExecutor() as pool:
        return [fault for fault in pool.map(_fault, paths) if fault is not None]


def _fault(path: Path) -> str | None:
    try:
        with _pillow().open(path):
            return None
    except Exception as e:  # as above
        return f"{path} is no readable picture: {e}"


@cache
def _pillow() -> Any:
    """Pillow, to which a picture of far too many pixels is an error: it warns, and what a warning
    does cannot be changed by one thread alone."""
    from PIL import Image

    warnings.simplefilter("error", Image.DecompressionBombWarning)
    return Image


def _upright(picture: Any) -> Any:
    """As the camera says that it was held."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _coloured(picture: Any, channels: int) -> Any:
    if channels < 4 and (picture.mode in _TRANSPARENT or "transparency" in picture.info):
        shown = picture.convert("RGBA")
        white = _pillow().new("RGBA", shown.size, "white")
        picture = _pillow().alpha_composite(white, shown).convert("RGB")
    return picture.convert(MODES[channels])


def _eight_bits(picture: Any) -> Any:
    """A picture of 16 bits scaled to 8; Pillow's own conversion clips."""
    if picture.mode == "F":
        raise fail("pictures of floating-point numbers have no fixed range of brightness")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.float64)
    return _pillow().fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
