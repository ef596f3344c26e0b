"""Files that are listed or downloaded once per host, and bad pictures that all ranks know of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.data import listing
from netdsl.data.data_source import DatasetNotFound
from netdsl.data.image_folder import read_folder
from netdsl.data.listing import (
    load_once_per_host,
    pack_listing,
    share_fingerprint,
    unpack_listing,
)
from netdsl.data.picture_table import read_table
from netdsl.data.pictures import Pictures
from netdsl.data.samples import Dataset, Samples
from netdsl.data.sources import SOURCES, load
from netdsl.errors import Diagnostic, NetError, fail
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ranks.communicator import Communicator
from netdsl.signature import BoundCall
from netdsl.training.job import prepare_job
from netdsl.training.run.bad_pictures import PictureMonitor
from netdsl.values import Argument
from tests.test_bad_pictures import cut
from tests.test_folder import write
from tests.thread_ranks import run_ranks

HOSTS = ("a", "a", "b", "b")
"""Two ranks on each of two hosts."""


def on_hosts(work: Callable[[Communicator], Any]) -> list[Any]:
    """What `work` returns or raises on each rank."""

    def run(communicator: Communicator) -> Any:
        communicator.hosts = HOSTS
        try:
            return work(communicator)
        except NetError as e:
            return e

    return run_ranks(len(HOSTS), run)


def facts(dataset: Dataset) -> Any:
    """All that a dataset of pictures says."""
    test = dataset.read_test() if dataset.read_test is not None else None
    parts: list[Any] = []
    for part in (dataset.train, dataset.validation, test):
        if part is None:
            parts.append(None)
            continue
        assert isinstance(part.images, Pictures)
        pictures = part.images
        names = pictures.names.tolist()
        parts.append((pictures.folder, names, part.labels.tolist(), part.labels.dtype))
    bad = [e.diagnostics for e in dataset.bad_pictures]
    return parts, dataset.classes, dataset.ignored_files, bad, dataset.fingerprint


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Training and validation pictures; one has no header, one a name that is not UTF-8."""
    folder = tmp_path / "pictures"
    write(folder / "train", 8)
    write(folder / "val", 4, seed=1)
    red = folder / "train" / "red"
    first, second, *_ = sorted(red.iterdir())
    first.write_bytes(b"")
    os.rename(second, os.fsencode(red) + b"/\xff\xe9" + os.fsencode(second.suffix))
    (red / "notes.txt").write_text("no picture")
    return folder


def write_table(folder: Path) -> Path:
    """A table of the same pictures, some with several labels."""
    names = sorted(str(p.relative_to(folder)) for p in (folder / "val").rglob("*.*"))
    rows = [f"{name},{'a|b' if i % 2 else 'a'}" for i, name in enumerate([*names, "gone.png"])]
    (folder / "t.csv").write_text("\n".join(["file,labels", *rows]))
    return folder / "t.csv"


def test_a_listing_is_the_dataset(pictures: Path) -> None:
    for dataset in (read_folder(pictures), read_table(write_table(pictures), pictures)):
        assert facts(unpack_listing(pack_listing(dataset))) == facts(dataset)
        assert dataset.bad_pictures
        labels = unpack_listing(pack_listing(dataset)).train.labels
        labels[:] = 0  # they are the rank's own


def test_the_first_rank_of_each_host_lists(pictures: Path) -> None:
    listed: list[int] = []

    def work(communicator: Communicator) -> Any:
        def read() -> Dataset:
            listed.append(communicator.rank)
            return read_folder(pictures)

        return facts(load_once_per_host(communicator, read, is_listing=True))

    expected = facts(read_folder(pictures))
    assert on_hosts(work) == [expected] * len(HOSTS)
    assert sorted(listed) == [0, 2]


def test_files_are_there_when_the_others_load() -> None:
    """The first rank of a host may have downloaded them."""
    calls: list[int] = []

    def work(communicator: Communicator) -> Any:
        def read() -> Dataset:
            calls.append(communicator.rank)
            return Dataset(Samples(np.zeros((1, 2)), np.zeros(1, np.int32)), ("a",))

        return load_once_per_host(communicator, read, is_listing=False).classes

    assert on_hosts(work) == [("a",)] * len(HOSTS)
    assert sorted(calls[:2]) == [0, 2]
    assert sorted(calls) == [0, 1, 2, 3]


