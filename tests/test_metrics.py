"""Metrics: equal to scikit-learn's over drawn cases, and what a recipe chooses its weights by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

import netdsl
from netdsl.errors import NetError
from netdsl.language.format import format_file
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ops.loss import predict_classes
from netdsl.training.metrics.class_counts import count_classes, count_labels
from netdsl.training.metrics.ranking import rank_scores
from netdsl.training.metrics.table import METRIC_NAMES, METRICS, Score, measured_names
from netdsl.training.recipe.best import Criterion, read_metric
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.recipe.resolved_recipe import resolve_file
from netdsl.training.run.callbacks import format_end, format_epoch
from netdsl.training.run.tally import Tally
from netdsl.training.store.progress import Progress
from netdsl.types import Array
from netdsl.values import Argument, Call

CLASSES = 4
TIED = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Array, Array]:
    """Classes of images and their predictions; some classes are drawn rarely, some images have no
    prediction."""
    n = draw(st.integers(1, 12))
    most = draw(st.integers(0, CLASSES - 1))
    labels = draw(arrays(np.int32, n, elements=st.integers(0, most)))
    predicted = draw(arrays(np.int64, n, elements=st.integers(-1, CLASSES - 1)))
    return labels, predicted


@settings(max_examples=40)
@given(predictions())
def test_counts_of_classes_give_what_scikit_learn_gives(case: tuple[Array, Array]) -> None:
    labels, predicted = case
    counts = count_classes(labels, predicted, CLASSES)
    found = np.stack([counts.precision, counts.recall, counts.f1])
    known = {"labels": range(CLASSES), "zero_division": 0}
    *expected, images = sk.precision_recall_fscore_support(labels, predicted, **known)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-15)
    np.testing.assert_array_equal(counts.actual, images)
    seen = sorted({*labels.tolist(), *predicted.tolist()} - {-1})
    known = {"labels": seen, "zero_division": 0, "average": "macro"}
    *expected, _ = sk.precision_recall_fscore_support(labels, predicted, **known)
    np.testing.assert_allclose([counts.mean(row) for row in found], expected, rtol=1e-14)
    if len(seen) > 1 and set(predicted.tolist()) <= set(labels.tolist()):
        balanced = sk.balanced_accuracy_score(labels, predicted)
        assert counts.mean(counts.recall) == pytest.approx(balanced)


@settings(max_examples=30)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(*[arrays(np.bool_, (n, 3), elements=st.booleans())] * 2)
    )
)
def test_counts_of_several_labels_give_what_scikit_learn_gives(case: tuple[Array, Array]) -> None:
    indicators, predicted = case
    counts = count_labels(indicators, predicted)
    known = {"zero_division": 0}
    *expected, _ = sk.precision_recall_fscore_support(indicators, predicted, **known)
    np.testing.assert_allclose(
        [counts.precision, counts.recall, counts.f1], np.stack(expected), rtol=1e-15
    )


@settings(max_examples=50)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            arrays(np.bool_, (n, 3), elements=st.booleans()),
            arrays(np.float32, (n, 3), elements=TIED | st.floats(-9, 9, width=32)),
        )
    )
)
def test_areas_are_those_of_scikit_learn(case: tuple[Array, Array]) -> None:
    """With ties; a class that no image has, or for the AUC every image, has no value."""
    is_member, scores = case
    found = rank_scores(is_member, scores)
    for i, (y, x) in enumerate(zip(is_member.T, scores.T, strict=True)):
        auc = sk.roc_auc_score(y, x) if 0 < y.sum() < len(y) else np.nan
        precision = sk.average_precision_score(y, x) if y.any() else np.nan
        np.testing.assert_allclose(found.roc_auc[i], auc, rtol=1e-12)
        np.testing.assert_allclose(found.average_precision[i], precision, rtol=1e-12)


def test_the_means_of_areas_leave_out_classes_without_a_value() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 3] * 8)
    shares = rng.dirichlet(np.ones(CLASSES), len(labels)).astype(np.float32)
    counts = count_classes(labels, shares.argmax(axis=1), CLASSES)
    is_member = labels[:, None] == np.arange(CLASSES)
    score = Score(0.5, 0.5, 1.0, len(labels), counts, rank_scores(is_member, shares))
    present = [0, 1, 3]
    auc = np.mean([sk.roc_auc_score(labels == i, shares[:, i]) for i in present])
    assert METRICS["roc_auc"].measure(score) == pytest.approx(auc)
    precision = sk.average_precision_score(
        is_member[:, present], shares[:, present], average="macro"
    )
    assert METRICS["average_precision"].measure(score) == pytest.approx(precision)
    by_class = METRIC_NAMES["val_roc_auc"]
    classes = ("a", "b", "c", "d")
    assert replace(by_class, class_name="c").measure(score, classes) is None
    assert replace(by_class, class_name="d").measure(score, classes) is not None
    shares[5] = np.nan
    unknown = replace(score, ranking=rank_scores(is_member, shares))
    for name in ("roc_auc", "average_precision"):
        assert METRICS[name].measure(unknown) is None
        assert METRICS[name].measure(replace(score, ranking=None)) is None


# ---- sums over batches


def outputs(labels: Array, weights: Array, scores: Array) -> dict[str, Array]:
    """What the evaluation of a batch computes, as far as a tally reads it."""
    hits = predict_classes(scores) == labels
    sums = {"loss": weights.sum() * 0.5, "top1": hits @ weights, "top5": weights.sum()}
    return {**sums, "count": weights.sum(), "scores": scores, "probabilities": scores}


@settings(max_examples=40)
@given(st.data())
def test_a_tally_does_not_depend_on_the_batches(data: st.DataObject) -> None:
    """Of images that are padding nothing is counted, of a NaN no class."""
    n = data.draw(st.integers(1, 10))
    labels = data.draw(arrays(np.int32, n, elements=st.integers(0, CLASSES - 1)))
    scores = data.draw(arrays(np.float32, (n, CLASSES), elements=TIED | st.just(np.nan)))
    weights = data.draw(arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0])))
    weights[data.draw(st.integers(0, n - 1))] = 1
    tally = Tally(CLASSES, keeps_scores=True, has_matrix=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
        part = slice(start, stop)
        tally.add(labels[part], weights[part], outputs(labels[part], weights[part], scores[part]))
    score, is_counted = tally.score(), weights > 0
    predicted = predict_classes(scores)[is_counted]
    assert score.images == is_counted.sum()
    assert score.accuracy == pytest.approx((predicted == labels[is_counted]).mean())
    confusion = sk.confusion_matrix(labels[is_counted], predicted, labels=[*range(CLASSES), -1])[
        :-1, :-1
    ]
    assert tally.confusion is not None
    np.testing.assert_array_equal(tally.confusion, confusion)
    np.testing.assert_array_equal(score.counts.correct, np.diagonal(confusion))
    np.testing.assert_array_equal(score.counts.predicted, confusion.sum(axis=0))
    np.testing.assert_array_equal(
        score.counts.actual, np.bincount(labels[is_counted], minlength=CLASSES)
    )
    is_member = labels[is_counted, None] == np.arange(CLASSES)
    expected = rank_scores(is_member, scores[is_counted])
    assert score.ranking is not None
    np.testing.assert_array_equal(score.ranking.roc_auc, expected.roc_auc)


def test_a_tally_of_nothing_says_so() -> None:
    tally, nothing = Tally(2), np.zeros(3, np.float32)
    labels, scores = np.zeros(3, np.int32), np.zeros((3, 2), np.float32)
    tally.add(labels, nothing, outputs(labels, nothing, scores))
    with pytest.raises(NetError, match="none of the images"):
        tally.score()


# ---- what a run measures

SINGLE = """net n { input(8x8x1); conv(4, 3x3) -> relu -> fc(3) }
data { batch = 16 }
train { optimizer = adam(lr=0.01), epochs = 2, best = max(val_roc_auc("b"))
  expect test_roc_auc > 2, expect val_f1("c") >= 0, expect test_average_precision("a") >= 0 }
