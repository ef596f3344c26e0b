"""Losses against their published formulas, on every engine, with class weights and all targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.utils.class_weight import compute_class_weight

from netdsl.api.net import load
from netdsl.backends import open_backend
from netdsl.data.samples import Samples
from netdsl.errors import NetError
from netdsl.insight.explain import REFERENCE, explain_kernels
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.ops.example_values import draw_attributes
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.signature import BoundCall
from netdsl.training.checks import check_recipe, check_targets
from netdsl.training.job import prepare_job
from netdsl.training.recipe.losses import CLASS_WEIGHTS, LOSSES, Objective
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.recipe.targets import Targets
from netdsl.training.step.graphs import evaluation_graph, training_graph
from netdsl.types import Array, Graph, TensorType
from tests.conftest import HypothesisDraw
from tests.cuda_on_cpu import GPP
from tests.emulated_gpu import install_emulated_gpu

KINDS = ("classes", "mixed", "labels")
"""One class per image, a distribution over them, or several labels."""
SUPPORTED = [
    (name, kind)
    for name, loss in LOSSES.items()
    for kind in KINDS
    if kind != "labels" or loss.probabilities != "softmax"
]
IMAGES, CLASSES = 3, 4


# ---- the published formulas, as simply as numbers of moderate size allow


def softmax(x: Array) -> Array:
    powers = np.exp(x)
    return powers / powers.sum(axis=1, keepdims=True)


def smooth(t: Array, smoothing: float) -> Array:
    """Szegedy et al. 2016."""
    return (1 - smoothing) * t + smoothing / t.shape[1]


def cross_entropy(x: Array, t: Array, w: Array, smoothing: float) -> Array:
    return -(w * smooth(t, smoothing) * np.log(softmax(x))).sum(axis=1)


def focal(x: Array, t: Array, w: Array, gamma: float) -> Array:
    """Lin et al. 2017, with the probabilities of a softmax; w is their alpha."""
    p = softmax(x)
    return -(w * t * (1 - p) ** gamma * np.log(p)).sum(axis=1)


def bce(x: Array, t: Array, w: Array, smoothing: float) -> Array:
    """The weights are those of the positives."""
    p, t = 1 / (1 + np.exp(-x)), smooth(t, smoothing)
    return -(w * t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axis=1)


def mse(x: Array, t: Array, w: Array) -> Array:
    return ((x - t) ** 2).mean(axis=1)


FORMULAS: dict[str, Callable[..., Array]] = {
    f.__name__: f for f in (cross_entropy, focal, bce, mse)
}


@dataclass(frozen=True)
class Sample:
    """Values of the inputs of a loss. `t` are the targets as [N, classes]."""

    x: Array
    t: Array
    labels: Array | None
    weights: Array
    class_weights: Array

    def inputs(self, dtype: str) -> dict[str, Array]:
        found = {"x": self.x, "weights": self.weights, "targets": self.t}
        found |= {f"{CLASS_WEIGHTS}.{i}": self.class_weights for i in range(3)}
        found = {k: v.astype(dtype) for k, v in found.items()}
        return found if self.labels is None else found | {"labels": self.labels}

    def mean(self, loss: str, x: Array, is_weighted: bool, **arguments: Any) -> Any:
        """The mean over the batch, divided as PyTorch divides."""
        w = self.class_weights if is_weighted else np.ones(self.t.shape[1])
        total = (self.weights * FORMULAS[loss](x, self.t, w, **arguments)).sum()
        of_sample = np.ones(len(x)) if loss in ("bce", "mse") else (w * self.t).sum(axis=1)
        return total / (self.weights * of_sample).sum()


def draw_targets(kind: str, rng: np.random.Generator) -> tuple[Array, Array | None]:
    labels = rng.integers(0, CLASSES, IMAGES).astype(np.int32)
    if kind == "classes":
        return np.eye(CLASSES)[labels], labels
    if kind == "labels":
        return rng.integers(0, 2, (IMAGES, CLASSES)).astype(float), None
    share = rng.choice((0.0, 0.25, 0.5, 0.9, 1.0), (IMAGES, 1))
    other = np.eye(CLASSES)[rng.integers(0, CLASSES, IMAGES)]
    return share * np.eye(CLASSES)[labels] + (1 - share) * other, labels


def draw_sample(kind: str, rng: np.random.Generator, x: Array) -> Sample:
    t, labels = draw_targets(kind, rng)
    weights = rng.choice((0.0, 0.5, 1.0), IMAGES)
    weights[rng.integers(IMAGES)] = 1.0
    return Sample(x, t, labels, weights, rng.choice((0.25, 1.0, 3.0), CLASSES))


def objective(text: str) -> Objective:
    source = (
        f"net a {{ input(8x8x1); fc(10) }}\ndata {{ source = digits }}\ntrain {{ loss = {text} }}"
    )
    return resolve_recipe(build_program(parse(source))).loss


def make_graph(losses: Mapping[str, Objective], kind: str, dtype: str, rows: int) -> Graph:
    """For each loss that of the samples (`each`), their mean and its gradient (`slope`)."""
    b = Builder(dtype=dtype)
    matrix, row = TensorType((rows, CLASSES), dtype), TensorType((rows,), dtype)
    x = b.input("x", matrix)
    labels = b.input("labels", TensorType((rows,), "int32")) if kind != "labels" else None
    soft = b.input("targets", matrix) if kind != "classes" else None
    targets = Targets(CLASSES, b.input("weights", row), labels, soft)
    outputs = {}
    for name, loss in losses.items():
        mean = loss.mean(b, x, targets)
        outputs[f"{name} each"] = loss.per_sample(b, x, targets)
        outputs[f"{name} mean"] = mean
        outputs[f"{name} slope"] = grad(b, mean, [x])["x"]
    return b.build(outputs, prune=True)


@pytest.mark.parametrize(("name", "kind"), SUPPORTED)
@settings(max_examples=15)
@given(data=st.data())
def test_values_and_slopes_are_those_of_the_formula(
    name: str, kind: str, data: st.DataObject
) -> None:
    """The slope of a formula is taken with an imaginary step, which has no rounding error."""
    record = LOSSES[name]
    arguments = draw_attributes(HypothesisDraw(data), record.signature.params)
    has_weights = any(p.name == CLASS_WEIGHTS for p in record.signature.params)
    is_weighted = has_weights and data.draw(st.booleans())
    chosen = dict(arguments) | (
        {CLASS_WEIGHTS: (1.0,) if is_weighted else None} if has_weights else {}
    )
    x = data.draw(arrays(np.float64, (IMAGES, CLASSES), elements=st.floats(-4, 4)))
    sample = draw_sample(kind, np.random.default_rng(data.draw(st.integers(0, 999))), x)
    loss = Objective(((BoundCall(name, record, chosen), 1.0),))
    graph = make_graph({"a": loss}, kind, "float64", IMAGES)
    found = evaluate_results(graph, sample.inputs("float64"))
    plain = FORMULAS[name](x, sample.t, np.ones(CLASSES), **arguments)
    np.testing.assert_allclose(found["a each"], plain, rtol=1e-10, atol=1e-13)
    mean = sample.mean(name, x, is_weighted, **arguments)
    np.testing.assert_allclose(found["a mean"], mean, rtol=1e-10, atol=1e-13)
    slope = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        moved = x.astype(complex)
        moved[place] += 1e-30j
        slope[place] = sample.mean(name, moved, is_weighted, **arguments).imag / 1e-30
    np.testing.assert_allclose(found["a slope"], slope, rtol=1e-9, atol=1e-13)


# ---- scores of any size, on every engine

EXTREMES = [
    *([1e4, -1e4, 0, 3], [-1e4, 1e4, 1e4, 0], [0, 0, 0, 0], [30, -30, 17, 1e-3]),
    *([-1e3, 2, 1, -3], [88, 89, -104, 5], [1e4, 1e4, 1e4, 1e4]),
    *([3, 1e4, -1e4, 0], [0, 20, -20, 1], [-1e4, -40, 60, 2]),
]
WEIGHTS = "class_weights=[1, 2, 0, 3]"
TEXTS = {
    "classes": ("cross_entropy", "cross_entropy(smoothing=0.1)"),
    "mixed": (
        *("cross_entropy(smoothing=0.1)", f"cross_entropy({WEIGHTS})"),
        *("focal(gamma=1e-6)", "focal(gamma=100)", f"focal(gamma=0.5, {WEIGHTS})"),
        *("bce", "bce(smoothing=0.1)", f"bce({WEIGHTS})"),
    ),
    "labels": ("bce", f"bce({WEIGHTS})"),
}


def draw_extremes(kind: str, rng: np.random.Generator) -> Sample:
    """Every row of scores with several targets, none of which is the first class."""
    x = np.array(EXTREMES * 4, np.float64)
    if kind == "labels":
        t, labels = rng.integers(0, 2, x.shape).astype(float), None
        t[:, 0] = 0
    else:
        labels = rng.integers(1, CLASSES, len(x)).astype(np.int32)
        t = np.eye(CLASSES)[labels]
    if kind == "mixed":
        t = 0.75 * t + 0.25 * np.eye(CLASSES)[rng.integers(1, CLASSES, len(x))]
    return Sample(x, t, labels, np.ones(len(x)), np.array([1.0, 2.0, 0.0, 3.0]))


@pytest.mark.parametrize(
    "kind", ["classes", "mixed", pytest.param("labels", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_scores_of_any_size(
    device: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Losses and slopes in 32 bits are near those in 64, and finite even where a class that is not
    wanted is impossible. There is a kernel for all."""
    if device == "cuda":
        if GPP is None:
            pytest.skip("there is no g++ to compile for the CPU")
        install_emulated_gpu(monkeypatch, tmp_path)
    sample = draw_extremes(kind, np.random.default_rng(0))
    losses = {text: objective(text) for text in TEXTS[kind]}
    exact, graph = (
        make_graph(losses, kind, dtype, len(sample.x)) for dtype in ("float64", "float32")
    )
    backend = open_backend(device)
    executor = Executor(graph, backend, State(backend))
    kernels = explain_kernels(executor.plan, device)
    assert [k.name for k in kernels if k.computed_by == REFERENCE] == []
    for first in (-1e3, -np.inf):
        x = np.where(sample.x == -1e3, first, sample.x)
        moved = replace(sample, x=x)
        found = executor.run(moved.inputs("float32"))
        for name, expected in evaluate_results(exact, moved.inputs("float64")).items():
            if "smoothing" in name and first == -np.inf:
                continue  # then every class is wanted
            assert np.isfinite(expected).all(), name
            value = backend.download(found[name])
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6, err_msg=name)


