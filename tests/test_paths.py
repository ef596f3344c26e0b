"""Paths that a .net file names: where they are looked up, and what is said if nothing is there."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from netdsl.data.array_advice import advise_count, advise_rows, describe_doubts
from netdsl.data.path_lookup import PathLookup, expand_home, spell_path
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError, Source, Span, fail
from netdsl.language.parse import parse
from netdsl.language.program import build_program, parse_file
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.recipe.settings import override_recipe
from netdsl.values import Text
from tests.test_data import idx
from tests.test_folder import paint
from tests.test_sources import GOOD

NET = """
net colours(classes=2) { input(8x8x3); globalavgpool; head: fc(classes) }
data { source = folder("pets"), batch = 2, eval_transform = [resize(8), center_crop] }
train { epochs = 1 }
train more { init = weights("first", except="head.*") }
"""
DEVICE = ("--device", "reference")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netdsl: Any) -> Path:
    """A file with its data beside it; the working directory, after that of `netdsl`, is another."""
    folder = tmp_path / "nets"
    for i in range(4):
        for name, colour in (("red", "red"), ("green", "green")):
            (folder / "pets" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), colour).save(folder / "pets" / name / f"{i}.png")
    (folder / "a.net").write_text(NET)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_run_finds_its_data_and_weights_from_anywhere(
    nets: Path, netdsl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = netdsl("train", "../nets/a.net", "-o", "../nets/first", *DEVICE)
    assert code == 0, err
    assert netdsl("train", "../nets/a.net:more", "-o", "more", *DEVICE)[0] == 0
    text = Path("more/recipe.net").read_text()
    assert f'path="{nets / "pets"}"' in text
    assert f'file="{nets / "first"}"' in text
    run = os.path.abspath("more")
    monkeypatch.chdir(nets.parent)
    assert netdsl("eval", run, *DEVICE)[0] == 0
    assert netdsl("train", "--resume", run, "--set", "train.epochs=2", *DEVICE)[0] == 0
    (nets / "pets").rename("pets")
    code, _, err = netdsl("eval", run, *DEVICE)
    assert code == 2
    assert f"there is no folder {nets / 'pets'}" in err
    assert netdsl("eval", run, "--data", ".", *DEVICE)[0] == 0
    code, _, err = netdsl(
        "train", "--resume", run, "--data", ".", "--set", "train.epochs=3", *DEVICE
    )
    assert code == 0
    assert f'path="{nets.parent / "pets"}"' in Path(run, "recipe.net").read_text()


def test_the_place_beside_the_file_comes_first(nets: Path, netdsl: Any) -> None:
    """But not for what is set on the command line, or for a text that is no file."""
    paint(Path(), "pets/here/a", "pets/here/b", "twins/a", "twins/b")
    for text in (NET, NET.replace('"pets"', "place") + 'let place = "pets"\n'):
        (nets / "a.net").write_text(text)
        tree = parse_file("../nets/a.net")
        for settings, found in (
            ((), nets / "pets"),
            (('data.source=folder("pets")',), Path("pets")),
            (('data.source=folder("twins")',), Path("twins")),
        ):
            source = resolve_recipe(override_recipe(tree, settings, None)).data.source
            path = source.record.find(None, **source.arguments)["path"]
            assert os.path.samefile(path, found)
    source = resolve_recipe(build_program(parse(NET))).data.source
    assert source.record.find(None, **source.arguments)["path"] == Path("pets")


def test_all_places_are_named(nets: Path, netdsl: Any) -> None:
    arrays = NET.replace('folder("pets")', 'arrays("pets.npz")')
    for text, noun in ((NET, "folder"), (arrays, "file")):
        (nets / "a.net").write_text(text.replace("pets", "gone"))
        code, _, err = netdsl("train", "../nets/a.net", *DEVICE)
        assert code == 2
        where = "in ../nets (next to the .net file)", f"in the working directory {Path.cwd()}"
        assert f"there is no {noun} gone" in err
        assert all(place in err for place in where)
        assert ("in the cache" in err) == (noun == "folder")
    code, _, err = netdsl("train", "../nets/a.net:more", "--data", "../nets", *DEVICE)
    assert "there is no file gone.npz in ../nets" in err
    (nets / "a.net").write_text(NET)
    code, _, err = netdsl("train", "../nets/a.net:more", *DEVICE)
    assert code == 2
    assert (
        "there is no checkpoint first in ../nets (next to the .net file) or in the working" in err
    )


@pytest.mark.parametrize(
    ("path", "there", "complaint", "help"),
    [
        ("pets", "pets.zip", "there is no folder pets", "unpack it first: `unzip pets.zip`"),
        ("pets", "pets.tar.gz", "there is no folder pets", "`tar xf pets.tar.gz`"),
        ("pets.tgz", "pets.tgz", "pets.tgz is an archive, not a folder", "`tar xf pets.tgz`"),
        ("x.npz", "x.npz", "x.npz is a file, not a folder", 'arrays("data.npz")'),
        ("pets", "Pets/", "there is no folder pets", "did you mean `Pets`?"),
        ("https://a.org/pets.zip", None, "there is no folder https:", "download it first"),
        (r"C:\pets", None, "there is no folder C:", "in WSL, it is `/mnt/c/pets`"),
        (r"my\pets", None, "there is no folder my", "separated by `/`: `my/pets`"),
        ("~/no such folder", None, "there is no folder ~/no such folder", "--data DIR"),
        ("pe\0ts", None, "there is no folder pe", "--data DIR"),
        ("a" * 5000, None, "there is no folder aaa", "--data DIR"),
    ],
)
def test_what_is_wrong_with_a_path(
    nets: Path, path: str, there: str | None, complaint: str, help: str
) -> None:
    if there is not None and there.endswith("/"):
        Path(there).mkdir()
    elif there is not None:
        Path(there).write_bytes(b"")
    with pytest.raises(NetError) as e:
        SOURCES["folder"].load(None, path=path)
    assert complaint in e.value.render().replace(r"\x00", "\0")
    assert help in e.value.render()


def test_a_folder_that_may_not_be_searched(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the superuser, who runs many tests, there is none."""

    def deny(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("netdsl.data.path_lookup.os.stat", deny)
    advice = PathLookup("locked/pets").advise()
    assert advice == "you may not read locked: check its permissions"


NAMES = st.lists(st.sampled_from(["a", "b", "..", "c.npz"]), min_size=1, max_size=4)


@given(NAMES, st.booleans(), st.sampled_from([None, "", "nets", "/nets"]))
def test_the_order_of_places(parts: list[str], is_absolute: bool, folder: str | None) -> None:
    path = "/" * is_absolute + "/".join(parts)
    span = None if folder is None else Span(Source("x.net", "", folder), 0, 0)
    found = PathLookup(Text(path, span)).candidates
    wanted = [Path(folder, path)] if folder else []
    assert list(found) == list(dict.fromkeys([*wanted, Path(path)]))
    inside = PathLookup(Text(path, span), Path("data")).candidates
    assert all(p.is_relative_to("data") and ".." not in p.parts for p in inside)
    assert len(set(inside)) == len(inside)


def test_a_kept_path_does_not_say_whose_home_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert spell_path(Path("a/b")) == "~/a/b"
    assert expand_home("~/a/b") == tmp_path / "a" / "b"
    assert spell_path(Path("a/../b")) == "~/b"
    assert spell_path(Path("/data")) == "/data"
    monkeypatch.setenv("HOME", "/")
    assert spell_path(Path("/data")) == "/data"


# ---- other names and forms of known data sets


@pytest.mark.parametrize(
    "style",
    [
        "{0}-{1}-ubyte",
        "{0}.{1}-ubyte",
        "raw/{0}-{1}-ubyte",
        "MNIST/raw/{0}-{1}-ubyte",
        "{0}-{1}-ubyte/{0}-{1}-ubyte",
        "{0}-{1}-ubyte/{0}.{1}-ubyte",
    ],
)
def test_the_files_of_mnist_have_many_names(tmp_path: Path, style: str) -> None:
    for part in ("train", "t10k"):
        for noun, kind, shape in (("images", "idx3", (2, 28, 28)), ("labels", "idx1", (2,))):
            path = tmp_path / style.format(f"{part}-{noun}", kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(idx(shape))
    for path in (None, str(tmp_path)):
        dataset = SOURCES["mnist"].load(None if path else tmp_path, path=path)
        assert len(dataset.train) == 2


@pytest.mark.parametrize(
    ("source", "there", "help"),
    [
        ("mnist", "train.csv", "as Kaggle's digit-recognizer does"),
        ("mnist", "mnist.npz", "`source = arrays('mnist.npz')`"),
        ("mnist", "MNIST/processed/training.pt", "pickles of an old torchvision"),
        ("mnist", "FashionMNIST/raw/x", "`source = fashion_mnist` reads it"),
        ("fashion_mnist", "MNIST/raw/x", "`source = mnist` reads it"),
        ("cifar10", "data_batch_1", "the Python version, a pickle"),
        ("cifar10", "cifar-10-batches-py/data_batch_1", "cifar-10-binary.tar.gz"),
        ("cifar10", "cifar-10-python.tar.gz", "the Python version"),
        ("cifar10", "data_batch_1.mat", "the Matlab version"),
        ("cifar10", "cifar-100-binary/train.bin", "is CIFAR-100, which is another data set"),
        ("cifar10", "cifar-100-python.tar.gz", "is CIFAR-100, which is another data set"),
        ("cifar10", "train.bin", "contains CIFAR-100"),
        ("cifar10", "meta", "contains CIFAR-100"),
        ("cifar10", "trainLabels.csv", '`source = csv("trainLabels.csv", images="train")`'),
        ("cifar10", "train.7z", "`7z x train.7z`"),
        ("cifar10", "cifar-10-binary.tar.gz", "`tar xf cifar-10-binary.tar.gz`"),
    ],
)
def test_other_forms_of_known_data_are_named(
    tmp_path: Path, source: str, there: str, help: str
) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_bytes(b"")
    with pytest.raises(NetError) as e:
        SOURCES[source].load(tmp_path, path=None)
    assert f"the files of `{source}` are not in {tmp_path}" in e.value.render()
    assert help in e.value.render()


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        (("images", "labels"), ("val_images", "val_labels"), ("test_images", "test_labels")),
        (("train_images", "train_labels"), ("val_images", "val_labels"), None),
        (("x_train", "y_train"), None, ("x_test", "y_test")),
        (("X_train", "y_train"), ("X_val", "y_val"), ("X_test", "y_test")),
        (("X", "y"), None, None),
    ],
)
def test_arrays_have_names_of_other_libraries(
    tmp_path: Path, train: Any, validation: Any, test: Any
) -> None:
    named = {}
    for images, labels in filter(None, (train, validation, test)):
        named |= {images: GOOD["images"], labels: GOOD["labels"]}
    np.savez(tmp_path / "x.npz", **named)
    dataset = SOURCES["arrays"].load(tmp_path, path="x.npz")
    assert len(dataset.train) == 4
    assert (dataset.validation is not None) == (validation is not None)
    assert (dataset.read_test is not None) == (test is not None)


