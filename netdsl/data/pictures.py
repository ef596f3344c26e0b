"""Picture files as arrays of bytes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.errors import NetError, fail
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


def _eight_bits(picture: Any) -> Any:
    """A picture of 16 bits scaled to 8; Pillow's own conversion clips."""
    from PIL import Image

    if picture.mode == "F":
        raise fail("pictures of floating-point numbers have no fixed range of brightness")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.float64)
    return Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
