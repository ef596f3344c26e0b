"""Files that a net is given as its input: a picture, an array (.npy), or a table of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from netdsl.data.npy import SUFFIX as ARRAY_SUFFIX
from netdsl.data.npy import read_npy
from netdsl.data.number_table import SUFFIXES as TABLE_SUFFIXES
from netdsl.data.number_table import read_number_table, shape_table
from netdsl.types import Array


@dataclass(frozen=True)
class InputFile:
    """The content of a file: the path of a picture, or an array of one image or of several
    (`is_batch`); `blank_count` cells of a table were blank."""

    content: Path | Array
    is_batch: bool = False
    blank_count: int = 0


def read_input_file(path: Path, shape: tuple[int, ...], blank: float = 0.0) -> InputFile:
    """The content of a file, for an input that takes an image of that shape: an array by the suffix
    `.npy`, a table by `.csv`, `.tsv` or `.txt` (its blank cells are `blank`), otherwise a picture,
    which is decoded later. Raises NetError if an array or a table cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ARRAY_SUFFIX:
        array = read_npy(path)
        return InputFile(array, not _is_one_image(array.shape, shape))
    if suffix in TABLE_SUFFIXES:
        table = read_number_table(path, blank)
        images = shape_table(table.values, shape, str(path))
        return InputFile(images, len(images) > 1, table.blank_count)
    return InputFile(path)


def _is_one_image(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array is one image instead of a batch of them; the axis of a single channel may be
    left out."""
    if len(shape) == 3 and shape[2] == 1 and (len(given) != 3 or given[-1] != 1):
        return len(given) == 2
    return len(given) == len(shape)