# ---- runs

NET = """net a {
  input(8x8x1)
  conv(8, 3x3, stride=2) -> relu
  output side(weight=0.3): fc(10)
  fc(10)
}
data { source = digits, batch = 32 }
train { epochs = 2, optimizer = adam(lr=0.01), %s }
"""
FEW = "class_weights=[1, 2, 1, 1, 1, 1, 1, 1, 0.5, 1]"
RUNS = {
    "focal": "loss = focal(gamma=0.5, class_weights=balanced)",
    "bce": f"""loss = [(bce(smoothing=0.1, {FEW}), 2), (mse, 0.1)], ema = 0.9, accumulate = 2,
        precision = mixed(float16)""",
}


@pytest.mark.parametrize("entries", RUNS.values(), ids=RUNS)
def test_a_run_with_class_weights(entries: str, netdsl: Any, tmp_path: Path) -> None:
    """The loss of the test is that of the scores without class weights, and the probabilities are
    those that the loss is made of. The resolved recipe resolves to itself."""
    (tmp_path / "a.net").write_text(NET % entries)
    code, _, err = netdsl("train", "a.net", "--out", "run", "--device", "cpu", "--json")
    assert code == 0, err
    final = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert final["test_accuracy"] > 0.5
    net, job = load("run", device="cpu"), prepare_job(load_program("run/recipe.net"), None)
    assert job.dataset.read_test is not None
    test = job.dataset.read_test()
    x, t, w = net(test.images), np.eye(10)[test.labels], np.ones(10)
    found = net.probabilities(test.images)
    if "focal" in entries:
        losses, probabilities = focal(x, t, w, 0.5), softmax(x)
    else:
        losses, probabilities = 2 * bce(x, t, w, 0.1) + 0.1 * mse(x, t, w), 1 / (1 + np.exp(-x))
    assert final["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    np.testing.assert_allclose(found, probabilities, rtol=1e-4, atol=1e-6)
    assert resolve_recipe(load_program("a.net")).loss == job.recipe.loss


def test_a_batch_can_be_memorised_with_class_weights(netdsl: Any, tmp_path: Path) -> None:
    """Smoothed labels are not, and neither does a dry run need more than the file."""
    (tmp_path / "a.net").write_text(NET % 'loss = bce(smoothing=0.2, class_weights=[("3", 2)])')
    code, out, err = netdsl("train", "a.net", "--overfit", "--device", "cpu", "--json")
    assert code == 0, err
    assert json.loads(out)["last"] < 0.011
    code, out, err = netdsl("train", "a.net", "--dry-run")
    assert code == 0, err
    assert 'bce(smoothing=0.2, class_weights=[("3", 2)])' in out
    assert "class weights of bce: 0 1, 1 1, 2 1, 3 2, 4 1, 5 1, 6 1, 7 1, 8 1, 9 1\n" in out


# ---- class weights


def weights_of(loss: str, labels: Array, classes: str = "abc") -> list[float]:
    samples = Samples(np.zeros((len(labels), 1)), np.asarray(labels))
    counts = samples.count_by_class(len(classes))
    (found,) = objective(loss).find_class_weights(tuple(classes), counts, len(labels)).values()
    assert found.dtype == np.float32
    return [float(w) for w in found]


def test_balanced_weights_make_up_for_the_numbers_of_images() -> None:
    """As those of scikit-learn, and PyTorch's advice for `pos_weight`."""
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2], np.int32)
    several = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 1]], np.uint8)
    whole = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    for loss in ("cross_entropy", "focal"):
        assert weights_of(f"{loss}(class_weights=balanced)", labels) == pytest.approx(whole)
    positives = "bce(class_weights=balanced)"
    assert weights_of(positives, labels) == pytest.approx([5 / 3, 7, 1])
    assert weights_of(positives, several) == pytest.approx([1 / 3, 3, 1])


