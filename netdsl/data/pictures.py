"""Picture files as arrays of bytes, and such arrays as picture files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.errors import NetError, fail
from netdsl.files import write_atomically
from netdsl.types import Array


def read_picture(path: Path, shape: tuple[int, int, int]) -> Array:
    """A picture as bytes of `shape` (height, width, channels), resized where it is another size.

    Raises NetError where the file is missing or no picture.
    """
    from PIL import Image

    height, width, channels = shape
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise fail(f"pictures have 1, 3 or 4 channels, the net wants {channels}")
    if not path.is_file():
        raise fail(f"there is no picture {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                picture = _eight_bits(opened).convert(modes[channels])
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture, dtype=np.uint8).reshape(shape)
    except NetError:
        raise
    except Exception as e:  # somebody else's decoders: damaged files raise anything
        raise fail(f"{path} is no readable picture: {e}") from None


def write_picture(path: Path, picture: Array) -> None:
    """Bytes [H,W,1 or 3] as a PNG file. Raises NetError where it cannot be written."""
    from PIL import Image

    content = io.BytesIO()
    shown = picture[..., 0] if picture.shape[-1] == 1 else picture
    Image.fromarray(np.ascontiguousarray(shown)).save(content, format="PNG")
    write_atomically(path, content.getvalue())


def _eight_bits(picture: Any) -> Any:
    """A picture of 16 bits scaled to 8; Pillow's own conversion clips."""
    from PIL import Image

    if picture.mode == "F":
        raise fail("pictures of floating-point numbers have no fixed range of brightness")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.float64)
    return Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