"""
SEVERAL = SINGLE.replace("epochs = 2", "epochs = 2, loss = bce")


def pictures(n: int, seed: int) -> tuple[Array, Array]:
    """Noise, brighter where it has a label: in another third of the rows for each."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < [0.5, 0.3, 0.15]).astype(np.uint8)
    images = rng.integers(0, 120, (n, 8, 8), dtype=np.uint8)
    for i in range(3):
        images[:, 3 * i : 3 * i + 2] += labels[:, i, None, None] * 60
    return images, labels


@pytest.mark.parametrize("text", [SINGLE, SEVERAL], ids=["one class", "several labels"])
def test_a_run_measures_what_scikit_learn_measures(text: str, tmp_path: Path) -> None:
    """Of the probabilities that its net predicts: on the validation and on the test images."""
    (tmp_path / "a.net").write_text(text)
    sets = {part: pictures(n, i) for i, (part, n) in enumerate({"train": 96, "val": 33}.items())}
    sets["test"] = pictures(40, 9)
    if text == SINGLE:
        sets = {part: (x, y.argmax(axis=1)) for part, (x, y) in sets.items()}
    data: dict[str, Any] = {"classes": ["a", "b", "c"]}
    for part, (x, y) in sets.items():
        data |= {f"x_{part}": x, f"y_{part}": y}
    result = netdsl.train(tmp_path / "a.net", data=data, out=tmp_path / "run", device="reference")
    requested = resolve_recipe(build_program(parse(text))).requested_metrics
    for part in ("val", "test"):
        x, y = sets[part]
        shares = result.net.probabilities(x)
        names = measured_names(part, requested)
        expected = {str(n): by_scikit_learn(n.metric.name, n.class_name, y, shares) for n in names}
        compared = {k: v for k, v in expected.items() if v is not None}
        assert {k: result.metrics[k] for k in compared} == pytest.approx(compared)
        assert {'val_roc_auc("b")', "test_roc_auc"} & set(compared)
    assert [x.ok for x in result.expectations] == [False, True, True]
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert '"val_roc_auc(\\"b\\")"' in last
    assert "average_precision" not in last