@pytest.mark.parametrize(
    ("arrays", "complaint", "help"),
    [
        ({"arr_0": 1, "arr_1": 2}, "no array `images`, but arr_0, arr_1", "`x_train`"),
        ({"labels": np.array(list("abca"))}, "contains <U1, not numbers", "np.unique(labels"),
        ({"labels": np.array(list("abca"), object)}, "Python objects", "labels.astype(str)"),
        ({"images": np.array([1, "a"], object)}, "Python objects", "images must have one size"),
        ({"images": np.zeros((4, 5, 6, 3))}, "float64", "(images * 255).round()"),
        ({"labels": [-1, 0, 1, 2]}, "the label -1", "`labels + 1`"),
        ({"labels": [1, 2, 3, 4], "classes": list("abcd")}, "the label 4", "`labels - 1`"),
    ],
)
def test_wrong_arrays_come_with_advice(
    tmp_path: Path, arrays: dict[str, Any], complaint: str, help: str
) -> None:
    given = arrays if "arr_0" in arrays else {"images": GOOD["images"], **GOOD} | arrays
    given = {k: v for k, v in given.items() if not k.startswith("test_")}
    np.savez(tmp_path / "x.npz", **given)
    with pytest.raises(NetError) as e:
        SOURCES["arrays"].load(tmp_path, path="x.npz")
    assert complaint in e.value.render()
    assert help in e.value.render()


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GOOD["images"])
    pixels = ",".join(f"pixel{i}" for i in range(784))
    (tmp_path / "pixels.csv").write_text(f"label,{pixels}\n1\n")
    (tmp_path / "x.xlsx").write_bytes(b"PK\3\4")
    for source, path, complaint in (
        ("arrays", {"path": "x.npy"}, "x.npy is a single array, not an .npz file"),
        ("csv", {"path": "pixels.csv", "images": None}, "the table contains pixels"),
        ("csv", {"path": "x.xlsx", "images": None}, "x.xlsx is an archive"),
        ("arrays", {"path": "."}, "is a folder, not a file"),
    ):
        with pytest.raises(NetError, match=complaint):
            SOURCES[source].load(tmp_path, **path)


