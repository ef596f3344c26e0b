"""Several labels per image, from the data to the prediction: command, Python, tables, errors."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netdsl as package
from netdsl.data.arrays import dataset_from_arrays
from netdsl.data.inventory import make_inventory
from netdsl.data.labels import MAX_LABEL, name_classes
from netdsl.data.pictures import write_picture
from netdsl.data.samples import Samples, evaluation_batches, training_batches
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.job import Job, prepare_job
from netdsl.types import Array
from tests.conftest import ROOT
from tests.test_bad_pictures import cut

PAGE = (ROOT / "docs" / "training.md").read_text().partition("## Several labels per image")[2]
REFERENCE = ("--device", "reference")
NAMES = ("even", "prime", "square", "closed loop", "straight line")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and the run of the page."""
    found = tmp_path_factory.mktemp("labels")
    example = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert example
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        exec(example[1], {})
        path = ROOT / "models" / "attributes.net"
        result = package.train(path, out=found / "run", device="reference")
        assert result.ok
        assert result.metrics["test_top5"] is None
    return found


@pytest.fixture(scope="module")
def images(folder: Path) -> tuple[Array, Array]:
    """The pictures and labels of the test set."""
    with np.load(folder / "digit_attributes.npz") as found:
        return found["test_images"], found["test_labels"]


def test_the_inventory_is_that_of_the_page(folder: Path, netdsl: Any) -> None:
    path = str(ROOT / "models" / "attributes.net")
    code, out, _ = netdsl("train", path, "--dry-run", "--data", str(folder))
    assert code == 0
    shown = re.search(r"^```\n(data: .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown
    name = "digit_attributes.npz"  # with --data, the path where it is
    assert shown[1].replace(name, str(folder / name)) in out
    _, out, _ = netdsl("train", path, "--dry-run", "--data", str(folder), "--json")
    found = json.loads(out)["main"]["data"]
    assert found["several_labels"]
    assert found["images"] == {"to learn from": 1294, "to validate with": 144, "to test with": 359}
    assert found["counts"]["to learn from"] == [646, 506, 537, 509, 400]


def test_python_gives_labels(folder: Path, images: tuple[Array, Array]) -> None:
    net = package.load(folder / "run", device="reference")
    assert net.is_multi_label
    assert net.classes == NAMES
    pictures, labels = images[0][:64], images[1][:64]
    probabilities = net.probabilities(pictures)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-net(pictures))), atol=1e-6)
    assert ((probabilities > 0.5) == labels).mean() > 0.95
    for p, found in zip(probabilities, net.predict(pictures), strict=True):
        assert set(found.labels) == {name for name, x in zip(NAMES, p, strict=True) if x > 0.5}
        assert list(found.labels) == [name for name, x in found.top() if x > 0.5]
        assert (found.label, found.probability) == (NAMES[p.argmax()], p.max())
    same = pickle.loads(pickle.dumps(net))
    net.save(folder / "saved.safetensors")
    again = package.load(folder / "saved.safetensors", device="reference")
    for other in (same, again):
        assert other.is_multi_label
        np.testing.assert_array_equal(other.probabilities(pictures), probabilities)


def test_predict_prints_labels_first(
    folder: Path, images: tuple[Array, Array], netdsl: Any, tmp_path: Path
) -> None:
    write_picture(tmp_path / "x.png", images[0][0][..., None])
    found = package.load(folder / "run", device="reference").predict(tmp_path / "x.png")[0]
    command = ("predict", str(folder / "run"), str(tmp_path / "x.png"), *REFERENCE)
    _, out, _ = netdsl(*command)
    has, _, others = out.strip().partition("x.png: ")[2].partition("; below 50%: ")
    assert re.findall(r"([a-z][a-z ]*) [\d.]+%", has) == list(found.labels)
    assert len(others.split(", ")) == 5 - len(found.labels)
    _, out, _ = netdsl(*command, "--json")
    (said,) = json.loads(out)
    assert said["labels"] == list(found.labels)
    assert [name for name, _ in said["top"]] == [name for name, _ in found.top()]