def by_scikit_learn(metric: str, class_name: str | None, y: Array, shares: Array) -> float | None:
    """A metric of probabilities; None if scikit-learn has none of that name."""
    is_member = y > 0 if y.ndim == 2 else y[:, None] == np.arange(3)
    predicted = shares > 0.5 if y.ndim == 2 else shares.argmax(axis=1)
    which = slice(None) if class_name is None else slice("abc".index(class_name), None)
    if metric in ("roc_auc", "average_precision"):
        function = sk.roc_auc_score if metric == "roc_auc" else sk.average_precision_score
        found = function(is_member, shares, average=None)[which]
    elif metric in ("precision", "recall", "f1"):
        function = getattr(sk, f"{metric}_score")
        found = function(y, predicted, average=None, zero_division=0)[which]
    elif metric == "accuracy":
        return float(sk.accuracy_score(y, predicted))
    else:
        return None
    return float(found.mean() if class_name is None else found[0])


# ---- what the best weights are chosen by

NET = "net n { input(8x8x1); fc(10) }\ndata { source = digits }\n"


def recipe(entries: str) -> Recipe:
    return resolve_recipe(build_program(parse(f"{NET}train {{ {entries} }}")))


def criterion(text: str) -> Criterion:
    found = recipe(f"best = {text}").best
    assert found is not None
    return found


def epochs(**values: list[float | None]) -> Progress:
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    common: Mapping[str, Any] = {"train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}
    history = tuple({**common, "epoch": i, **row} for i, row in enumerate(rows, 1))
    return Progress(epoch=len(history), history=history)


@pytest.mark.parametrize(
    ("best", "history", "epoch"),
    [
        ("max(val_f1)", {"val_f1": [0.2, 0.4, 0.3]}, 2),
        ("min(val_f1)", {"val_f1": [0.2, 0.4, 0.1]}, 3),
        ("min(val_loss)", {"val_loss": [0.2, 0.4, 0.1]}, 3),
        ("max(val_loss)", {"val_loss": [0.2, 0.4, 0.1]}, 2),
        # of equal ones the smaller loss, then the first
        ("max(val_f1)", {"val_f1": [0.4, 0.4, 0.3], "val_loss": [2, 1, 0]}, 2),
        ("max(val_f1)", {"val_f1": [0.4, 0.4]}, 1),
        # one without a value is the worst
        ("max(val_roc_auc)", {"val_roc_auc": [None, 0.1]}, 2),
        ("min(val_roc_auc)", {"val_roc_auc": [None, 0.1, float("nan")]}, 2),
        ('max(val_f1("8"))', {'val_f1("8")': ["much", 0.1, []]}, 2),
        ('max(val_recall("8"))', {'val_recall("8")': [0.1, 0.9], "val_recall": [0.9, 0.1]}, 2),
    ],
)
def test_the_best_epoch_by_a_metric(best: str, history: dict[str, Any], epoch: int) -> None:
    assert epochs(**history).best_epoch(criterion(best)) == epoch


def test_patience_waits_for_the_metric_of_best() -> None:
    progress = epochs(val_f1=[0.5, 0.4, 0.3], val_accuracy=[0.1, 0.2, 0.3])
    waiting = recipe("epochs = 9, patience = 2, best = max(val_f1)")
    assert progress.is_finished(waiting)
    assert not progress.is_finished(replace(waiting, best=None))
    assert format_end(progress, waiting) == (
        "best epoch 1: val_f1 50.00%; the run ended after 3 of 9 epochs: 2 without a better one "
        "(patience = 2)"
    )
    assert format_end(progress, replace(waiting, best=None)) == (
        "best epoch 3: val_accuracy 30.00%; the run ended after 3 of 9 epochs"
    )
    assert format_end(progress, recipe("epochs = 3, best = min(val_loss)")) == (
        "best epoch 1: val_loss 1.0000"
    )
    metrics = {**progress.history[0], "train_accuracy": 0.25, "seconds": 1}
    line = format_epoch({**metrics, "images_per_second": 9}, waiting)
    assert line == (
        "epoch 1/9  loss 1.0000  accuracy 25.00%  val loss 1.0000  val accuracy 10.00%  "
        "val F1 50.00%  9 images/s  1.0 s"
    )
    assert format_epoch({**metrics, "images_per_second": None}, waiting).endswith("50.00%  1.0 s")


@settings(max_examples=12)
@given(
    st.sampled_from(["max", "min"]),
    st.sampled_from([n for n in METRIC_NAMES.values() if n.part == "val"]),
    st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9)),
)
def test_best_is_read_as_it_is_written(direction: str, name: Any, of_class: str | None) -> None:
    if name.metric.measure_classes is not None:
        name = replace(name, class_name=of_class)
    chosen = Criterion(direction, name)
    program = build_program(parse(f"{NET}train {{ best = {chosen} }}"))
    assert resolve_recipe(program).best == chosen
    text = format_file(resolve_file(program, None))
    assert resolve_recipe(build_program(parse(text))).best == chosen
    assert format_file(resolve_file(build_program(parse(text)), None)) == text