def test_class_weights_by_name_leave_the_others_at_1() -> None:
    labels = np.array([0, 1, 2], np.int32)
    assert weights_of('focal(class_weights=[("b", 3), ("c", 0)])', labels) == [1, 3, 0]
    assert weights_of("bce(class_weights=[1, 0.5, 0])", labels) == [1, 0.5, 0]


def test_each_loss_of_a_sum_has_class_weights_of_its_own() -> None:
    parts = (f"focal({WEIGHTS})", "bce(class_weights=[3, 1, 0.5, 2])", "mse")
    losses = {part: objective(part) for part in parts}
    losses["sum"] = objective("[({}, 0.5), ({}, 2), ({}, 0.25)]".format(*parts))
    rng = np.random.default_rng(0)
    sample = draw_sample("mixed", rng, rng.standard_normal((IMAGES, CLASSES)))
    inputs, found = sample.inputs("float64"), {}
    for name, loss in losses.items():
        values = dict(loss.find_class_weights(("a", "b", "c", "d"), np.ones(CLASSES), CLASSES))
        graph = make_graph({name: loss}, "mixed", "float64", IMAGES)
        found[name] = float(evaluate_results(graph, inputs | values)[f"{name} mean"])
    first, second, third, total = found.values()
    assert total == pytest.approx(0.5 * first + 2 * second + 0.25 * third, rel=1e-6)


