"""The table of sources: where images and labels come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.data.cifar import cifar10
from netdsl.data.folder import folder
from netdsl.data.mnist import idx_source
from netdsl.data.npz import arrays
from netdsl.data.pictures import BadPicture
from netdsl.data.samples import Dataset, Samples
from netdsl.data.source import DataSource
from netdsl.errors import Diagnostic, fail
from netdsl.optional_imports import import_optional
from netdsl.signature import Signature

_DIGITS = tuple(map(str, range(10)))


def _digits(folder: Path | None) -> Dataset:
    """Scikit-learn's 1,797 digits, 8x8x1, scaled to bytes; every fifth one is for the test."""
    need = "the source `digits` is read from scikit-learn"
    found = import_optional("sklearn.datasets", need, "pip install 'netdsl[digits]'").load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    whole = Samples(images, found.target.astype(np.int32))
    test = np.arange(len(whole)) % 5 == 4
    return Dataset(whole.take(~test), _DIGITS, lambda: whole.take(test))


_FASHION = (
    *["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"],
    "Ankle boot",
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
        idx_source(
            "mnist",
            _DIGITS,
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
            _FASHION,
            "70,000 pictures of clothes, 28x28 (Xiao et al. 2017)",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
        cifar10(),
        arrays(),
        folder(),
    )
}


MOST_NAMED = 8
SKIP = "`on_bad_picture = skip` in the data section goes on without such pictures"


def load(chosen: Any, folder: str | None, skip_bad: bool = False) -> Dataset:
    """The dataset of a chosen source; `folder` is where the command line says that it lies. Raises
    NetError, naming them, where pictures are none by their headers, unless they are skipped."""
    given = Path(folder) if folder else None
    if given is not None and not given.is_dir():
        raise fail(f"there is no folder {given}", help="`--data` names the folder of the files")
    dataset: Dataset = chosen.record.load(given, **chosen.arguments)
    if dataset.bad and not skip_bad:
        raise refused(dataset.bad)
    return dataset.skipping() if skip_bad else dataset


def refused(bad: Sequence[BadPicture]) -> BadPicture:
    """What is said of bad pictures where they are not skipped."""
    first, *others = [e.diagnostics[0] for e in bad]
    notes = [d.message for d in others[: MOST_NAMED - 1]]
    more = len(bad) - MOST_NAMED
    help = first.help or "remove what is no picture, or put it back whole"
    tail = (f"and {more:,} more",) if more > 0 else ()
    return BadPicture(Diagnostic(first.message, help=f"{help}; {SKIP}", notes=(*notes, *tail)))