def test_max_and_min_still_compute() -> None:
    assert recipe("epochs = max(2, min([7, 9]))").epochs == 7
    with pytest.raises(NetError, match="must be an integer"):
        recipe("epochs = max(batch)")
    with pytest.raises(NetError, match="a metric such as"):
        read_metric(Call("max", (Argument(None, 3),)).arguments[0].value)


def test_a_metric_of_several_classes_needs_one_label(tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(SEVERAL.replace('val_roc_auc("b")', "val_top5"))
    x, y = pictures(32, 0)
    data = {"x_train": x, "y_train": y, "classes": ["a", "b", "c"]}
    with pytest.raises(NetError, match="`val_top5` is not defined for images with several labels"):
        netdsl.train(tmp_path / "a.net", data=data, out=tmp_path / "run", device="reference")


def test_scores_that_do_not_fit_are_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the limit is theirs: 20 held-out images have 800 bytes of scores."""
    text = "net n { input(8x8x1); fc(10) }\ndata { validation = 20 }\ntrain { epochs = 1 }"
    (tmp_path / "a.net").write_text(text)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 255, (200, 8, 8), dtype=np.uint8), np.arange(200) % 10
    monkeypatch.setenv("NETDSL_MEMORY", "3000")
    chosen = {"train.best": "max(val_roc_auc)"}
    with pytest.raises(NetError, match="scores of 20 images for 10 classes would take 800 B"):
        netdsl.train(
            tmp_path / "a.net", data=data, set=chosen, out=tmp_path / "run", device="reference"
        )
    assert not (tmp_path / "run").exists()


def test_a_started_run_keeps_its_best(tmp_path: Path) -> None:
    """Weights that another metric would have chosen are gone."""
    (tmp_path / "a.net").write_text(f"{NET}train {{ epochs = 1, best = min(val_f1) }}")
    run = tmp_path / "run"
    netdsl.train(tmp_path / "a.net", out=run, device="reference")
    with pytest.raises(NetError, match=r"`train\.best` cannot be changed"):
        netdsl.train(resume=run, set={"train.best": "max(val_f1)"}, device="reference")
    more = netdsl.train(resume=run, set={"train.epochs": 3}, device="reference")
    values = [m["val_f1"] for m in more.history]
    assert more.metrics["best_epoch"] == values.index(min(values)) + 1
    assert more.net.metrics["val_f1"] == min(values)


def test_a_stage_hands_on_its_best_weights(tmp_path: Path) -> None:
    """Those of the epoch with the lowest F1, as it says: the next stage begins with them."""
    text = f"""{NET}train {{ optimizer = sgd(lr=1), epochs = 3, best = min(val_f1) }}
train next {{ after = first, optimizer = sgd(lr=0), best = none, epochs = 1 }}
train first {{ }}
"""
    (tmp_path / "a.net").write_text(text)
    result = netdsl.train(f"{tmp_path}/a.net:next", out=tmp_path / "run", device="reference")
    before = netdsl.load(tmp_path / "run" / "first").metrics
    lines = (tmp_path / "run" / "first" / "metrics.jsonl").read_text().splitlines()[:3]
    assert before["val_f1"] == min(json.loads(line)["val_f1"] for line in lines)
    assert result.metrics["val_f1"] == before["val_f1"]