def test_samples_of_classes_that_do_not_count_have_no_loss() -> None:
    """Where all of a batch are, its loss and its slope are 0, not NaN."""
    graph = make_graph({"a": objective(f"focal({WEIGHTS})")}, "classes", "float64", 2)
    sample = Sample(
        np.ones((2, CLASSES)),
        np.empty(0),
        np.array([2, 2], np.int32),
        np.ones(2),
        np.array([1.0, 2.0, 0.0, 3.0]),
    )
    found = evaluate_results(graph, sample.inputs("float64"))
    assert found["a mean"] == 0
    assert not found["a slope"].any()


@pytest.mark.parametrize(
    ("loss", "complaint", "help"),
    [
        ("cross_entropy(class_weights=[1, 2])", "has 2 weights, but there are 10", "pairs"),
        ("bce(class_weights=[1, -2])", "a number of at least 0", ""),
        ("focal(class_weights=[0, 0])", "one above 0", ""),
        ("focal(class_weights=[])", "`balanced`, a list with a number", ""),
        ('focal(class_weights=("3", 2))', "or pairs", ""),
        ('focal(class_weights=[("3", 1), ("3", 2)])', '"3" is given twice', ""),
        ('focal(class_weights=[("33", 1)])', "the data set has no such class", "`3`"),
        ('bce(class_weights="balanced")', 'not "balanced"', "without quotes"),
        ("focal(alpha=0.25)", "no parameter `alpha`", "`class_weights`"),
        ("binary_crossentropy", "unknown loss", "`bce`"),
        ("focal(gamma=-1)", "from 0 to 100", ""),
    ],
)
def test_wrong_losses_are_refused(
    loss: str, complaint: str, help: str, netdsl: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.net").write_text(NET % f"loss = {loss}")
    code, _, err = netdsl("check", "a.net")
    assert code == 2
    assert complaint in err
    assert help in err


def test_class_weights_of_classes_that_only_the_data_name() -> None:
    """A file alone passes; where the data lacks a class, its name and the nearest are shown."""
    labels = np.array([0, 0, 2], np.int32)
    with pytest.raises(NetError, match="no such class") as e:
        weights_of('bce(class_weights=[("bes", 2)])', labels, ("ants", "bees", "cows"))
    assert e.value.diagnostics[0].help == "did you mean `bees`?"
    with pytest.raises(NetError, match="no training images are of b"):
        weights_of("cross_entropy(class_weights=balanced)", labels)
    with pytest.raises(NetError, match="all training images have a"):
        weights_of("bce(class_weights=balanced)", np.array([[1, 0, 1], [1, 1, 0]], np.uint8))
    with pytest.raises(NetError, match="sets the weight of every class to 0"):
        weights_of('bce(class_weights=[("a", 0), ("b", 0), ("c", 0)])', labels)
    source = 'data { source = folder("nowhere"), batch = 2 }'
    text = NET.replace("data { source = digits, batch = 32 }", source)
    loss = 'loss = focal(class_weights=[("anything", 2)])'
    assert check_recipe(build_program(parse(text % loss)), None).name == "a"


@pytest.mark.parametrize(
    ("end", "loss", "complaint"),
    [
        ("sigmoid", "bce", "`bce` takes plain scores, but the net ends with `sigmoid`"),
        ("softmax", "bce", "`bce` takes plain scores, but the net ends with `softmax`"),
        ("softmax", "focal", "`focal` takes plain scores"),
        ("log_softmax", "[(mse, 1), (focal, 1)]", "`focal` takes plain scores"),
    ],
)
def test_a_net_does_not_apply_what_its_loss_applies(end: str, loss: str, complaint: str) -> None:
    text = NET.replace("  fc(10)\n}", f"  fc(10) -> {end}\n}}") % f"loss = {loss}"
    with pytest.raises(NetError, match=complaint) as e:
        check_recipe(build_program(parse(text)), None)
    assert f"remove `{end}`" in str(e.value.diagnostics[0].help)


SEVERAL = Samples(np.zeros((2, 1)), np.array([[1, 1, 0], [0, 1, 0]], np.uint8))


@pytest.mark.parametrize(
    ("end", "loss", "complaint"),
    [
        ("identity", "bce(class_weights=balanced)", None),
        ("sigmoid", "mse", None),
        ("identity", "cross_entropy", "is for one class per image"),
        ("identity", "[(bce, 1), (focal, 1)]", "is for one class per image"),
        ("identity", "mse", "compares scores with labels"),
        ("softmax", "mse", "compares scores with labels"),
    ],
)
def test_losses_of_several_labels_an_image(end: str, loss: str, complaint: str | None) -> None:
    program = build_program(
        parse(NET.replace("  fc(10)\n}", f"  fc(10) -> {end}\n}}") % f"loss = {loss}")
    )
    recipe = replace(resolve_recipe(program), is_multi_label=True)
    network = elaborate(program, None, recipe.settings(training=True))
    if complaint is None:
        check_targets(network, recipe, SEVERAL)
        inputs = {n.name: n.type for n in training_graph(network, recipe).inputs}
        assert inputs["targets"].shape == (32, 10)
        assert "labels" not in inputs
        return
    with pytest.raises(NetError, match=complaint) as e:
        check_targets(network, recipe, SEVERAL)
    assert "loss = bce" in str(e.value.diagnostics[0].help)


def test_all_labels_of_an_image_are_to_be_right() -> None:
    """Those count as found that are more likely than not; of a NaN, nothing is right."""
    program = build_program(
        parse(
            "net a { input(3) -> identity }\n"
            "data { source = digits, batch = 5 }\ntrain { loss = bce }"
        )
    )
    recipe = replace(resolve_recipe(program), is_multi_label=True, has_float_images=True)
    network = elaborate(program, None, recipe.settings(training=False))
    x = np.array([[1, -1, 2], [1, 1, -1], [0, 0, 1], [-1, -1, -1], [np.nan, 9, 9]], np.float32)
    t = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]], np.float32)
    given = {
        network.image_input: x,
        "targets": t,
        "weights": np.array([1, 1, 0.5, 1, 1], np.float32),
    }
    out = evaluate_results(evaluation_graph(network, recipe), given)
    assert out["top1"] == 2.5
    assert "top5" not in out
    np.testing.assert_allclose(out["probabilities"][0], 1 / (1 + np.exp(-x[0])), rtol=1e-6)
