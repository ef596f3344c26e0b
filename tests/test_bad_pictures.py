"""Damaged pictures: no run is lost by one, and where they are skipped they count for nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netdsl.data import verification
from netdsl.data.image_folder import read_folder
from netdsl.data.pictures import BadPicture, PictureFile, Pictures, SkippedPictures
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Samples, evaluation_batches, training_batches
from netdsl.data.verification import Verification
from netdsl.disk_cache import IMAGE_CACHE
from netdsl.errors import NetError
from netdsl.training.run import evaluator
from netdsl.training.store import checkpoint
from tests.test_folder import NET, write

DEVICE = ("--device", "reference")
SKIP = ("--set", "data.on_bad_picture=skip")
PARTS = {"train": 20, "val": 6, "test": 5}


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """train, val and test beside each other, and a net of three epochs to learn them."""
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    for seed, (part, count) in enumerate(PARTS.items()):
        write(folder / part, count, seed=seed)
    (tmp_path / "colours.net").write_text(NET.replace("6,", "3,").replace("0.9", "0"))
    return folder


def cut(path: Path) -> bytes:
    """Cuts a picture off behind its header, and gives what it was."""
    before = path.read_bytes()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    return before


def weights(run: Path, name: str = "last") -> dict[str, Any]:
    return dict(checkpoint.load(run / f"{name}.safetensors").states)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def measured(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in x.items() if k not in ("seconds", "images_per_second")} for x in lines
    ]


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_run_that_a_bad_picture_ends_goes_on_to_the_same_bits(
    netdsl: Any, pictures: Path, tmp_path: Path, part: str
) -> None:
    assert netdsl("train", "colours.net", "-o", "whole", *DEVICE)[0] == 0
    path, other = (pictures / part / "red" / f"{name}.jpg" for name in ("003", "000"))
    before = cut(path)
    code, _, err = netdsl("train", "colours.net", "--out", "run", *DEVICE)
    assert code == 2
    assert f"{part}/red/003.jpg is not a readable picture" in err
    assert "then resume the run" in err
    assert "a resumed run may set `data.on_bad_picture=skip`" in err
    assert (tmp_path / "run" / "last.safetensors").is_file()
    code, _, err = netdsl("train", "--resume", "run", *DEVICE)
    assert code == 2
    path.write_bytes(before)
    if part == "train":
        aside = other.rename(other.with_name("renamed.jpg"))  # that is no picture put back
        code, _, err = netdsl("train", "--resume", "run", *DEVICE)
        assert (code, "the data set is not the one" in err) == (2, True)
        aside.rename(other)
    assert netdsl("train", "--resume", "run", *DEVICE)[0] == 0
    for name in ("last", "best"):
        assert same(weights(tmp_path / "run", name), weights(tmp_path / "whole", name))
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_run_goes_on_without_the_bad_picture(
    netdsl: Any, pictures: Path, tmp_path: Path, part: str
) -> None:
    cut(pictures / part / "red" / "003.jpg")
    assert netdsl("train", "colours.net", "--out", "run", *DEVICE)[0] == 2
    code, out, err = netdsl("train", "--resume", "run", *SKIP, "--json", *DEVICE)
    assert code == 0, err
    assert "skipped: 1 bad picture" in err
    (told,) = json.loads(out)["bad_pictures"]
    assert f"{part}/red/003.jpg is not a readable picture" in told
    assert measured(tmp_path / "run")[-1]["test_images"] == (9 if part == "test" else 10)
    code, out, _ = netdsl("eval", "run", "--json", *DEVICE)
    assert code == 0
    assert json.loads(out)["images"] == (9 if part == "test" else 10)
    assert len(json.loads(out)["bad_pictures"]) == (part == "test")
    code, out, _ = netdsl("eval", "run", *DEVICE)
    assert ("skipped: 1 bad picture" in out) == (part == "test")


def test_a_bad_picture_to_learn_from_loses_nothing(
    netdsl: Any, pictures: Path, tmp_path: Path
) -> None:
    part = ("--set", "train.epochs=1", *DEVICE)
    assert netdsl("train", "colours.net", "--out", "run", *part)[0] == 0
    path = pictures / "train" / "green" / "001.png"
    header, data, rest = path.read_bytes().partition(b"IDAT")
    path.write_bytes(header + data + b"\xff\xff" + rest[2:])  # as long as before
    more = ("--set", "train.epochs=2", *DEVICE)
    code, _, err = netdsl("train", "--resume", "run", *more)
    assert code == 2
    assert "train/green/001.png is not a readable picture" in err
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").progress["epoch"] == 1
    code, _, err = netdsl("train", "--resume", "run", *SKIP, *more)
    assert code == 0, err


def test_what_is_skipped_depends_on_nothing_else(
    netdsl: Any, pictures: Path, tmp_path: Path
) -> None:
    for name in ("000.jpg", "001.png", "003.jpg"):
        cut(pictures / "train" / "red" / name)
    (pictures / "train" / "green" / "000.jpg").write_bytes(b"")  # none by its header
    for out in ("a", "b"):
        code, told, err = netdsl("train", "colours.net", "--out", out, *SKIP, "--json", *DEVICE)
        assert code == 0, err
        assert len(json.loads(told)["bad_pictures"]) == 4
        assert "skipped: 1 bad picture\n    " in err  # at first
        assert "skipped: 4 bad pictures\n    " in err
    assert "to learn from: 39 (green 19, red 20)" in err
    part = ("--set", "train.epochs=1")
    assert netdsl("train", "colours.net", "--out", "c", *SKIP, *part, *DEVICE)[0] == 0
    assert netdsl("train", "--resume", "c", "--set", "train.epochs=3", *DEVICE)[0] == 0
    for out in ("b", "c"):
        assert same(weights(tmp_path / "a"), weights(tmp_path / out))
    code, _, err = netdsl("train", "colours.net", "--out", "d", *DEVICE)
    assert code == 2
    assert "green/000.jpg is not a readable picture" in err
    assert "`on_bad_picture = skip` in the data section" in err


def test_bad_pictures_have_no_weight(pictures: Path) -> None:
    bad = [pictures / "train" / "red" / name for name in ("000.jpg", "001.png")]
    for path in bad:
        cut(path)
    skipped, prepare = SkippedPictures(), Preprocessing((), (12, 12, 3))
    samples = read_folder(pictures).train.skip_bad_pictures(skipped)
    batches = list(training_batches(samples, 8, 1, 0, augment=prepare))
    assert sum(int((b.weights == 0).sum()) for b in batches) == 2
    assert len(skipped.messages) == 2
    for batch in batches:
        for i in np.flatnonzero(batch.weights == 0):
            others = [x for x, w in zip(batch.images, batch.weights, strict=True) if w]
            assert any(np.array_equal(batch.images[i], x) for x in others)
    assert isinstance(samples.images, Pictures)
    one = samples.take(np.array([samples.images.paths.index(p) for p in bad]))
    (judged,) = evaluation_batches(one, 4, prepare)
    assert not judged.weights.any()
    with pytest.raises(NetError, match="none of the 2 pictures in a batch can be used"):
        list(training_batches(one, 2, 1, 0, augment=prepare))


def test_where_all_to_judge_by_is_bad_the_run_says_so(netdsl: Any, pictures: Path) -> None:
    for path in (pictures / "val").rglob("*.*"):
        cut(path)
    code, _, err = netdsl("train", "colours.net", "--out", "run", *SKIP, *DEVICE)
    assert code == 2
    assert "none of the images to evaluate on can be used" in err
    assert (pictures.parent / "run" / "last.safetensors").is_file()


@pytest.mark.parametrize("part", ["val", "test"])
def test_where_no_picture_of_a_part_has_a_header_no_run_begins(
    netdsl: Any, pictures: Path, part: str
) -> None:
    """Otherwise it would not be validated at all, or end after its last epoch."""
    for path in (pictures / part).rglob("*.*"):
        path.write_bytes(b"")
    code, _, err = netdsl("train", "colours.net", "--out", "run", *SKIP, *DEVICE)
    assert code == 2
    assert f"none of the pictures in pictures/{part} can be used" in err
    assert "green/000.jpg is not a readable picture" in err
    assert not (pictures.parent / "run" / "last.safetensors").exists()


def test_where_all_of_a_class_is_bad_the_run_says_so(netdsl: Any, pictures: Path) -> None:
    for path in (pictures / "train" / "red").iterdir():
        cut(path)
    code, _, err = netdsl("train", "colours.net", "--out", "run", *SKIP, *DEVICE)
    assert code == 2
    assert "none of the training pictures of `red` can be used" in err


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_an_epoch_is_saved_before_it_is_judged(
    netdsl: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever the judging dies of, the epoch before it is not done again."""
    assert netdsl("train", "colours.net", "--out", "whole", *DEVICE)[0] == 0

    def dies(*args: Any) -> None:
        raise error

    with monkeypatch.context() as m:
        m.setattr(evaluator, "evaluate", dies)
        assert netdsl("train", "colours.net", "--out", "run", *DEVICE)[0] == 2
    saved = checkpoint.load(tmp_path / "run" / "last.safetensors").progress
    assert (saved["epoch"], saved["seen"]) == (0, 40)
    assert netdsl("train", "--resume", "run", *DEVICE)[0] == 0
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")


