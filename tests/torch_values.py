"""Stored results of PyTorch and torchvision, for tests that run without either installed.

`python -m tests.torch_values` regenerates the table and needs both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from netdsl.types import Array
from tests import torch_cases as cases

PATH = Path(__file__).with_suffix(".json")
"""Made with PyTorch 2.13, torchvision 0.28 and Pillow 13."""
Size = tuple[int, int]


def load_stored(what: str) -> Any:
    """A part of the table."""
    return json.loads(PATH.read_text())[what]


# ---- crops: values that depend on Pillow's rounding are stored as a few pixels, others exactly

SIZES: list[Size] = [
    *((375, 500), (500, 375), (333, 500), (97, 1000), (224, 224), (256, 255), (223, 300), (9, 8)),
    *((2, 2), (1, 1), (1, 40), (60, 2)),
]
CROP_RANGES: list[tuple[tuple[float, float], tuple[float, float]]] = [
    ((0.08, 1.0), (3 / 4, 4 / 3)),
    ((0.25, 1.0), (3 / 4, 4 / 3)),
    ((0.08, 1.0), (1.0, 1.0)),
    ((0.9, 1.0), (2.0, 3.0)),
    ((0.5, 1.0), (0.1, 0.2)),
]
BOXES_PER_CASE = 6
RESIZE_SIDE, CROP_WINDOW = 256, (224, 224)
RESIZE_SIZES: list[Size] = [(h, w) for h in range(180, 700, 47) for w in range(180, 700, 53)]
CROPS: list[tuple[Size, Size]] = [
    ((h, w), (tall, wide)) for h, w, tall, wide in product((4, 7, 9, 12), (5, 8), (4, 7), (3, 10))
]
PHOTOGRAPHS: list[Size] = [(375, 500), (61, 43), (300, 301)]
PIXELS = 40


def noise_image(size: Size) -> Array:
    """A picture of noise, which resampling changes most: bytes [H,W,3]."""
    return np.random.RandomState(size[0] * 1000 + size[1]).randint(0, 256, (*size, 3), np.uint8)


def sample_pixels(picture: Array) -> list[int]:
    """A few bytes of a picture, including its corners."""
    flat = np.asarray(picture).reshape(-1)
    return [int(flat[i]) for i in np.linspace(0, flat.size - 1, PIXELS).astype(int)]


def crop_random(size: Size, case: int) -> Callable[[], float]:
    """The generator of the numbers in [0, 1) that the boxes of a case use in order."""
    return np.random.RandomState(size[0] * 1000 + size[1] + case).random_sample


def _fake_torch(draw: Callable[[], float]) -> Any:
    """The part of torch that torchvision needs to draw a box, in float64 and with given random
    numbers."""

    def item(value: float) -> Any:
        return SimpleNamespace(item=lambda: value)

    def between(low: float, high: float) -> Any:
        return low + (high - low) * draw()

    return SimpleNamespace(
        tensor=np.array,
        log=np.log,
        exp=lambda x: item(math.exp(x.item())),
        empty=lambda n: SimpleNamespace(uniform_=lambda low, high: item(between(low, high))),
        randint=lambda low, high, size: item(low + int(draw() * (high - low))),
    )


def _boxes(size: Size, case: int) -> list[list[int]]:
    from PIL import Image
    from torchvision.transforms import transforms

    picture, draw, torch = Image.new("L", size[::-1]), crop_random(size, case), transforms.torch
    transforms.torch = _fake_torch(draw)
    try:
        get = transforms.RandomResizedCrop.get_params
        return [list(get(picture, *CROP_RANGES[case])) for _ in range(BOXES_PER_CASE)]
    finally:
        transforms.torch = torch


def _crops() -> dict[str, Any]:
    from PIL import Image
    from torchvision import transforms as t
    from torchvision.transforms import functional as f

    def screen(size: Size) -> list[int]:
        """The size after resizing and the corner of the centre crop, read from pictures of row and
        column indices."""
        empty = Image.new("L", size[::-1])
        w, h = t.Resize(RESIZE_SIDE)(empty).size
        rows, columns = np.mgrid[:h, :w].astype(np.int32)
        corners = [f.center_crop(Image.fromarray(x), CROP_WINDOW) for x in (rows, columns)]
        return [h, w, *(int(np.asarray(x)[0, 0]) for x in corners)]

    def crop(size: Size, window: Size) -> list[int]:
        middle = f.center_crop(Image.fromarray(noise_image(size)[..., 0]), window)
        return np.asarray(middle).reshape(-1).tolist()

    judged = t.Compose([t.Resize(RESIZE_SIDE), t.CenterCrop(CROP_WINDOW)])
    photographs = [Image.fromarray(noise_image(size)) for size in PHOTOGRAPHS]
    return {
        "boxes": [[_boxes(size, case) for case in range(len(CROP_RANGES))] for size in SIZES],
        "screens": [screen(size) for size in RESIZE_SIZES],
        "crops": [crop(*case) for case in CROPS],
        "judged": [sample_pixels(judged(x)) for x in photographs],
        "learnt": [
            sample_pixels(f.resized_crop(x, 3, 5, 37, 31, CROP_WINDOW)) for x in photographs
        ],
    }


def _nets() -> dict[str, Any]:
    import torch

    return {
        "layers": {c.text: cases.torch_layer_numbers(torch, c) for c in cases.LAYER_CASES},
        "recipes": {c.text: cases.torch_recipe_numbers(torch, c) for c in cases.RECIPE_CASES},
        "schedules": {str(c): cases.torch_schedule_numbers(torch, c) for c in cases.SCHEDULE_CASES},
    }


def main() -> None:
    """Writes the table."""
    table = {"crops": _crops(), **_nets()}
    lines = (f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in table.items())
    PATH.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
