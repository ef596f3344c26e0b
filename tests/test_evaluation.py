"""What `netdsl eval` reports: metrics by class, the confusion, and views of each image averaged."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.cli.evaluation_files import PredictionsFile
from netdsl.cli.evaluation_tables import show_classes, show_evaluation
from netdsl.data.pictures import pictures_from_paths
from netdsl.data.samples import Samples
from netdsl.errors import NetError
from netdsl.file_io import AtomicFile
from netdsl.inference import EvaluationReport, Predictor, describe_sizes
from netdsl.training.metrics.class_counts import (
    ClassCounts,
    can_count_pairs,
    check_matrix_memory,
    count_classes,
)
from netdsl.training.metrics.table import METRICS, Score
from netdsl.training.run.tally import Predictions, Tally
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.types import Array

NET = """net n {{ {body} }}
data {{ source = arrays("x.npz"), batch = 5 }}
train {{ {loss} }}
"""
BODY = "input(4x6x1); fc(3)"
CLASSES = ("ants", "bees", "wasps")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_arrays(labels: Array, names: tuple[str, ...] = CLASSES) -> Array:
    images = np.random.default_rng(4).integers(0, 255, (len(labels), 4, 6, 1), dtype=np.uint8)
    content = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
    np.savez("x.npz", classes=np.array(names), **content)
    return images


def save_weights(body: str = BODY, loss: str = "", inputs: int = 24) -> Array:
    """Random weights, which know neither left nor right."""
    weight = np.random.default_rng(0).normal(0, 0.8, (3, inputs)).astype(np.float32)
    weights = {"fc1.weight": weight, "fc1.bias": np.zeros(3, np.float32)}
    text = NET.format(body=body, loss=loss)
    checkpoint.save(Path("w.safetensors"), Checkpoint(weights, text, CLASSES, {}, {}))
    return weight


def softmax(scores: Array) -> Array:
    x = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Array = x / x.sum(axis=1, keepdims=True)
    return found


ONE_CLASS = np.arange(23) % 3
SEVERAL = (np.random.default_rng(1).random((23, 3)) < 0.4).astype(np.uint8)


def test_the_report_of_one_class_an_image(folder: Path, netdsl: Any) -> None:
    save_arrays(ONE_CLASS)
    save_weights()
    code, out, err = netdsl("eval", "w.safetensors", "--json", "--device", "reference")
    assert code == 0, err
    found = json.loads(out)
    confusion = np.array(found["confusion"])
    assert confusion.sum() == found["images"] == 23
    assert found["accuracy"] == pytest.approx(np.trace(confusion) / 23)
    assert [c["name"] for c in found["classes"]] == list(CLASSES)
    assert [c["images"] for c in found["classes"]] == confusion.sum(axis=1).tolist()
    recall = np.diagonal(confusion) / confusion.sum(axis=1)
    assert [c["recall"] for c in found["classes"]] == pytest.approx(recall)
    for name in ("precision", "recall", "f1", "roc_auc", "average_precision"):
        assert found[name] == pytest.approx(np.mean([c[name] for c in found["classes"]]))
    code, out, _ = netdsl("eval", "w.safetensors", "--device", "reference")
    assert f"means over the classes: precision {found['precision']:.2%}" in out
    assert f"wasps       7  {found['classes'][2]['precision']:>9.2%}" in out
    assert "rows: true class; columns: predicted class" in out
    assert (found["top5"], "top-5" in out) == (1, False)


@pytest.mark.parametrize("count", [2, 5, 6])
def test_top_5_is_shown_if_there_are_more_classes(count: int) -> None:
    labels = np.arange(count)
    score = Score(0.5, 0.5, 0.9, count, count_classes(labels, labels, count))
    report = EvaluationReport(score, "test", tuple(map(str, labels)), np.diag(labels))
    with redirect_stdout(io.StringIO()) as printed:
        show_evaluation(report)
    assert ("top-5 90.00%" in printed.getvalue()) == (count > 5)


def test_the_files_of_an_evaluation(folder: Path, netdsl: Any) -> None:
    """The matrix is that of --json; the rows of the images, of a folder of pictures with their
    paths, add up to it."""
    save_arrays(ONE_CLASS)
    save_weights()
    args = ("eval", "w.safetensors", "--json", "--device", "reference")
    code, out, err = netdsl(*args, "--confusion", "c.csv", "--predictions", "p.csv")
    assert code == 0, err
    confusion = json.loads(out)["confusion"]
    heading, *rows = csv.reader(Path("c.csv").read_text().splitlines())
    assert heading == ["true class", *CLASSES]
    assert rows == [[c, *map(str, row)] for c, row in zip(CLASSES, confusion, strict=True)]
    images = [*csv.DictReader(Path("p.csv").read_text().splitlines())]
    assert [row["image"] for row in images] == [str(i) for i in range(23)]
    assert [row["class"] for row in images] == [CLASSES[i] for i in ONE_CLASS]
    counts = Counter((row["class"], row["predicted"]) for row in images)
    assert [[counts[a, b] for b in CLASSES] for a in CLASSES] == confusion
    for row in images:
        shares = {c: float(row[f"p({c})"]) for c in CLASSES}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(shares, key=shares.__getitem__)
        assert float(row["p"]) == max(shares.values())
    before = Path("p.csv").read_bytes()
    assert netdsl(*args, "--predictions", "p.csv", "--data", "absent")[0] == 2
    assert netdsl(*args, "--predictions", "p.csv")[0] == 0  # its own file is written again
    assert Path("p.csv").read_bytes() == before
    Path("labels.csv").write_text("image,label\n")  # such as the table of a data set
    code, _, err = netdsl(*args, "--confusion", "labels.csv")
    assert (code, "no evaluation has written it" in err) == (2, True)
    assert Path("labels.csv").read_text() == "image,label\n"
    assert netdsl(*args, "--predictions", "a.csv", "--confusion", "a.csv")[0] == 2


def test_the_files_of_several_labels(folder: Path, netdsl: Any) -> None:
    save_arrays(SEVERAL)
    save_weights(loss="loss = bce")
    args = ("eval", "w.safetensors", "--device", "reference")
    code, _, err = netdsl(*args, "--predictions", "p.csv", "--flip")
    assert code == 0, err
    images = [*csv.DictReader(Path("p.csv").read_text().splitlines())]
    for row, labels in zip(images, SEVERAL, strict=True):
        assert row["labels"] == ";".join(c for c, has in zip(CLASSES, labels, strict=True) if has)
        likely = [c for c in CLASSES if float(row[f"p({c})"]) > 0.5]
        assert row["predicted"] == ";".join(likely)
    code, _, err = netdsl(*args, "--confusion", "c.csv")
    assert code == 2
    assert "images with several labels have no confusion matrix" in err
    assert not Path("c.csv").exists()


def test_rows_of_pictures_and_of_many_classes(folder: Path) -> None:
    """Pictures have their paths, images without a prediction empty cells, and many classes only the
    probability of the first."""
    samples = Samples(pictures_from_paths([Path("b/2.png"), Path("a/1.png")]), np.zeros(2, int))
    names_of_classes = [f"c{i}" for i in range(101)]
    shares = np.full((2, 101), np.nan, np.float32)
    shares[0] = np.eye(101)[7]
    found = Predictions(np.array([1, 0]), np.array([7, 8]), np.array([7, -1]), shares)
    with AtomicFile(Path("p.csv")) as file:
        PredictionsFile(file, names_of_classes).add(samples, found)
    assert Path("p.csv").read_text().splitlines() == [
        "image,class,predicted,p",
        "a/1.png,c7,c7,1",
        "b/2.png,c8,,",
    ]


def test_images_are_numbered_through_batches() -> None:
    """With those that are skipped, whose weight is 0."""
    found: list[Predictions] = []
    tally = Tally(3, on_predictions=found.append)
    scores = np.eye(3, dtype=np.float32)[[0, 2]]
    for weights in ([1, 0], [1, 1]):
        outputs = dict.fromkeys(("loss", "top1", "top5", "count"), np.float32(1))
        labels = np.array([0, 1])
        tally.add(labels, np.array(weights), {**outputs, "scores": scores, "probabilities": scores})
    assert [p.numbers.tolist() for p in found] == [[0], [2, 3]]
    assert [p.predicted.tolist() for p in found] == [[0], [0, 2]]


def test_a_matrix_too_wide_for_the_terminal_is_its_pairs(
    folder: Path, netdsl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_arrays(ONE_CLASS)
    save_weights()
    printed = []
    for width in ("80", "12"):
        for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": width}.items():
            monkeypatch.setenv(name, value)
        printed.append(netdsl("eval", "w.safetensors", "--device", "reference")[1])
    wide, narrow = printed
    assert "rows: true class; columns: predicted class" in wide
    assert "most often confused" not in wide
    assert "most often confused: true -> predicted" in narrow
    assert "the whole matrix: --confusion FILE.csv, or --json" in narrow


def test_the_size_of_a_confusion_matrix_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known from the number of classes alone; the report then says that there is none."""
    monkeypatch.setenv("NETDSL_MEMORY", "1GB")
    assert can_count_pairs(1000)
    with pytest.raises(NetError, match="a confusion matrix of 21,841 classes would take 15"):
        check_matrix_memory(21_841)
    names = tuple(f"c{i}" for i in range(30))
    counts = count_classes(np.arange(30), np.arange(30), 30)
    report = EvaluationReport(Score(1.0, 1.0, 1.0, 30, counts), "test", names, None)
    printed = io.StringIO()
    with redirect_stdout(printed):
        show_evaluation(report)
    assert "no confusion matrix" in printed.getvalue()
    assert "means over the classes" in printed.getvalue()