@pytest.mark.parametrize("is_listing", [False, True])
@pytest.mark.parametrize("kind", [NetError, DatasetNotFound])
def test_an_error_of_one_rank_is_that_of_all(kind: type[NetError], is_listing: bool) -> None:
    def work(communicator: Communicator) -> Any:
        def read() -> Dataset:
            if communicator.rank == 2:
                raise kind(Diagnostic("it is not there", help="put it there", notes=("really",)))
            return Dataset(Samples(Pictures(Path(), np.array([])), np.zeros(0, np.int32)), ())

        return load_once_per_host(communicator, read, is_listing)

    for found in on_hosts(work):
        assert type(found) is kind
        (d,) = found.diagnostics
        assert (d.message, d.help, d.notes) == ("it is not there", "put it there", ("really",))


def test_hosts_that_list_other_files_are_told(pictures: Path) -> None:
    def work(communicator: Communicator) -> Any:
        def read() -> Dataset:
            dataset = read_folder(pictures)
            if communicator.rank < 2:
                return dataset
            return replace(dataset, train=dataset.train.take(np.arange(3)))

        return load_once_per_host(communicator, read, is_listing=True)

    for found in on_hosts(work):
        assert "the data on b have other files than those on a" in str(found)
        assert "help: use a folder that all hosts share" in found.render()


def test_the_files_of_a_source_are_listed_once(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the table of sources; a dataset in memory is not listed at all."""
    record, packed = SOURCES["folder"], []
    arguments = record.signature.bind([Argument(None, str(pictures))], None)
    chosen = BoundCall("folder", record, arguments)

    def counted(dataset: Dataset) -> bytes:
        packed.append(dataset)
        return pack_listing(dataset)

    monkeypatch.setattr(listing, "pack_listing", counted)

    def work(communicator: Communicator) -> Any:
        given = load(chosen, None, True, communicator)
        assert load(chosen, given, True, communicator) is given
        return facts(given)[0]

    assert on_hosts(work) == [facts(read_folder(pictures))[0]] * len(HOSTS)
    assert len(packed) == 2


def test_lengths_are_read_once_per_host(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, reads = read_folder(pictures), []
    size_of = os.path.getsize

    def counted(path: Path) -> int:
        reads.append(path)
        return size_of(path)

    monkeypatch.setattr(os.path, "getsize", counted)
    wanted = dataset.fingerprint
    count = len(reads)
    assert on_hosts(lambda c: share_fingerprint(c, dataset)) == [wanted] * len(HOSTS)
    assert len(reads) == 3 * count

    def other(communicator: Communicator) -> str:
        own = dataset if communicator.rank != 2 else replace(dataset, classes=("x",))
        return share_fingerprint(communicator, own)

    for found in on_hosts(other):
        assert "the data of rank 2 on b differ from those of rank 0 on a" in str(found)


# ---- bad pictures

NET = """net a {{ input(12x12x3) -> globalavgpool -> fc(2) }}
data {{ source = folder("{folder}"), batch = 4, on_bad_picture = {what} }}
train {{ epochs = 1, optimizer = sgd(lr=0.01) }}"""


def test_ranks_verify_their_share_and_report_all(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path / "cache"))
    for path in (pictures / "val").rglob("*.*"):
        cut(path)
    text = NET.format(folder=pictures, what="skip")

    def work(communicator: Communicator) -> Any:
        job, lines = prepare_job(build_program(parse(text)), None), []
        monitor = PictureMonitor(job, lines.append, 0, communicator)
        with monitor.verify_in_background() as verification:
            verification.wait()
        skipped = job.dataset.skipped_pictures
        assert skipped is not None
        own = set(skipped.messages)
        monitor.report()
        monitor.report()
        return own, set(skipped.messages), len(lines)

    own, known, reports = zip(*on_hosts(work), strict=True)
    assert set.union(*own) == known[0]
    assert sum(map(len, own)) == len(known[0]) == 8
    assert all(own)
    assert all(messages == known[0] for messages in known)
    assert reports == (1, 1, 1, 1)


def test_a_class_that_is_lost_is_lost_on_all_ranks(pictures: Path) -> None:
    """Even if each rank has met only some of its bad pictures."""
    text = NET.format(folder=pictures, what="skip")
    paths = sorted((pictures / "train" / "green").iterdir())

    def work(communicator: Communicator) -> Any:
        job = prepare_job(build_program(parse(text)), None)
        skipped = job.dataset.skipped_pictures
        assert skipped is not None
        for path in paths[communicator.rank :: communicator.size]:
            skipped.add(path, fail_picture(path))
        PictureMonitor(job, lambda words: None, 0, communicator).check()

    for found in on_hosts(work):
        assert "none of the training pictures of `green` can be used" in str(found)


def fail_picture(path: Path) -> Any:
    return fail(f"{path} is damaged")
