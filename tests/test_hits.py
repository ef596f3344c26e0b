"""What counts as right: one rule for accuracy, top-k and the confusion matrix, whatever the scores;
and one loss, of however many views of an image."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from netdsl.backends import open_backend
from netdsl.cli.evaluation_tables import show_confusion
from netdsl.data import sources
from netdsl.data.samples import training_batches
from netdsl.inference import EvaluationReport, Predictor
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ops import OPS
from netdsl.ops.example_values import draw_operand
from netdsl.ops.loss import rank_classes
from netdsl.ops.op import Operand
from netdsl.training.job import prepare_job
from netdsl.training.metrics.class_counts import empty_counts
from netdsl.training.metrics.table import Score
from netdsl.training.recipe.losses import LOSSES, Objective
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.run.overfit import overfit
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.types import Array, TensorType

TIED = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 1e-30, np.inf, -np.inf, np.nan])
SCORES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=TIED)


def is_hit(scores: Array, label: int, k: int) -> bool:
    """The rule, word by word."""
    if any(s != s for s in scores):
        return False
    own = scores[label]
    greater = sum(s > own for s in scores)
    return int(greater) + sum(s == own for s in scores[:label]) < k


@given(SCORES, st.integers(1, 6))
def test_the_operator_and_the_order_follow_the_rule(scores: Array, k: int) -> None:
    order = rank_classes(scores)
    for label in range(scores.shape[1]):
        labels = np.full(len(scores), label, np.int32)
        expected = [is_hit(row, label, k) for row in scores]
        assert OPS["top_hit"].reference(np, scores, labels, k=k).tolist() == expected
        assert (order[:, :k] == label).any(axis=1).tolist() == expected


def test_drawn_scores_hold_ties_and_nans_beside_plain_rows() -> None:
    rows = draw_operand(Operand(TensorType((200, 4), "float64"), "ties"), np.random.default_rng(0))
    odd = ~np.isfinite(rows).all(axis=1)
    assert 50 < odd.sum() < 150
    assert np.isnan(rows).any()
    assert np.isinf(rows).any()
    tied = [len(set(row)) < 4 for row in rows[~odd]]
    assert np.mean(tied) > 0.9


# ---- several views of an image


def objective(loss: str) -> Objective:
    text = "net a { input(8x8x1); fc(10) }\ndata { source = digits }\ntrain { loss = %s }"
    return resolve_recipe(build_program(parse(text % loss))).loss


OBJECTIVES = (
    *LOSSES,
    "cross_entropy(smoothing=0.2)",
    "[(mse, 2), (cross_entropy(smoothing=0.1), 0.5)]",
)
FINITE = st.floats(-1e4, 1e4, width=32)
ANY = st.one_of(TIED, FINITE, st.floats(width=32))


@pytest.mark.parametrize("loss", OBJECTIVES)
@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 4)), elements=ANY))
def test_equal_views_have_their_own_scores(loss: str, scores: Array) -> None:
    for many in (1, 2, 3, 5):
        found = objective(loss).average_scores([scores] * many)
        assert found.dtype == scores.dtype
        np.testing.assert_array_equal(found, scores)


def probabilities(scores: Array, function: str = "softmax") -> Array:
    found: Array = OPS[function].reference(np, np.asarray(scores, np.float64))
    return found


@pytest.mark.parametrize("loss", OBJECTIVES)
@given(arrays(np.float64, (3, 2, 4), elements=st.floats(-900, 900)))
def test_different_views_are_averaged_as_suits_the_loss(loss: str, views: Array) -> None:
    found, function = objective(loss).average_scores(list(views)), objective(loss).probabilities
    if function is None:
        np.testing.assert_allclose(found, views.mean(axis=0), rtol=1e-12, atol=1e-12)
        return
    mean = np.mean([probabilities(v, function) for v in views], axis=0)
    tiny = 1e-300 if function == "softmax" else 1e-15
    np.testing.assert_allclose(probabilities(found, function), mean, rtol=1e-9, atol=tiny)


# ---- trained weights

NET = """net a {
  input(8x8x1)
  %s
}
data { source = digits, batch = 7 }
train { loss = %s }
"""


def trained(
    path: Path, body: str, loss: str, weights: Mapping[str, Array], device: str
) -> Predictor:
    """A checkpoint of a net on the digits with these weights."""
    classes = tuple(str(i) for i in range(10))
    checkpoint.save(path, Checkpoint(weights, NET % (body, loss), classes, {}, {}))
    return Predictor(path, open_backend(device))


def linear(weight: Array, bias: Sequence[float] | float = 0.0) -> dict[str, Array]:
    offset = np.broadcast_to(np.asarray(bias, np.float32), 10).copy()
    return {"fc1.weight": np.asarray(weight, np.float32), "fc1.bias": offset}


def drawn(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((10, 64)).astype(np.float32)


def partly(value: float) -> Array:
    """Weights of which one, to class 3 from a pixel that is often 0, is not finite."""
    weight = drawn()
    weight[3, 12] = value
    return weight


CASES = {
    "zeros": ("fc(10)", linear(np.zeros((10, 64)))),
    "dead": ("fc(10) -> relu", linear(drawn(), -1e6)),
    "partly dead": ("fc(10) -> relu", linear(drawn(), -3.0)),
    "saturated": ("fc(10) -> tanh", linear(100 * drawn())),
    "softmax ties": ("fc(10)", linear(1e-12 * drawn())),
    "softmax underflows": ("fc(10)", linear(1e4 * drawn())),
    "all NaN": ("fc(10)", linear(drawn(), [0.0] * 9 + [np.nan])),
    "some NaN": ("fc(10)", linear(partly(np.inf))),
    "infinite": ("fc(10)", linear(drawn(), [0.0, np.inf] * 5)),
    "side output": (
        "output aux(weight=0.3): fc(10)\n fc(10)",
        linear(drawn()) | {f"aux.{k}": v for k, v in linear(drawn(1)).items()},
    ),
}


def same(a: EvaluationReport, b: EvaluationReport) -> None:
    assert (a.score.accuracy, a.score.top5) == (b.score.accuracy, b.score.top5)
    assert a.score.loss == pytest.approx(b.score.loss, rel=1e-12, nan_ok=True)
    np.testing.assert_array_equal(a.confusion, b.confusion)


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_accuracy_is_the_share_on_the_diagonal(case: str, device: str, tmp_path: Path) -> None:
    body, weights = CASES[case]
    model = trained(tmp_path / "x.safetensors", body, "cross_entropy", weights, device)
    one = model.evaluate(None)
    assert one.score.images == 359
    assert one.score.accuracy == np.trace(one.confusion) / 359
    assert one.score.accuracy <= one.score.top5
    assert one.unclassified == {"all NaN": 359}.get(case, one.unclassified)
    assert (0 < one.unclassified < 359) == (case == "some NaN")
    for sizes in ((8,), (8, 8), (8, 8, 8)):
        same(model.evaluate(None, sizes), one)


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_the_same_size_twice_has_the_recipe_s_loss(loss: str, tmp_path: Path) -> None:
    """Of a plain net, and of one that ends in probabilities where the loss takes these."""
    bodies = ("fc(10)", "fc(10) -> softmax -> flatten")
    for body in bodies[: 1 if "cross_entropy" in loss else 2]:
        weights = linear(0.1 * drawn())
        model = trained(tmp_path / "x.safetensors", body, loss, weights, "reference")
        one = model.evaluate(None)
        assert one.score.loss == model.evaluate(None, (8, 8)).score.loss
        assert one.score.loss != model.evaluate(None, (8, 16)).score.loss


def test_the_loss_of_several_sizes_is_that_of_the_mean_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the recipe's smoothing, against the formula in NumPy on the scores of each size."""
    path, loss = tmp_path / "x.safetensors", "[(cross_entropy(smoothing=0.2), 0.5)]"
    model = trained(path, "fc(10)", loss, linear(0.1 * drawn()), "reference")
    seen: list[Array] = []
    mean = Objective.average_scores
    monkeypatch.setattr(Objective, "average_scores", lambda o, v: seen.append(v) or mean(o, v))
    score = model.evaluate(None, (8, 12)).score
    views = np.concatenate(seen, axis=1)[:, :359]
    test = sources.load(model.recipe.data.source, None).read_test
    assert test is not None
    target = 0.8 * np.eye(10)[test().labels] + 0.02
    shares = np.mean([probabilities(v) for v in views], axis=0)
    expected = -0.5 * (target * np.log(shares)).sum(axis=1).mean()
    assert score.loss == pytest.approx(expected, rel=1e-5)
    assert score.accuracy == (shares.argmax(axis=1) == test().labels).mean()