def test_channels_first_are_noticed(tmp_path: Path, netdsl: Any) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((20, 3, 9, 9), np.uint8), labels=[0, 1] * 10)
    text = f'data {{ source = arrays("{tmp_path / "x.npz"}"), batch = 2 }}\ntrain {{ epochs = 1 }}'
    for shape, code in (("9x9x3", 2), ("9x9x1", 2), ("3x9x9", 0)):
        (tmp_path / "a.net").write_text(f"net a {{ input({shape}); fc(2) }}\n{text}")
        found, out, err = netdsl("train", str(tmp_path / "a.net"), "--dry-run")
        assert found == code
        assert "images.transpose(0, 2, 3, 1)" in out + err
        assert "input(3x9x9)`" not in err


def test_floats_of_the_range_of_bytes_are_noticed() -> None:
    images = np.zeros((2, 9, 9, 3), np.float32)
    assert describe_doubts(images) == ()
    images[1, 0, 0, 0] = 255
    (doubt,) = describe_doubts(images)
    assert doubt.startswith("the images are floats up to 255; `images / 255`")


def test_a_text_keeps_its_place() -> None:
    """As a copy too, as threads and pickles of recipes make them."""
    span = Span(Source("x.net", "abc", "nets"), 0, 1)
    text = copy.copy(Text("pets", span))
    assert text == "pets"
    assert PathLookup(text).candidates == (Path("nets/pets"), Path("pets"))


