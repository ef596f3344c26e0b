"""The table of sources: where images and labels come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.data.idx import find, idx_shape, read_idx
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import fail
from netdsl.kinds import Nothing, OneOf, Text
from netdsl.signature import Param, Signature
from netdsl.types import dims


@dataclass(frozen=True)
class DataSource:
    """`load(folder, **arguments)` reads a dataset; `folder` is what `--data` gave, if anything.

    `image` and `classes` are what is known before anything is read.
    """

    signature: Signature
    load: Callable[..., Dataset]
    image: tuple[int, int, int] | None
    classes: tuple[str, ...] | None
    doc: str = ""


def cache_folder() -> Path:
    """Where data sets are kept: $NETDSL_CACHE, else the user's cache folder."""
    own = os.environ.get("NETDSL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "netdsl"


_DIGITS = tuple(map(str, range(10)))


def _digits(folder: Path | None) -> Dataset:
    """Scikit-learn's 1,797 digits, 8x8x1, scaled to bytes; every fifth one is for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise fail(
            "the source `digits` is read from scikit-learn, which is not installed",
            help="pip install 'netdsl[digits]'",
        ) from None
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    whole = Samples(images, found.target.astype(np.int32))
    test = np.arange(len(whole)) % 5 == 4
    return Dataset(whole.take(~test), _DIGITS, lambda: whole.take(test))


_FASHION = (
    *["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"],
    "Ankle boot",
)
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _idx(name: str, classes: tuple[str, ...], folder: Path | None, path: str | None) -> Dataset:
    here = _locate(name, folder, path)
    _check_headers(here)
    read = partial(_idx_pair, here, len(classes))
    return Dataset(read(*_FILES["train"]), classes, lambda: read(*_FILES["test"]))


def _check_headers(folder: Path) -> None:
    """Raises NetError where a file announces another size than it should; the test set too is
    looked at before anything is trained on."""
    for images_name, labels_name in _FILES.values():
        shape = idx_shape(folder, images_name, 3)
        labels = idx_shape(folder, labels_name, 1)[0]
        if shape[1:] != (28, 28):
            raise fail(f"{folder / images_name} holds images of {dims(shape[1:])}, not 28x28")
        if shape[0] != labels:
            raise fail(
                f"{folder}: {shape[0]:,} images in {images_name}, {labels:,} in {labels_name}"
            )
        if not labels:
            raise fail(f"{folder / images_name} holds no images")


def _locate(name: str, folder: Path | None, path: str | None) -> Path:
    """The folder that holds the four files: the one given, or one in the cache folder."""
    given = folder or (Path(path) if path else None)
    cached = cache_folder() / name
    places = [given, given / name] if given else [cached]
    for place in places:
        if find(place, _FILES["train"][0]):
            return place
    files = ", ".join(f"{f}.gz" for pair in _FILES.values() for f in pair)
    where = f"in {given}" if given else f"in {cached}"
    raise fail(
        f"the files of `{name}` are not {where}",
        help=f"put {files} there, or give their folder with `--data DIR`",
    )


def _idx_pair(folder: Path, classes: int, images_name: str, labels_name: str) -> Samples:
    images = read_idx(folder, images_name, 3)[..., None]
    labels = read_idx(folder, labels_name, 1).astype(np.int32)
    if labels.max() >= classes:
        raise fail(f"{folder / labels_name} holds a label {labels.max()} of {classes} classes")
    return Samples(images, labels)


def _idx_source(name: str, classes: tuple[str, ...], doc: str) -> DataSource:
    path = Param("path", OneOf((Text(), Nothing())), None, "folder of the four files")
    return DataSource(
        Signature(name, (path,)), partial(_idx, name, classes), (28, 28, 1), classes, doc
    )


SOURCES: dict[str, DataSource] = {
    source.signature.name: source
    for source in (
        DataSource(
            Signature("digits"),
            _digits,
            (8, 8, 1),
            _DIGITS,
            "1,797 digits of 8x8 pixels; nothing to download",
        ),
        _idx_source("mnist", _DIGITS, "70,000 digits of 28x28 pixels (LeCun et al. 1998)"),
        _idx_source(
            "fashion_mnist",
            _FASHION,
            "70,000 pictures of clothes, 28x28 (Xiao et al. 2017)",
        ),
    )
}


def load(chosen: Any, folder: str | None) -> Dataset:
    """The dataset of a chosen source; `folder` is where the command line says that it lies."""
    given = Path(folder) if folder else None
    if given is not None and not given.is_dir():
        raise fail(f"there is no folder {given}", help="`--data` names the folder of the files")
    dataset: Dataset = chosen.record.load(given, **chosen.arguments)
    return dataset