# ---- the background


def verified(samples: Samples, prepare: Preprocessing) -> Verification:
    assert isinstance(samples.images, Pictures)
    with Verification([samples.images], prepare) as verification:
        verification.wait()
    return verification


def test_pictures_are_verified_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MIN_SECONDS_TO_CACHE", 0.0)
    decoded: list[str] = []
    plain = PictureFile.decode

    def counted(self: PictureFile, channels: int) -> Any:
        decoded.append(self.path.name)
        return plain(self, channels)

    monkeypatch.setattr(PictureFile, "decode", counted)
    samples, prepare = read_folder(pictures / "val"), Preprocessing((), (12, 12, 3))
    for expected in (12, 0):
        verified(samples.train, prepare).check()
        assert len(decoded) == expected
        decoded.clear()
    path = pictures / "val" / "red" / "003.jpg"
    os.utime(path, (1, 1))
    verified(samples.train, prepare).check()
    assert decoded == ["003.jpg"]
    cut(path)
    for _ in range(2):  # a bad one is not known to be good
        with pytest.raises(BadPicture, match=r"003\.jpg is not a readable picture"):
            verified(samples.train, prepare).check()
    decoded.clear()
    (kept,) = IMAGE_CACHE.directory.iterdir()
    for content in (b"", b"[1]", b'{"red/000.jpg": [1]}', b"[" * 10**5, b'{"a": 1}', b"\xff"):
        IMAGE_CACHE.store(kept.name, content)  # of this very user, with the right checksum
        skipped = SkippedPictures()
        verified(samples.train.skip_bad_pictures(skipped), prepare).check()
        assert len(skipped.messages) == 1
        assert len(decoded) == 12
        decoded.clear()