def test_pictures_in_a_format_that_is_not_read(tmp_path: Path) -> None:
    paint(tmp_path, "red")
    (tmp_path / "green").mkdir()
    (tmp_path / "green" / "0.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(NetError) as e:
        SOURCES["folder"].load(tmp_path, path="pets")
    assert "HEIC pictures, a format that is not read: convert them" in e.value.render()
    assert f"{tmp_path} contains no folder pets, so its own subfolders are read" in e.value.render()
    assert "remove" not in e.value.render()


# ---- predictions


def test_folders_are_predicted(nets: Path, netdsl: Any) -> None:
    assert netdsl("train", "../nets/a.net", "-o", "run", *DEVICE)[0] == 0
    code, out, _ = netdsl("predict", "run", "../nets/pets", "--csv", "all.csv", *DEVICE)
    assert code == 0
    names = [f"../nets/pets/{c}/{i}.png" for c in ("green", "red") for i in range(4)]
    assert [line.partition(":")[0] for line in out.splitlines()] == names
    header, *rows = Path("all.csv").read_text().splitlines()
    assert header == "image,predicted,p,predicted 2,p 2,error"
    assert [row.partition(",")[0] for row in rows] == names
    bad = nets / "pets" / "red" / "bad.png"
    bad.write_text("no picture")
    for name in ("photo.heic", "notes.txt"):
        (nets / "pets" / "red" / name).write_text("no picture")
    code, out, err = netdsl(
        "predict", "run", "none.png", "../nets/pets/red", "--csv", "some.csv", *DEVICE
    )
    assert code == 2
    assert len(out.splitlines()) == 4
    assert "photo.heic is not a readable picture" in err
    assert "help: convert it to JPEG or PNG" in err
    assert "there is no picture none.png" in err
    assert "bad.png is not a readable picture" in err
    assert len(Path("some.csv").read_text().splitlines()) == 8
    code, out, _ = netdsl("predict", "run", "none.png", names[0], "--json", *DEVICE)
    assert code == 2
    first, second = json.loads(out)
    assert first == {"image": "none.png", "top": [], "error": "there is no picture none.png"}
    assert "error" not in second
    Path("empty").mkdir()
    for place, complaint in (
        ("/", "everything on this machine"),
        ("empty", "contains no pictures"),
        ("../nets/pets/red/*.png", "a pattern is expanded by the shell, without quotes"),
        ("*.gif", "this is a pattern, and no file matches it"),
    ):
        code, _, err = netdsl("predict", "run", place, *DEVICE)
        assert code == 2
        assert complaint in err


@pytest.mark.parametrize(
    ("args", "help"),
    [
        (["run/digits"], "did you mean `runs/digits-1`?"),
        (["runs/digit-1"], "did you mean `runs/digits-1`?"),
        (["runs/digits-1/bset.safetensors"], "did you mean `runs/digits-1/best.safetensors`?"),
        (["elsewhere/photos"], "the best weights of a run are in its best.safetensors"),
    ],
)
def test_a_misspelt_run_is_suggested(nets: Path, netdsl: Any, args: list[str], help: str) -> None:
    Path("runs/digits-1").mkdir(parents=True)
    Path("runs/digits-1/best.safetensors").touch()
    code, _, err = netdsl("eval", *args)
    assert code == 2
    assert f"help: {help}" in err


def test_a_part_is_no_data_folder(nets: Path, netdsl: Any) -> None:
    code, _, err = netdsl("train", "../nets/a.net", "--data", "test")
    assert code == 2
    assert "help: `--data` names the folder of the files; `eval` uses the test images" in err


def test_the_table_of_several_labels() -> None:
    from netdsl.cli.prediction_table import format_prediction_table
    from netdsl.inference import PicturePrediction

    found = [
        PicturePrediction(Path("a,b.png"), [("y", 0.75), ("x", 0.5)], [("y", 0.75)]),
        PicturePrediction(Path("c.png"), [], error=fail("it is gone")),
    ]
    rows = ["image,predicted,p(x),p(y),error", '"a,b.png",y,0.5,0.75,', "c.png,,,,it is gone"]
    assert format_prediction_table(found, ("x", "y")).splitlines() == rows


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ((5, 784), (5, 28, 28, 1)),
        ((5, 3072), (5, 32, 32, 3)),
        ((5, 100), (5, 10, 10, 1)),
        ((5, 7), None),
    ],
)
def test_advice_on_rows_of_pixels_gives_images(
    shape: tuple[int, ...], made: tuple[int, ...] | None
) -> None:
    advice = advise_rows(shape)
    if made is None:
        assert advice is None
    else:
        assert advice is not None
        assert f"`images.reshape(-1, {', '.join(map(str, made[1:]))})`" in advice


@pytest.mark.parametrize("shape", [(32, 32, 3, 10), (28, 28, 10), (9, 28, 28, 1)])
def test_advice_on_another_number_of_images_puts_it_first(shape: tuple[int, ...]) -> None:
    advice = advise_count(shape, (10,))
    axes = re.search(r"transpose\(([\d, ]+)\)", advice)
    assert (axes is None) == (shape[0] == 9)
    if axes is not None:
        moved = np.zeros(shape, np.uint8).transpose(*map(int, axes[1].split(", ")))
        assert moved.shape == (10, *shape[:-1])