def test_the_report_of_several_labels_an_image(folder: Path, netdsl: Any) -> None:
    """There is no confusion matrix; classes of the data in another order are matched by name."""
    save_weights(loss="loss = bce")
    reports = []
    for order in ([0, 1, 2], [2, 0, 1]):
        save_arrays(SEVERAL[:, order], tuple(CLASSES[i] for i in order))
        code, out, err = netdsl("eval", "w.safetensors", "--json", "--device", "reference")
        assert code == 0, err
        reports.append(json.loads(out))
    assert reports[0] == reports[1]
    assert (reports[0]["confusion"], reports[0]["top5"]) == (None, None)
    assert [c["images"] for c in reports[0]["classes"]] == SEVERAL.sum(axis=0).tolist()
    code, out, _ = netdsl("eval", "w.safetensors", "--device", "reference")
    assert "means over the labels: precision" in out
    assert "top-5" not in out
    assert "rows:" not in out


@pytest.mark.parametrize(("loss", "labels"), [("", ONE_CLASS), ("loss = bce", SEVERAL)])
@pytest.mark.parametrize("sizes", [(), (4,), (4, 4)])
def test_flips_are_averaged_with_the_views(
    loss: str, labels: Array, sizes: tuple[int, ...], folder: Path
) -> None:
    """The same as a mean of probabilities, computed here; pictures are mirrored as the net sees
    them."""
    images, weight = save_arrays(labels), save_weights(loss=loss)
    report = Predictor(Path("w.safetensors"), open_backend("reference")).evaluate(
        None, sizes, flip=True
    )
    x = images / 255.0
    to_shares = softmax if labels is ONE_CLASS else (lambda s: 1 / (1 + np.exp(-s)))
    shares = np.mean([to_shares(v.reshape(23, -1) @ weight.T) for v in (x, x[:, :, ::-1])], axis=0)
    if labels is ONE_CLASS:
        expected = count_classes(labels, shares.argmax(axis=1), 3)
        own = shares[np.arange(23), labels]
        assert report.score.loss == pytest.approx(-np.log(own).mean(), rel=1e-5)
    else:
        found = shares > 0.5
        expected = ClassCounts(*((m > 0).sum(axis=0) for m in (found * labels, found, labels)))
    for key in ("correct", "predicted", "actual"):
        np.testing.assert_array_equal(
            getattr(report.score.counts, key), getattr(expected, key), err_msg=key
        )