def test_what_is_known_of_pictures_is_kept_for_this_user_alone(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache folder may be shared: what others plant there is neither believed nor followed."""
    monkeypatch.setattr(verification, "MIN_SECONDS_TO_CACHE", 0.0)
    samples, prepare = read_folder(pictures / "val").train, Preprocessing((), (12, 12, 3))
    cache, victim = pictures.parent / "cache", pictures.parent / "victim"
    verified(samples, prepare).check()
    (entry,) = (p for p in cache.rglob("*") if p.is_file())
    assert (entry.stat().st_mode & 0o777, entry.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    victim.write_text("mine")
    entry.unlink()
    entry.symlink_to(victim)
    verified(samples, prepare).check()
    assert victim.read_text() == "mine"


def test_the_background_ends_with_the_run(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not go on for pictures that nobody waits for."""
    samples = read_folder(pictures / "train").train
    assert isinstance(samples.images, Pictures)
    seen: list[Path] = []
    verification = Verification([samples.images], Preprocessing((), (12, 12, 3)))

    def slow(self: Preprocessing, path: Path) -> None:
        seen.append(path)
        verification._stop.set()  # as when the run is over

    monkeypatch.setattr(Preprocessing, "check_picture", slow)
    with verification:
        verification.wait()
    assert len(seen) == 1


def test_a_bad_test_picture_is_known_while_the_first_epoch_runs(
    netdsl: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(pictures / "test" / "green" / "000.jpg")
    plain = Verification.check

    def waits(self: Verification) -> None:
        self.wait()
        plain(self)

    monkeypatch.setattr(Verification, "check", waits)
    code, _, err = netdsl("train", "colours.net", "--out", "run", *DEVICE)
    assert code == 2
    assert "test/green/000.jpg" in err
    saved = checkpoint.load(tmp_path / "run" / "last.safetensors").progress
    assert saved["epoch"] == 0