def test_predictions_follow_the_rule(tmp_path: Path, netdsl: Any) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 8), 200, np.uint8)).save("grey.png")
    cases = ((np.zeros((10, 64)), 0.0), (drawn(), [0.0] * 9 + [np.nan]), (1e-12 * drawn(), 0.0))
    found = []
    for weight, bias in cases:
        trained(Path("x.safetensors"), "fc(10)", "cross_entropy", linear(weight, bias), "reference")
        code, out, err = netdsl("predict", "x.safetensors", "grey.png", "--json")
        assert code == 0, err
        found.append([c for c, _ in json.loads(out)[0]["top"]])
        code, out, _ = netdsl("predict", "x.safetensors", "grey.png")
        assert ("no class, because a score is NaN" in out) == (not found[-1])
    order = np.argsort(-drawn().sum(axis=1), kind="stable")
    assert found == [["0", "1", "2", "3", "4"], [], [str(i) for i in order[:5]]]


DEAD = """net a { input(8x8x1); fc(10, weight=zeros, bias=zeros) -> relu }
data { source = digits, batch = 32 }
train { epochs = 1, expect test_accuracy > 0.07 }
"""


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_run_is_judged_by_the_rule(device: str, tmp_path: Path, netdsl: Any) -> None:
    """Scores that pass a ReLU, all of it dead: the share of class 0, wherever it is named."""
    (tmp_path / "dead.net").write_text(DEAD)
    code, out, err = netdsl("train", "dead.net", "--out", "run", "--json", "--device", device)
    assert code == 0, err
    report = Predictor(tmp_path / "run", open_backend(device)).evaluate(None)
    assert report.confusion[:, 1:].sum() == 0
    assert json.loads(out)["test_accuracy"] == report.score.accuracy == report.confusion[0, 0] / 359
    job = prepare_job(build_program(parse(DEAD)), None)
    (batch,) = islice(training_batches(job.train, 32, job.recipe.seed, 0), 1)
    learnt = overfit(job, open_backend(device), max_steps=3)
    assert learnt.accuracy == (batch.labels == 0).mean() > 0