def test_eval_and_export_are_of_labels(folder: Path, netdsl: Any) -> None:
    code, out, _ = netdsl("eval", str(folder / "run"), "--data", str(folder), *REFERENCE)
    assert code == 0
    assert all(name in out for name in NAMES)
    code, out, _ = netdsl("export", str(folder / "run"), "-o", "x.onnx", *REFERENCE)
    assert code == 0
    assert "the sigmoid of each score is the independent probability of its label" in out
    rebuilt = ("-o", "y.net", "--weights", "y.safetensors", "--rebuild")
    code, out, _ = netdsl("import", "x.onnx", *rebuilt)
    assert (code, "its labels are independent" in out) == (0, True)
    images = np.load(folder / "digit_attributes.npz")["test_images"][:4]
    before, after = (package.load(path) for path in (folder / "run", "y.safetensors"))
    assert after.is_multi_label
    np.testing.assert_allclose(after.probabilities(images), before.probabilities(images), atol=1e-5)


NET = """
net tiny(classes=3) { input(8x8x3) -> conv(4, 3x3, stride=2) -> relu -> fc(classes) }
data { source = csv("labels.csv"), batch = 4, validation = 4 }
train { loss = bce, optimizer = adam(lr=0.01), epochs = 1 }
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in a table, each with the colours in it."""
    found, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    rows = ["image,labels"]
    for i in range(24):
        has = rng.random(3) < 0.5
        picture = np.where(has, rng.integers(150, 256, (8, 8, 3)), 20).astype(np.uint8)
        write_picture(found / "pictures" / f"{i}.png", picture)
        names = [c for c, h in zip(("red", "green", "blue"), has, strict=True) if h]
        rows.append(f"pictures/{i}.png,{' '.join(names)}")
    (found / "labels.csv").write_text("\n".join(rows))
    (found / "tiny.net").write_text(NET)
    (found / "other").mkdir()
    (found / "other" / "labels.csv").write_text("image,labels\n0.png,red\n1.png,blue\n")
    for i in (0, 1):
        write_picture(found / "other" / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    return found


def test_a_table_is_trained_on_and_evaluated(table: Path, netdsl: Any) -> None:
    run = table / "run"
    code, _, err = netdsl(
        *("train", str(table / "tiny.net"), "--data", str(table), "-o", str(run), *REFERENCE)
    )
    assert code == 0, err
    assert "3 labels, several per image: blue, green, red" in err
    assert "to validate with: 4, held out" in err
    code, out, _ = netdsl("eval", str(run), "--data", str(table), *REFERENCE)
    assert code == 0
    assert "4 validation images" in out
    code, out, err = netdsl("eval", str(run), "--data", str(table / "other"), "--json", *REFERENCE)
    assert code == 0, err
    found = {x["name"]: x["images"] for x in json.loads(out)["classes"]}
    assert found == {"blue": 1, "green": 0, "red": 1}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["train.loss=cross_entropy"], "`loss = bce` learns each label independently"),
        (["train.loss=focal"], "`focal` is for one class per image"),
        (["train.loss=mse"], "use `loss = bce`, or end the net with `sigmoid`"),
        (["classes=4"], "the data set has 3 classes, but the net gives 4 scores"),
        (["data.sampling=balanced"], "`sampling = balanced` needs one class per image"),
        (["data.validation=24"], "24 samples cannot be held out of 24"),
    ],
)
def test_what_does_not_suit_several_labels_is_refused(
    table: Path, netdsl: Any, settings: list[str], complaint: str
) -> None:
    options = [x for text in settings for x in ("--set", text)]
    place = (str(table / "tiny.net"), "--data", str(table))
    code, _, err = netdsl("train", *place, "--dry-run", *options)
    assert code == 2
    assert complaint in err


def test_a_label_lost_with_its_pictures_ends_the_run(tmp_path: Path) -> None:
    """Others than one that no picture has had."""
    rows = ["image,common,rare,never"]
    for i in range(12):
        write_picture(tmp_path / f"{i}.png", np.full((8, 8, 3), 20 * i, np.uint8))
        rows.append(f"{i}.png,{i % 2},{int(i == 0)},0")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "tiny.net").write_text(NET)

    def train(name: str) -> package.TrainingResult:
        skip = {"data.on_bad_picture": "skip"}
        place = tmp_path / "tiny.net"
        return package.train(
            place, data=tmp_path, set=skip, out=tmp_path / name, device="reference"
        )

    cut(tmp_path / "1.png")
    assert train("a").metrics["epoch"] == 1
    cut(tmp_path / "0.png")
    with pytest.raises(NetError, match="none of the training pictures of `rare` can be used"):
        train("b")


def job(labels: Any, **others: Any) -> Job:
    pictures = np.zeros((len(labels), 8, 8, 3), np.uint8)
    data = dataset_from_arrays({"x_train": pictures, "y_train": labels, **others})
    text = NET.replace('source = csv("labels.csv"), ', "")
    return prepare_job(build_program(parse(text)), None, data)