def test_a_vector_has_no_mirror_image(folder: Path, netdsl: Any) -> None:
    save_weights("input(24); fc(3)")
    code, _, err = netdsl("eval", "w.safetensors", "--flip", "--device", "reference")
    assert code == 2
    assert "the input of the net is a vector of 24, which has no mirror image" in err


def test_scores_that_do_not_fit_are_left_out(
    folder: Path, netdsl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """23 images of 3 classes have 276 bytes of scores, and the images 552."""
    save_arrays(ONE_CLASS)
    save_weights()
    score = Score(0.5, 0.5, 1.0, 23, count_classes(ONE_CLASS, ONE_CLASS, 3))
    report = EvaluationReport(score, "test", CLASSES, np.diag([8, 8, 7]))
    with redirect_stdout(io.StringIO()) as printed:
        show_evaluation(report)
    assert "ROC AUC and average precision need more memory" in printed.getvalue()
    assert (report.means["roc_auc"], report.means["f1"]) == (None, 1.0)


def test_of_many_classes_the_worst_are_shown() -> None:
    n = 1000
    labels = np.repeat(np.arange(n), 2)[:-2]  # of the last class there are no images
    predicted = labels.copy()
    wrong = [17, 900, 4]
    predicted[np.isin(labels, wrong)] += 1
    score = Score(0.5, 0.5, 0.9, len(labels), count_classes(labels, predicted, n))
    names = tuple(f"class{i}" for i in range(n))
    report = EvaluationReport(score, "test", names, np.zeros((n, n), np.int64))
    with redirect_stdout(io.StringIO()) as printed:
        show_classes(report)
    lines = printed.getvalue().splitlines()
    assert "the 10 classes with the lowest F1, of 999" in lines
    assert len(lines) == 13
    assert {line.split()[0] for line in lines[3:6]} == {f"class{i}" for i in wrong}
    assert len(lines[3].split()) == 2 + sum(m.measure_classes is not None for m in METRICS.values())


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [((), ""), ((256,), ""), ((448,), ""), ((512,), "512"), ((512, 224, 600), "512 and 600")],
)
def test_sizes_of_which_the_net_sees_little_are_named(sizes: tuple[int, ...], shown: str) -> None:
    note = describe_sizes(sizes, (224, 224, 3))
    assert note == (
        shown and f"of pictures of {shown} pixels, the net sees only the middle, 224x224 pixels"
    )
