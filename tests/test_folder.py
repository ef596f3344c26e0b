"""Folders of pictures: what they hold, what is said of wrong ones, and a run on one to the end."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netdsl.data import folder_scan, preprocessing, sources
from netdsl.data.image_folder import read_folder
from netdsl.data.pictures import PictureFile, Pictures
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Dataset, Samples, evaluation_batches, training_batches
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
from netdsl.signature import BoundCall
from tests.processes import run_process
from tests.test_photographs import PHOTOGRAPHS

NET = """
net colours(classes=2) {
  input(12x12x3)
  conv(8, 3x3, pad=same) -> relu -> globalavgpool -> fc(classes)
}
data {
  source = folder("pictures"), batch = 8, normalize = imagenet
  augment = [random_resized_crop(scale=[0.5, 1]), hflip, lighting]
  eval_transform = [resize(14), center_crop]
}
train { optimizer = adam(lr=0.03), epochs = 6, expect val_accuracy >= 0.9 }
"""
COLOURS = {"green": (40, 180, 60), "red": (190, 50, 30)}


def write(folder: Path, count: int, colours: dict[str, Any] = COLOURS, seed: int = 0) -> None:
    """Noisy pictures of any size, of one colour in each class."""
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            h, w = rng.integers(10, 40, 2)
            pixels = np.clip(rng.normal(colour, 40, (h, w, 3)), 0, 255).astype(np.uint8)
            suffix = (".jpg", ".png", ".JPEG")[i % 3]
            Image.fromarray(pixels).save(folder / name / f"{i:03}{suffix}")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """train and val beside each other."""
    folder = tmp_path / "pictures"
    write(folder / "train", 20)
    write(folder / "val", 6, seed=1)
    return folder


def names(samples: Samples) -> list[str]:
    assert isinstance(samples.images, Pictures)
    return [p.relative_to(samples.images.folder).as_posix() for p in samples.images.paths]


def test_both_layouts_are_read(pictures: Path) -> None:
    apart = read_folder(pictures)
    assert apart.classes == ("green", "red")
    assert len(apart.train) == 40
    assert apart.validation is not None
    assert apart.validation.labels.tolist() == [0] * 6 + [1] * 6
    assert names(apart.validation)[:2] == ["green/000.jpg", "green/001.png"]
    assert apart.read_test is None
    whole = read_folder(pictures / "train")
    assert whole.validation is None
    assert names(whole.train) == names(apart.train)
    assert whole.fingerprint == apart.fingerprint
    write(pictures / "test", 2, seed=2)
    tested = read_folder(pictures)
    assert tested.read_test is not None
    assert len(tested.read_test()) == 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path, 2, {"train": (9, 9, 9), "plane": (200, 200, 200)})
    assert read_folder(tmp_path).classes == ("plane", "train")


def test_other_files_and_hidden_folders_are_left_out(pictures: Path) -> None:
    (pictures / "train" / "red" / "notes.txt").write_text("nothing to see")
    (pictures / "train" / "red" / "._000.jpg").write_bytes(b"what another system leaves")
    (pictures / "train" / ".cache").mkdir()
    (pictures / "train" / "red" / "more").mkdir()
    Image.new("L", (9, 9)).save(pictures / "train" / "red" / "more" / "x.png")
    found = read_folder(pictures).train
    assert len(found) == 41
    assert "red/more/x.png" in names(found)


# ---- which folders are parts, and which are classes


def paint(folder: Path, *places: str, name: str = "a.png") -> None:
    """A picture in each of these folders."""
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(folder / place / name)


def test_parts_have_many_names(tmp_path: Path) -> None:
    trains = ("train", "Train", "TRAIN", "training", "Training")
    vals = ("val", "Val", "valid", "Validation", "dev", "DEV")
    for parts in product(trains, vals, ("test", "Testing", "TEST")):
        folder = tmp_path / "-".join(parts)
        paint(folder, *(f"{part}/{c}" for part in parts for c in ("cat", "dog")))
        found = read_folder(folder)
        assert found.classes == ("cat", "dog")
        assert found.read_test is not None
        assert found.validation is not None
        assert [len(x) for x in (found.train, found.validation, found.read_test())] == [2, 2, 2]
        assert found.ignored_files == ()


@pytest.mark.parametrize(
    ("places", "complaint", "help"),
    [
        (["train/a", "train/b", "Train/a", "Train/b"], "both Train and train", "keep one of them"),
        (["train/a", "train/b", "val/a", "Valid/b"], "both Valid and val", "keep one of them"),
        (
            ["train/a", "train/b", "holdout/a"],
            "has the same classes as train",
            "val (val or valid or",
        ),
        (
            ["train/a", "train/b", "val/a", "eval/b"],
            "eval has the same classes as train",
            "move it away",
        ),
        (["train/steam", "train/diesel", "plane"], "a part, or a class like plane", "move plane"),
        (["Val/a", "Val/b"], "contains Val, but no train", "DIR/train/CLASS"),
        (
            ["cat/train", "cat/val", "dog/train", "dog/val"],
            "contain.* the same folders train, val",
            "",
        ),
        (["cat/Train", "dog/Train"], "the same folders Train", "DIR/train/CLASS"),
        (["cat/train", "dog/TRAINING"], "the same folders train", "DIR/train/CLASS"),
        (["cat/train", "cat/val", "dog/Train", "dog/Val"], "the same folders train, val", ""),
        (
            ["cat/train", "cat/val", "cat", "dog"],
            "cat would be a class, but it contains the parts",
            "",
        ),
        (
            ["cat/train", "cat/val", "dog/train", "dog/test", "cow"],
            "contains the parts train, val",
            "",
        ),
        (["train/a/dev", "train/a/test", "train/b"], "contains the parts dev, test", ""),
        (["fold1/a", "fold1/b", "fold2/a", "fold2/b"], "the same folders a, b", "DIR/train/CLASS"),
        (["train_set/a", "train_set/b", "val_set/a", "val_set/b"], "the same folders a, b", ""),
        (["x/images/a", "x/images/b", "y/images/a", "y/images/b"], "the same folders a, b", ""),
        (["train/f1/a", "train/f1/b", "train/f2/a", "train/f2/b"], "the same folders a, b", ""),
        (["train", "val"], "train are not in a class folder", "DIR/train/CLASS"),
        (["Test", "Train", "dev"], "Test are not in a class folder", "DIR/train/CLASS"),
        (
            ["pets/train/a", "pets/train/b"],
            "pets would be a class, but it contains the part",
            "name",
        ),
        (
            ["train/a", "train/b", "val/a", "val/c"],
            "val/c is a class without training pictures",
            "a, b",
        ),
    ],
)
def test_parts_and_classes_are_not_mixed_up(
    tmp_path: Path, places: list[str], complaint: str, help: str
) -> None:
    paint(tmp_path, *places)
    with pytest.raises(NetError, match=complaint) as e:
        read_folder(tmp_path)
    assert help in e.value.render()


@pytest.mark.parametrize(
    ("places", "classes", "left_out"),
    [
        (["a/images", "b/images"], ("a", "b"), ()),  # as Tiny ImageNet has them
        (["a/left", "b/right"], ("a", "b"), ()),
        (["a", "a/left", "a/right", "b/left", "b/right"], ("a", "b"), ()),
        (["train", "plane"], ("plane", "train"), ()),
        (["train/a", "train/b", "test"], ("a", "b"), ("test (its pictures are not in",)),
        (
            ["train/a", "train/b", "val/a", "val/b", "raw"],
            ("a", "b"),
            ("raw (pictures next to the parts)",),
        ),
        (["train/a", "train/b", "train"], ("a", "b"), ("train/a.png (not in a class folder)",)),
    ],
)
def test_other_layouts_are_taken_and_what_is_left_out_is_said(
    tmp_path: Path, places: list[str], classes: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    paint(tmp_path, *places)
    found = read_folder(tmp_path)
    assert found.classes == classes
    assert len(found.ignored_files) == len(left_out)
    for said, expected in zip(found.ignored_files, left_out, strict=True):
        assert said.startswith(expected)


# ---- which files are pictures


def test_hidden_folders_are_not_learnt_from(tmp_path: Path) -> None:
    paint(tmp_path, "a", "b", "a/.thumbnails", "a/more/.cache/x", "b/__MACOSX", ".git/c")
    paint(tmp_path, "a", name=".hidden.png")
    found = read_folder(tmp_path)
    assert names(found.train) == ["a/a.png", "b/a.png"]
    paths = [".git", "a/.hidden.png", "a/.thumbnails", "a/more/.cache", "b/__MACOSX"]
    assert len(found.ignored_files) == 1
    assert sorted(found.ignored_files[0].removesuffix(" (hidden)").split(", ")) == paths


def test_classes_may_have_any_name(tmp_path: Path) -> None:
    places = ("__init__", "__x__", "_", "a b", "\x1b[31mred", "[bold]x", "ä", "x\ny")
    paint(tmp_path, *places)
    assert sorted(read_folder(tmp_path).classes) == sorted(places)


def test_pictures_are_found_by_their_content(tmp_path: Path) -> None:
    for kind, name in (("JPEG", "a.jfif"), ("JPEG", "b"), ("PNG", "c.dat"), ("WEBP", "d.png.part")):
        for label in ("x", "y"):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (9, 9)).save(tmp_path / label / name, kind)
    for name, content in (("e.txt", b"text"), ("f", b""), ("BM.txt", b"BM is no picture")):
        (tmp_path / "x" / name).write_bytes(content)
    os.mkfifo(tmp_path / "x" / "pipe")
    found = read_folder(tmp_path)
    assert names(found.train)[:4] == ["x/a.jfif", "x/b", "x/c.dat", "x/d.png.part"]
    assert len(found.train) == 8
    assert found.ignored_files == ("x/BM.txt, x/e.txt, x/f, x/pipe (not a picture)",)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    paint(tmp_path, "d/a", "d/b", "elsewhere/more", "elsewhere/more/deep", "elsewhere/other")
    for link, to in (
        ("a/link", "../../elsewhere/more"),
        ("a/again", "../../elsewhere/more"),
        ("a/self", "."),
        ("a/up", ".."),
        ("a/top", "/"),
        ("a/gone", "nowhere"),
        ("a/loop", "loop"),
        ("c", "../elsewhere/other"),
    ):
        (tmp_path / "d" / link).symlink_to(to)
    (tmp_path / "elsewhere" / "more" / "back").symlink_to(tmp_path / "d" / "a")
    found = read_folder(tmp_path / "d")
    assert names(found.train) == [
        *["a/a.png", "a/again/a.png", "a/again/deep/a.png", "b/a.png"],
        "c/a.png",
    ]
    assert "a/self" in found.ignored_files[0] or "a/self" in found.ignored_files[-1]


@pytest.mark.parametrize("link", ["a/link", "a/in/link", "c"])
def test_a_link_to_a_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    """Outside the data folder there may be anything; within it, and beside pictures, few files."""
    monkeypatch.setattr(folder_scan, "MAX_NON_PICTURES", 12)
    inside, outside = tmp_path / "d", tmp_path / "outside"
    paint(tmp_path, "d/a/in", "d/b", "outside/more/deep")
    for i in range(9):
        (outside / "more" / f"{i}.txt").write_text("nothing to see")
    for i in range(20):
        (inside / "b" / f"{i}.txt").write_text("nothing to see")
    (inside / link).symlink_to(outside)
    read_folder(inside)
    (outside / "more" / "link").symlink_to("/usr")
    with pytest.raises(NetError, match=f"{link} is a link to over 12 files and folders"):
        read_folder(inside)


@pytest.mark.parametrize(
    ("link", "to"),
    [
        ("train/c", "a"),
        ("train/a/more", "../b"),
        ("train/b/more", "../a/deep"),
        ("val", "train"),
        ("val/a", "../train/a"),
        ("val/a/more", "../../train/b/"),
        ("test", "val"),
    ],
)
def test_a_folder_is_of_one_class_and_one_part(tmp_path: Path, link: str, to: str) -> None:
    """The same pictures as two classes, or to learn from and to be judged by."""
    paint(tmp_path, "train/a", "train/a/deep", "train/b")
    if link not in ("val", "val/a"):
        paint(tmp_path, "val/a")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(to)
    with pytest.raises(NetError, match=r"also belongs to .*, through a link"):
        read_folder(tmp_path)


@pytest.mark.parametrize("link", ["c", "train/c", "val", "val/b", "README"])
def test_links_that_lead_nowhere_are_said(tmp_path: Path, link: str) -> None:
    """A disk that is not mounted: a class or a part would be missing unseen."""
    paint(tmp_path, "a", "b") if link == "c" else paint(tmp_path, "train/a", "train/b")
    if link == "val/b":
        paint(tmp_path, "val/a")
    (tmp_path / link).symlink_to("/nowhere/at/all")
    assert read_folder(tmp_path).ignored_files == (f"{link} (a broken link)",)


def test_pictures_beside_the_parts_are_said(tmp_path: Path) -> None:
    paint(tmp_path, "train/a", "train/b", "")
    assert read_folder(tmp_path).ignored_files == ("a.png (not in a class folder)",)


def test_a_class_of_which_no_number_is_white_says_what_to_do(tmp_path: Path) -> None:
    paint(tmp_path, "a")
    (tmp_path / "b").mkdir()
    Image.new("I", (9, 9), 70_000).save(tmp_path / "b" / "b.tif")
    with pytest.raises(NetError, match="b contains no training pictures") as e:
        read_folder(tmp_path)
    assert "32-bit integers have no fixed range of brightness" in e.value.render()
    assert "save it with 8 or 16 bits per channel" in e.value.render()


@pytest.mark.parametrize("to", [".", "..", "/", "../.."])
def test_a_class_is_no_folder_above_it(tmp_path: Path, to: str) -> None:
    paint(tmp_path, "train/a", "train/b")
    for folder in (tmp_path, tmp_path / "train"):
        link = tmp_path / "train" / "loop"
        link.symlink_to(to)
        with pytest.raises(
            NetError, match=r"loop (is a link to a folder that contains it|would be)"
        ):
            read_folder(folder)
        link.unlink()


def test_deep_folders_are_read(tmp_path: Path) -> None:
    paint(tmp_path, "a", "b")
    there = os.open(tmp_path / "a", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=there)
        there, before = os.open("d", os.O_RDONLY, dir_fd=there), there
        os.close(before)
    os.close(there)
    try:
        assert names(read_folder(tmp_path).train) == ["a/a.png", "b/a.png"]
    finally:  # Python's own way of removing a folder does not go so deep
        run_process("rm", "-rf", str(tmp_path / "a"))


def test_every_run_says_what_it_found(netdsl: Any, pictures: Path) -> None:
    paint(pictures, "train/blue", "train/red/.old")
    (pictures / "train" / "red" / "notes.txt").write_text("nothing to see")
    (pictures.parent / "colours.net").write_text(NET.replace("classes=2", "classes=3"))
    expected = [
        'data: folder(path="pictures"), 3 classes: blue, green, red',
        "  to learn from: 41 (blue 1, green 20, red 20)",
        "  to validate with: 12 (blue 0, green 6, red 6)",
        "  no images to validate with: blue",
        "  left out: train/red/.old (hidden)",
        "  left out: train/red/notes.txt (not a picture)",
    ]
    code, out, _ = netdsl("train", "colours.net", "--dry-run")
    assert code == 0
    assert "\n".join(expected) in out
    code, out, err = netdsl("train", "colours.net", "--out", "run", "--set", "train.epochs=1")
    assert "\n".join(expected) in err
    code, out, err = netdsl("train", "--resume", "run")
    assert f'data: folder(path="{pictures}")' in err  # the run keeps where they are
    assert "\n".join(expected[1:]) in err
    code, out, err = netdsl("train", "colours.net", "--overfit")
    assert "\n".join(expected) in err
    code, out, _ = netdsl("train", "colours.net", "--dry-run", "--json")
    data = json.loads(out)["main"]["data"]
    assert data["counts"]["to learn from"] == [1, 20, 20]
    assert data["left_out"] == ["train/red/.old (hidden)", "train/red/notes.txt (not a picture)"]


def test_one_class_is_no_task(netdsl: Any, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "colours.net").write_text(NET.replace("classes=2", "classes=1"))
    write(tmp_path / "one", 5, {"red": COLOURS["red"]})
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 12, 12, 3), np.uint8), labels=[0] * 9)
    for source in ('folder("one")', 'arrays("x.npz")'):
        setting = f"data.source={source}"
        code, _, err = netdsl("train", "colours.net", "--out", "run", "--set", setting)
        assert code == 2
        assert "training images are of one class, `" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_never_held_out_whole(netdsl: Any, tmp_path: Path, seed: int) -> None:
    write(tmp_path / "pictures", 20)
    write(tmp_path / "pictures", 1, {"blue": (0, 0, 250)})
    write(tmp_path / "pictures", 2, {"grey": (99, 99, 99)})
    (tmp_path / "colours.net").write_text(NET.replace("classes=2", "classes=4"))
    setting = ("--set", f"train.seed={seed}", "--set", "data.validation=0.4")
    code, out, _ = netdsl("train", "colours.net", "--dry-run", *setting)
    assert code == 0
    assert "  to learn from: 26 (blue 1, green 12, grey 1, red 12)" in out
    assert "  to validate with: 17, held out (blue 0, green 8, grey 1, red 8)" in out
    code, _, err = netdsl("train", "colours.net", "--dry-run", "--set", "data.validation=41")
    assert code == 2
    assert "41 samples held out of 43 leave no training samples of a class" in err


def test_the_fingerprint_tells_other_pictures_apart(pictures: Path) -> None:
    before = read_folder(pictures).fingerprint
    assert before.startswith("40 pictures, 2 classes")
    path = pictures / "train" / "red" / "000.jpg"
    path.rename(path.with_name("zzz.jpg"))
    assert read_folder(pictures).fingerprint != before


def loaded(folder: Path, skip_bad: bool = False) -> Dataset:
    """What a recipe gets of a folder."""
    source = SOURCES["folder"]
    return sources.load(BoundCall("folder", source, {"path": str(folder)}), None, skip_bad)


@pytest.mark.parametrize(
    ("make", "complaint", "help"),
    [
        (lambda d: d.rmdir(), "there is no folder", "--data DIR"),
        (lambda d: None, "the pictures of .*d are missing", "DIR/train/CLASS"),
        (
            lambda d: Image.new("L", (4, 4)).save(d / "a.png"),
            "are not in a class folder",
            "CLASS",
        ),
        (
            lambda d: (write(d, 1), (d / "blue").mkdir()),
            "blue contains no training pictures",
            "move it",
        ),
        (
            lambda d: (write(d / "train", 1), write(d / "val", 1, {"blue": (0, 0, 200)})),
            "val/blue is a class without training pictures",
            "green, red",
        ),
        (lambda d: write(d / "val", 1), "contains val, but no train", "DIR/train/CLASS"),
        (
            lambda d: (write(d, 1), (d / "red" / "x.jpg").write_text("<html>")),
            r"red/x\.jpg is not a readable picture",
            "remove it if it is not a picture",
        ),
    ],
)
def test_wrong_folders_are_told(tmp_path: Path, make: Any, complaint: str, help: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    make(folder)
    with pytest.raises(NetError, match=complaint) as e:
        loaded(folder)
    assert help in e.value.render()


def test_all_that_is_no_picture_is_told_at_once(pictures: Path) -> None:
    for i in range(12):
        (pictures / "train" / "red" / f"bad{i:02}.png").write_bytes(b"")
    with pytest.raises(NetError, match=r"bad00\.png") as e:
        loaded(pictures)
    assert "bad07.png" in e.value.render()
    assert "and 4 more" in e.value.render()


def test_it_is_found_where_it_is_said_to_be(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SOURCES["folder"].load
    for folder, path in ((None, str(pictures)), (pictures, "x"), (tmp_path, "/data/pictures")):
        assert len(load(folder, path=path).train) == 40
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path))
    assert len(load(None, path="pictures").train) == 40


def batches(folder: Path, size: int = 8) -> list[Any]:
    train = read_folder(folder).train
    prepare = Preprocessing(PHOTOGRAPHS, (8, 9, 3))
    return [b.images for b in training_batches(train, size, 1, 0, augment=prepare)]


def test_the_number_of_workers_changes_nothing(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for workers in (1, 2, 9):
        pool = partial(ThreadPoolExecutor, max_workers=workers)
        monkeypatch.setattr(preprocessing, "start_thread_pool", pool)
        found.append(np.concatenate(batches(pictures)))
    assert found[0].shape == (40, 8, 9, 3)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_pictures_are_decoded_when_their_batch_is_made(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(self: PictureFile, channels: int) -> Any:
        read.append(self.path)
        return np.zeros((9, 9, channels), np.uint8)

    monkeypatch.setattr(PictureFile, "decode", counted)
    train = read_folder(pictures).train
    stream = training_batches(train, 8, 1, 0, augment=Preprocessing((), (8, 9, 3)))
    assert not read
    next(stream)
    assert len(read) == 8
    list(evaluation_batches(train.take(np.arange(3)), 8, Preprocessing((), (8, 9, 3))))
    assert len(read) == 11


def test_from_the_command_line(netdsl: Any, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "colours.net").write_text(NET)
    code, out, _ = netdsl("train", "colours.net", "--dry-run")
    assert code == 0
    assert "40 images to train on, 12 to validate on" in out
    code, out, err = netdsl("train", "colours.net", "--out", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["val_accuracy"] >= 0.9
    code, out, _ = netdsl("eval", "run")
    assert "12 validation images" in out
    assert "green" in out
    code, out, _ = netdsl("predict", "run", str(pictures / "val" / "red" / "000.jpg"), "--json")
    assert json.loads(out)[0]["top"][0][0] == "red"
    write(tmp_path / "new", 5, {"red": COLOURS["red"]}, seed=3)
    code, out, _ = netdsl("eval", "run", "--data", "new", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == 1
    code, out, _ = netdsl("eval", "run", "--size", "12", "--size", "20", "--json")
    assert json.loads(out)["accuracy"] >= 0.9
    code, _, err = netdsl("eval", "run", "--size", "10")
    assert code == 2
    assert "smaller than the 12 that the net needs" in err
    write(tmp_path / "new", 1, {"blue": (0, 0, 200)})
    code, _, err = netdsl("eval", "run", "--data", "new")
    assert code == 2
    assert "has no class `blue`" in err
    code, _, err = netdsl("predict", "run", "nowhere.jpg")
    assert code == 2
    assert "there is no picture nowhere.jpg" in err


def test_predictions_are_prepared_as_evaluation_is(netdsl: Any, pictures: Path) -> None:
    (pictures.parent / "colours.net").write_text(NET.replace("0.9", "0"))
    netdsl("train", "colours.net", "--out", "run", "--set", "train.epochs=1", "--json")
    code, out, _ = netdsl("eval", "run", "--json")
    loss = json.loads(out)["loss"]
    paths = [str(p) for p in sorted((pictures / "val").rglob("*.*"))]
    code, out, _ = netdsl("predict", "run", *paths, "--json")
    assert code == 0
    chances = [dict(x["top"])[Path(x["image"]).parent.name] for x in json.loads(out)]
    assert loss == pytest.approx(-np.log(chances).mean(), rel=1e-4)


def test_a_run_on_pictures_resumes_to_the_same_bits(netdsl: Any, pictures: Path) -> None:
    (pictures.parent / "colours.net").write_text(NET)
    setting = ("--set", "train.epochs=3", "--device", "reference")
    netdsl("train", "colours.net", "--out", "whole", *setting)
    netdsl("train", "colours.net", "--out", "half", "--set", "train.epochs=1", *setting[2:])
    netdsl("train", "--resume", "half", *setting)
    ends = [(pictures.parent / d / "metrics.jsonl").read_text() for d in ("whole", "half")]
    losses = [[json.loads(x).get("train_loss") for x in e.splitlines()] for e in ends]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("classes=2", "classes=5"), "the data set has 2 classes, but the net gives 5 scores"),
        (("[resize(14), center_crop]", "[hflip]"), "`hflip` is random"),
        (("hflip, lighting", "random_crop(12)"), "12 black pixels around"),
        (("input(12x12x3)", "input(12x12x1)"), "needs red, green and blue"),
        (("input(12x12x3)", "input(12x12x2)"), "1, 3 or 4 channels"),
        (("scale=[0.5, 1]", "scale=[1, 0.5]"), "the smaller first"),
        (("scale=[0.5, 1]", "scale=0.5"), "a list of 2"),
        (
            ("12x12x3)\n  conv(8, 3x3, pad=same) -> relu -> globalavgpool", "432)"),
            "does not take pictures",
        ),
    ],
)
def test_what_does_not_fit_pictures_is_told(
    netdsl: Any, pictures: Path, change: tuple[str, str], complaint: str
) -> None:
    assert change[0] in NET
    text = NET.replace(*change).replace("normalize = imagenet", "normalize = none")
    (pictures.parent / "colours.net").write_text(text)
    code, _, err = netdsl("train", "colours.net", "--out", "run")
    assert code == 2
    assert complaint in err
    assert not (pictures.parent / "run").exists()


def test_a_picture_that_is_cut_off_ends_the_run_with_its_name(netdsl: Any, pictures: Path) -> None:
    path = pictures / "train" / "red" / "000.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    (pictures.parent / "colours.net").write_text(NET)
    code, _, err = netdsl("train", "colours.net", "--out", "run")
    assert code == 2
    assert "red/000.jpg is not a readable picture" in err


def test_without_the_pictures_a_dry_run_says_so(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "colours.net").write_text(NET)
    code, out, _ = netdsl("train", "colours.net", "--dry-run")
    assert code == 0
    assert "the number of steps is unknown: there is no folder pictures" in out
    code, out, _ = netdsl("train", "colours.net", "--dry-run", "--json")
    assert json.loads(out)["main"]["missing"].startswith("there is no folder pictures")
    assert netdsl("train", "colours.net", "--out", "run")[0] == 2


def test_ants_and_bees(data_dir: Path, netdsl: Any, tmp_path: Path) -> None:
    folder = data_dir / "hymenoptera"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    found = read_folder(folder)
    assert found.classes == ("ants", "bees")
    assert found.validation is not None
    assert (len(found.train), len(found.validation)) == (245, 153)
    text = NET.replace('"pictures"', '"hymenoptera"').replace("0.9", "0.45")
    (tmp_path / "insects.net").write_text(text)
    setting = ("--set", "train.epochs=2", "--data", str(data_dir))
    code, _, err = netdsl("train", "insects.net", "--out", "run", *setting)
    assert code == 0, err
    code, out, _ = netdsl("eval", "run", "--data", str(data_dir), "--json")
    assert json.loads(out)["images"] == 153


def test_several_sizes_are_averaged(netdsl: Any, pictures: Path) -> None:
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor

    (pictures.parent / "colours.net").write_text(NET)
    netdsl("train", "colours.net", "--out", "run", "--set", "train.epochs=1", "--json")
    trained = Predictor(Path("run"), open_backend("reference"))
    one, other, same, both = (
        trained.evaluate(None, sizes).means for sizes in ((14,), (30,), (14, 14), (14, 30))
    )
    assert one == trained.evaluate(None).means
    assert same == one
    assert same["top5"] == 1
    assert both["loss"] <= (one["loss"] + other["loss"]) / 2 + 1e-6
    assert one["loss"] != other["loss"]