LABELS = np.random.default_rng(0).random((20, 3)) < 0.5


@pytest.mark.parametrize(
    ("labels", "others", "complaint"),
    [
        (np.where(LABELS, 2, 0), {}, r"`y_train` contains 2 for image \d+ and class \d"),
        (np.where(LABELS, np.nan, 0), {}, r"`y_train` contains nan for .*labels > 0.5"),
        (LABELS * 0.3, {}, r"`y_train` contains 0.3 .*labels.argmax"),
        (LABELS[:, :1], {}, r"20x1 bool.*`y_train.ravel\(\)` has one axis"),
        (np.ones((20, 3)), {}, "all 20 training images have the same labels, 0, 1, 2"),
        (np.zeros((20, 3)), {}, "all 20 training images have no label"),
        (LABELS, {"classes": ["a", "b"]}, "3 columns, but there are 2 `classes`"),
        (LABELS.astype(str), {}, r"20x3 .*MultiLabelBinarizer"),
        ([["a"], ["a", "b"]] * 10, {}, "MultiLabelBinarizer"),
        (
            LABELS,
            {"x_val": np.zeros((2, 8, 8, 3), np.uint8), "y_val": [0, 1]},
            "`y_val` has one class per image, but `y_train` has several labels",
        ),
        (
            LABELS,
            {"x_val": np.zeros((2, 8, 8, 3), np.uint8), "y_val": np.eye(2)},
            "`y_train` has 3 columns and `y_val` 2",
        ),
    ],
)
def test_arrays_that_are_no_labels_are_refused(
    labels: Any, others: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(NetError, match=f"(?s){complaint}"):
        job(labels, **others)


def test_a_run_cannot_have_more_classes_than_a_checkpoint_holds() -> None:
    with pytest.raises(NetError, match="there can be at most 100,000 classes"):
        name_classes({"labels": np.zeros((1, 2 + MAX_LABEL), np.uint8)})


def test_a_label_without_images_is_said_and_learned() -> None:
    labels = np.concatenate([LABELS, np.zeros((20, 1), bool)], axis=1)[:, [0, 1, 3]]
    assert "  no images to learn from: c" in job(labels, classes=["a", "b", "c"]).inventory.lines()


def test_one_label_each_is_said() -> None:
    classes = np.arange(20) % 3
    lines = "\n".join(job(np.eye(3, dtype=int)[classes]).inventory.lines())
    assert "every image has exactly one label: `labels.argmax(axis=1)`" in lines
    for several in (LABELS, np.eye(3)[classes] * LABELS, np.maximum(np.eye(3)[classes], LABELS)):
        assert "exactly one" not in "\n".join(job(several).inventory.lines())


def test_names_in_a_list_show_where_they_end() -> None:
    images = np.zeros((20, 4), np.float32)
    data = dataset_from_arrays((images, np.arange(20) % 3))
    data = replace(data, classes=("bee", "red, ant", "wasp "))
    text = "\n".join(make_inventory("x", data, data.train, data.train.take(np.arange(0))).lines())
    assert 'classes: bee, "red, ant", "wasp "\n' in text
    assert '(bee 7, "red, ant" 7, "wasp " 6)' in text
    one = dataset_from_arrays((images, np.eye(3, dtype=np.uint8)[np.arange(20) % 3]))
    text = "\n".join(make_inventory("x", one, one.train, one.train.take(np.arange(0))).lines())
    assert "20, 1 label per image (" in text


def test_many_labels_are_summed_up() -> None:
    labels = (np.random.default_rng(1).random((30, 12)) < 0.5).astype(np.uint8)
    labels[:, 4] = 0
    labels[:2, 4] = 1
    data = dataset_from_arrays((np.zeros((30, 4), np.float32), labels))
    text = "\n".join(make_inventory("x", data, data.train, data.train.take(np.arange(0))).lines())
    most = labels.sum(axis=0).max()
    assert f"labels per image (2, of 4, to {most} of each label)" in text


def test_batches_have_the_labels_as_targets() -> None:
    whole = Samples(np.arange(20), LABELS.astype(np.uint8))
    for batch in (next(training_batches(whole, 8, 1, 0)), *evaluation_batches(whole, 8)):
        assert batch.targets is not None
        assert batch.targets.dtype == np.float32
        np.testing.assert_array_equal(batch.targets, LABELS[batch.images])
        np.testing.assert_array_equal(batch.labels, LABELS[batch.images])
