"""Picture files as arrays of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from netdsl.errors import fail
from netdsl.types import Array


def read_picture(path: Path, shape: tuple[int, int, int]) -> Array:
    """A picture as bytes of `shape` (height, width, channels), resized where it is another size.

    Raises NetError where the file is missing or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    height, width, channels = shape
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise fail(f"pictures have 1, 3 or 4 channels, the net wants {channels}")
    if not path.is_file():
        raise fail(f"there is no picture {path}")
    try:
        with Image.open(path) as opened:
            picture = opened.convert(modes[channels])
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(picture, dtype=np.uint8).reshape(shape)
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as e:
        raise fail(f"{path} is no readable picture: {e}") from None
