"""The table of sources: where images and labels come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.data.cifar import cifar10_source
from netdsl.data.data_source import DatasetNotFound, DataSource, find_nothing
from netdsl.data.image_folder import folder_source, match_part, read_folder
from netdsl.data.listing import load_once_per_host
from netdsl.data.mnist import idx_source
from netdsl.data.npz import arrays_source
from netdsl.data.path_lookup import PathLookup, expand_home, make_folder_error, pin_paths
from netdsl.data.picture_table import table_source
from netdsl.data.pictures import BadPicture
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import Diagnostic, fail
from netdsl.optional_imports import import_optional
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.signature import BoundCall, Signature
from netdsl.types import Array

_DIGIT_CLASSES = tuple(map(str, range(10)))


def _load_digits(folder: Path | None) -> Dataset:
    """Scikit-learn's 1,797 digits, 8x8x1, scaled to bytes; every fifth one is for testing."""
    pixels, labels = _read_digits()
    images = np.round(pixels * (255 / 16)).astype(np.uint8)[..., None]
    whole = Samples(images, labels.astype(np.int32))
    test = np.arange(len(whole)) % 5 == 4
    return Dataset(whole.take(~test), _DIGIT_CLASSES, lambda: whole.take(test))


def _read_digits() -> tuple[Array, Array]:
    """Returns pixels from 0 to 16, 1797x8x8, and labels. Reads scikit-learn's file where it is in
    its usual place, since importing scikit-learn takes a second."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        with suppress(OSError, ValueError):
            table = _read_table(Path(folder) / "datasets" / "data" / "digits.csv.gz")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    need = "the source `digits` is read from scikit-learn"
    found = import_optional("sklearn.datasets", need, "pip install 'netdsl[digits]'").load_digits()
    return found.images, found.target


@cache
def _read_table(path: Path) -> Array:
    """Reads numbers separated by commas, once per process: a sweep has many runs."""
    table = np.loadtxt(path, delimiter=",")
    table.flags.writeable = False
    return table


_FASHION_CLASSES = (
    *["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"],
    "Ankle boot",
)

SOURCES: dict[str, DataSource] = {
    source.signature.name: source
    for source in (
        DataSource(
            Signature("digits"),
            _load_digits,
            find_nothing,
            (8, 8, 1),
            _DIGIT_CLASSES,
            "1,797 digits of 8x8 pixels; nothing to download",
        ),
        idx_source(
            "mnist",
            _DIGIT_CLASSES,
            "70,000 digits of 28x28 pixels (LeCun et al. 1998)",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
        idx_source(
            "fashion_mnist",
            _FASHION_CLASSES,
            "70,000 pictures of clothes, 28x28 (Xiao et al. 2017)",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
            "FashionMNIST",
        ),
        cifar10_source(),
        arrays_source(),
        folder_source(),
        table_source(),
    )
}


def _load_unnamed(data_folder: Path | None) -> Dataset:
    """The pictures of `--data`, for a data section that only says how images are prepared."""
    if data_folder is not None:
        return read_folder(data_folder)
    raise DatasetNotFound(
        Diagnostic(
            "the data section has no `source`",
            help='`source = folder("DIR")` sets one; so does `--data DIR`, where DIR '
            "contains a folder of pictures for each class",
        )
    )


NO_SOURCE = DataSource(Signature("none"), _load_unnamed, find_nothing, None, None, is_listing=True)
"""What a data section without `source` has: enough for predictions."""

GivenData = str | Dataset | None
"""Data for a recipe: the folder of its source's files, as `--data` names it, or a dataset in memory
instead of its source's. None: the source finds its files."""
MAX_LISTED_ERRORS = 8
SKIP_HELP = "`on_bad_picture = skip` in the data section skips such pictures"


def load(
    chosen: Any,
    given: GivenData,
    skip_bad_pictures: bool = False,
    communicator: Communicator = ONE_RANK,
) -> Dataset:
    """The dataset of a chosen source, or `given` itself if it is a dataset. Raises NetError,
    listing them, if the headers of files are not those of pictures, unless bad ones are skipped.
    All ranks of `communicator` call it together."""
    if isinstance(given, Dataset):
        return given
    data_folder = find_data_folder(given)
    read = partial(chosen.record.load, data_folder, **chosen.arguments)
    dataset = load_once_per_host(communicator, read, chosen.record.is_listing)
    if dataset.bad_pictures and not skip_bad_pictures:
        raise combine_bad_pictures(dataset.bad_pictures)
    return dataset.skip_bad_pictures() if skip_bad_pictures else dataset


def make_pin(given: GivenData) -> Callable[[BoundCall], BoundCall]:
    """What replaces the paths of a source by those where its files are, if they are there, in a
    text that is kept."""
    return partial(
        pin_paths, data_folder=find_data_folder(given if isinstance(given, str) else None)
    )


def find_data_folder(given: str | None) -> Path | None:
    """The folder that `--data` names, relative to the working directory. Raises NetError if it is
    none."""
    if not given:
        return None
    folder = expand_home(given)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise make_folder_error(folder)
    help = "`--data` names the folder of the files"
    if match_part(given):
        help += "; `eval` uses the test images in it, if there are any"
    help = PathLookup(given).advise() or help
    raise fail(f"there is no folder {folder}", help=help)


def combine_bad_pictures(bad: Sequence[BadPicture]) -> BadPicture:
    """The error for bad pictures that are not skipped."""
    first, *others = [e.diagnostics[0] for e in bad]
    notes = [d.message for d in others[: MAX_LISTED_ERRORS - 1]]
    more = len(bad) - MAX_LISTED_ERRORS
    help = first.help or "remove it if it is not a picture, or restore it"
    tail = (f"and {more:,} more",) if more > 0 else ()
    return BadPicture(Diagnostic(first.message, help=f"{help}; {SKIP_HELP}", notes=(*notes, *tail)))
