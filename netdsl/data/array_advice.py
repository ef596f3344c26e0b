"""What to do about arrays that are almost images and labels: the order of axes, types."""

from __future__ import annotations

from typing import Any

import numpy as np

Shape = tuple[int, ...]
ONE_HOT_ADVICE = "`labels.argmax(axis=1)`, or a column `label` in a table, makes classes of them"
"""What to do about labels [N, classes] of which each image has exactly one."""
SEVERAL_LABELS_ADVICE = (
    "several labels an image are 0 and 1, count x classes: "
    "`sklearn.preprocessing.MultiLabelBinarizer().fit_transform(labels)` makes them of lists of "
    "names"
)
"""What to do about lists of names, several an image."""


def advise_axes(shape: Shape, wanted: Shape, noun: str = "images") -> str | None:
    """How to put the channels of images, or of one image, last, as a net of images `wanted`
    (height, width, channels) takes them; None if they are not first."""
    if len(wanted) != 3 or len(shape) not in (3, 4):
        return None
    if shape[-3] != wanted[2] or shape[-1] == wanted[2]:
        return None
    axes = "0, 2, 3, 1" if len(shape) == 4 else "1, 2, 0"
    return f"the channels come last: `{noun}.transpose({axes})`"


def advise_channels(shape: Shape, channels: int, noun: str = "images") -> str | None:
    """How to give pictures, [N,H,W,C] or [N,H,W], the channels that a net takes."""
    if channels == 1 and len(shape) == 4 and shape[-1] in (3, 4):
        return f"`[PIL.Image.fromarray(x) for x in {noun}]` are converted to grey"
    if channels == 3 and len(shape) == 4 and shape[-1] == 4:
        return f"`{noun}[..., :3]` leaves the transparency out"
    if channels == 3 and len(shape) == 4 and shape[-1] == 1:
        return f"`np.repeat({noun}, 3, axis=-1)` makes colours of grey"
    if channels == 3 and len(shape) in (2, 3) and shape[-1] > 4:
        return f"`np.repeat({noun}[..., None], 3, axis=-1)` makes colours of grey"
    return None


def advise_image_type(dtype: np.dtype[Any], noun: str = "images") -> str | None:
    """How to make bytes of other integers."""
    if dtype.kind in "iu" and dtype != np.uint8:
        return f"pictures are bytes: `{noun}.astype(np.uint8)`, if the values are 0 to 255"
    return None


def advise_labels(shape: Shape, dtype: np.dtype[Any], noun: str = "labels") -> str | None:
    """How to make one integer per image of labels that are floats or a column."""
    if len(shape) == 2 and shape[1] == 1:
        return f"`{noun}.ravel()` has one axis"
    if len(shape) == 1 and dtype.kind == "f":
        return f"labels are integers: `{noun}.astype(int)`"
    return None