@given(st.data())
def test_what_is_printed_of_a_confusion_is_bounded(data: st.DataObject) -> None:
    """The matrix of few classes; of many the pairs that are confused most often."""
    n = data.draw(st.sampled_from([2, 25, 26, 1000]))
    confusion = np.zeros((n, n), np.int64)
    place = st.integers(0, n - 1)
    for i, j in data.draw(st.lists(st.tuples(place, place), max_size=60)):
        confusion[i, j] += 1 + (i * j) % 3
    images = int(confusion.sum())
    names = tuple(f"class{i}" for i in range(n))
    report = EvaluationReport(
        Score(1.0, 0.5, 0.5, images, empty_counts(n)), "test", names, confusion
    )
    printed = io.StringIO()
    with redirect_stdout(printed):
        show_confusion(report)
    lines = printed.getvalue().splitlines()
    assert len(lines) <= 30
    wrong = images - int(np.trace(confusion))
    if n <= 25:
        assert len(lines) == n + 3
        return
    counts = [int(x.split()[0].replace(",", "")) for x in lines if " -> class" in x]
    assert counts == sorted(counts, reverse=True)
    rest = re.search(r"^and \d+ more pairs of classes, (\d+) images", printed.getvalue(), re.M)
    assert sum(counts) + (int(rest[1]) if rest else 0) == wrong
    assert not re.search(r"(class\d+) -> \1$", printed.getvalue(), re.M)
