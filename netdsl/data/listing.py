"""Files read once per host: its first rank lists or downloads them, the others take them over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.data.data_source import DatasetNotFound
from netdsl.data.pictures import BadPicture, Pictures
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import Diagnostic, NetError, fail
from netdsl.ranks.array_message import pack_arrays, unpack_arrays
from netdsl.ranks.communicator import Communicator

_TRAIN, _VALIDATION, _TEST = "train", "validation", "test"
_TEXT = "text"
_DIFFERENT_DATA_HELP = "use a folder that all hosts share, or copy the same data to each of them"


def load_once_per_host(
    communicator: Communicator, load: Callable[[], Dataset], is_listing: bool
) -> Dataset:
    """Returns what `load` does. The first rank of each host calls it before the others, which then
    find on disk what it downloaded; with `is_listing`, a dataset of picture files, they call it
    not at all. Raises NetError on all ranks if it does so on one, or if hosts list different
    files."""
    if communicator.is_alone:
        return load()
    found: Dataset | None = None
    error: NetError | None = None
    listing, report = b"", {}
    if communicator.is_first_on_host:
        try:
            found = load()
        except NetError as e:
            error, report = e, _describe_error(e)
        else:
            listing = pack_listing(found) if is_listing else b""
            report = {"digest": hashlib.sha256(listing).hexdigest()}
    texts = communicator.all_gather(json.dumps(report).encode())
    if error is not None:
        raise error
    _check_reports(communicator, [json.loads(text) for text in texts])
    if not is_listing:
        return load() if found is None else found
    listing = communicator.broadcast(listing)
    return unpack_listing(listing) if found is None else found


def _describe_error(e: NetError) -> dict[str, Any]:
    is_missing = isinstance(e, DatasetNotFound)
    return {"errors": [_describe(d) for d in e.diagnostics], "is_missing": is_missing}


def _describe(d: Diagnostic) -> dict[str, Any]:
    return {"message": d.message, "help": d.help, "notes": d.notes}


def _make_diagnostic(message: str, help: str | None, notes: Sequence[str]) -> Diagnostic:
    return Diagnostic(message, help=help, notes=tuple(notes))


def _check_reports(communicator: Communicator, reports: Sequence[dict[str, Any]]) -> None:
    """Raises the first error of a rank, without its place in the text, or NetError if not all
    hosts list the same files as the first."""
    for report in reports:
        if "errors" in report:
            kind = DatasetNotFound if report["is_missing"] else NetError
            raise kind(*(_make_diagnostic(**d) for d in report["errors"]))
    first = reports[0]["digest"]
    for host, report in zip(communicator.hosts, reports, strict=True):
        if report.get("digest", first) != first:
            message = f"the data on {host} have other files than those on {communicator.hosts[0]}"
            raise fail(message, help=_DIFFERENT_DATA_HELP)


def share_fingerprint(communicator: Communicator, dataset: Dataset) -> str | None:
    """The fingerprint of a dataset of several ranks, None of a single one. Of picture files, only
    the first rank of each host computes it, as that takes the length of every file. Raises NetError
    if it differs between ranks."""
    if communicator.is_alone:
        return None
    is_read_here = communicator.is_first_on_host or not isinstance(dataset.train.images, Pictures)
    own = dataset.fingerprint if is_read_here else ""
    found = [x.decode() for x in communicator.all_gather(own.encode())]
    names = [f"rank {rank} on {host}" for rank, host in enumerate(communicator.hosts)]
    for name, fingerprint in zip(names, found, strict=True):
        if fingerprint not in ("", found[0]):
            message = f"the data of {name} differ from those of {names[0]}"
            notes = [f"{names[0]}: {found[0]}", f"{name}: {fingerprint}"]
            raise fail(message, help=_DIFFERENT_DATA_HELP, notes=notes)
    return found[0]


# ---- a dataset of picture files as bytes


def pack_listing(dataset: Dataset) -> bytes:
    """Returns a dataset of picture files as bytes: their names, not their contents."""
    test = None if dataset.read_test is None else dataset.read_test()
    parts = {_TRAIN: dataset.train, _VALIDATION: dataset.validation, _TEST: test}
    present = {name: part for name, part in parts.items() if part is not None}
    pictures = {name: part.images for name, part in present.items()}
    text = {
        "classes": dataset.classes,
        "ignored_files": dataset.ignored_files,
        "bad_pictures": [_describe(e.diagnostics[0]) for e in dataset.bad_pictures],
        "parts": {
            name: [str(x.folder), x.names.tolist()]
            for name, x in pictures.items()
            if isinstance(x, Pictures)
        },
    }
    labels = {name: part.labels for name, part in present.items()}
    return pack_arrays({_TEXT: np.frombuffer(json.dumps(text).encode(), np.uint8), **labels})


def unpack_listing(data: bytes) -> Dataset:
    """Returns the dataset that `pack_listing` was given."""
    labels = unpack_arrays(data)
    text = json.loads(labels.pop(_TEXT).tobytes())
    parts = {
        name: Samples(Pictures(Path(folder), np.array(names, dtype=object)), labels[name].copy())
        for name, (folder, names) in text["parts"].items()
    }
    test = parts.get(_TEST)
    return Dataset(
        parts[_TRAIN],
        tuple(text["classes"]),
        None if test is None else lambda: test,
        parts.get(_VALIDATION),
        tuple(text["ignored_files"]),
        tuple(BadPicture(_make_diagnostic(**d)) for d in text["bad_pictures"]),
    )
