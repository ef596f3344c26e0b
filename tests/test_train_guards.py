"""What a run is guarded by, at its edges: checksums, progress, the best epoch, what fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.runtime.state import draw_initial_value
from netdsl.signature import BoundCall, CallOf
from netdsl.training.checks import check_batch_norm, check_classes, check_loss
from netdsl.training.recipe.initial_weights import match_states
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.precision import LOW_PRECISIONS
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.recipe.targets import Targets
from netdsl.training.run.nan_check import can_continue
from netdsl.training.step.graphs import training_graph
from netdsl.training.step.loss_scale import SCALE, SCALE_STATES, SKIP_FLAG, LossScale, is_exhausted
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.training.store.progress import Progress, load_progress
from netdsl.types import Node, TensorType
from netdsl.values import Argument, Call

# ---- checkpoints

WEIGHTS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(6, dtype=np.float32).reshape(2, 3) + 1,
    "c": np.arange(4, dtype=np.float32),
}
SAVED = Checkpoint(
    WEIGHTS, "net n { input(4); fc(2) }", ("x", "y"), {"val_loss": 0.5}, {"epoch": 1}
)


def _states(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    return lambda states, about: (change(states), about)


def _about(key: str, value: Any) -> Callable[..., Any]:
    return lambda states, about: (states, about | {key: value})


DAMAGES: dict[str, Callable[..., Any]] = {
    "a bit": _states(lambda s: s | {"a": s["a"] + np.eye(2, 3, dtype=np.float32) * 1e-7}),
    "two that changed places": _states(lambda s: s | {"a": s["b"], "b": s["a"]}),
    "one under another name": _states(lambda s: {"a": s["a"], "bb": s["b"], "c": s["c"]}),
    "another shape": _states(lambda s: s | {"a": s["a"].reshape(3, 2)}),
    "one that is gone": _states(lambda s: {"a": s["a"], "b": s["b"]}),
    "one more": _states(lambda s: s | {"z": s["a"]}),
    "another net": _about("net", "net n { input(4); fc(3) }"),
    "other classes": _about("classes", ["y", "x"]),
    "other metrics": _about("metrics", {"val_loss": 0.25}),
    "other progress": _about("progress", {"epoch": 2}),
}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", SAVED)
    found = checkpoint.load(tmp_path / "x")
    assert (found.net_text, found.classes) == (SAVED.net_text, SAVED.classes)
    assert (found.metrics, found.progress) == (SAVED.metrics, SAVED.progress)
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found.states[name], value)


@pytest.mark.parametrize("what", DAMAGES)
def test_a_checksum_is_of_all_that_a_checkpoint_says(tmp_path: Path, what: str) -> None:
    """A file that is whole in itself, in which one thing is not what was saved."""
    path = tmp_path / "x"
    checkpoint.save(path, SAVED)
    with safe_open(path, framework="numpy") as f:
        outer = json.loads(f.metadata()["netdsl"])
        states = {name: f.get_tensor(name) for name in WEIGHTS}
    states, about = DAMAGES[what](states, json.loads(outer["about"]))
    outer["about"] = json.dumps(about, sort_keys=True)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in states.items()}, path, {"netdsl": json.dumps(outer)}
    )
    with pytest.raises(NetError, match="its checksum does not match its content"):
        checkpoint.load(path)


# ---- where a run stands


def after(*epochs: dict[str, Any]) -> Progress:
    return Progress(epoch=len(epochs), history=epochs)


def judged(accuracy: float | None, loss: float | None, train: float = 1.0) -> dict[str, Any]:
    return {"val_accuracy": accuracy, "val_loss": loss, "train_loss": train}


@pytest.mark.parametrize(
    ("history", "best"),
    [
        ([], 0),
        ([judged(0.5, 1.0)], 1),
        ([judged(0.5, 1.0), judged(0.6, 2.0)], 2),
        ([judged(0.6, 1.0), judged(0.5, 0.1)], 1),
        ([judged(0.5, 1.0), judged(0.5, 0.9)], 2),
        ([judged(0.5, 0.9), judged(0.5, 1.0)], 1),
        ([judged(0.5, 1.0), judged(0.5, 1.0)], 1),
        ([judged(0.5, float("nan")), judged(0.5, 1.0)], 2),
        ([judged(None, None, 2.0), judged(None, None, 1.0)], 2),
        ([judged(None, None, 1.0), judged(None, None, 1.0)], 1),
        ([judged(None, None, float("inf")), judged(None, None, 9.0)], 2),
    ],
)
def test_the_best_epoch(history: list[dict[str, Any]], best: int) -> None:
    """By accuracy, then by loss, then the first; by the training loss where nothing is held out."""
    assert after(*history).best_epoch(None) == best


@pytest.mark.parametrize(
    ("patience", "finished"), [(1, True), (2, True), (3, False), (None, False)]
)
def test_a_run_ends_after_as_many_epochs_without_a_better_one(
    patience: int | None, finished: bool
) -> None:
    recipe = replace(RECIPE, epochs=10, patience=patience)
    standing = after(judged(0.5, 1.0), judged(0.4, 1.0), judged(0.5, 1.0))
    assert standing.is_finished(recipe) is finished
    assert standing.is_finished(replace(recipe, epochs=3))
    assert standing.is_finished(replace(recipe, epochs=2))


@pytest.mark.parametrize(
    ("updates", "rate"),
    [(0, 1.0), (1, 0.9), (3, 0.75), (9, 0.5), (81, 0.1), (891, 0.01), (10_000, 0.01)],
)
def test_the_average_warms_up(updates: int, rate: float) -> None:
    """By (1 + n) / (10 + n), where n updates came before the last one; then by its decay."""
    assert Progress(update=updates).ema_rate(0.99) == pytest.approx(rate)


GOOD = Progress(
    epoch=1, seen=32, batches=1, update=9, step=9, history=(judged(0.5, 1.0),)
).as_json()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0},
        {"epoch": 2},
        {"epoch": -1},
        {"history": []},
        {"history": [{}]},
        {"history": {}},
    ],
)
def test_progress_that_is_none_is_refused(change: dict[str, Any]) -> None:
    good = json.loads(json.dumps(GOOD))
    assert load_progress(replace(SAVED, progress=good)).epoch == 1
    with pytest.raises(NetError, match="cannot be resumed"):
        load_progress(replace(SAVED, progress=good | change))


@pytest.mark.parametrize(
    ("out", "well"),
    [
        ({"loss": 1.0}, True),
        ({"loss": float("nan")}, False),
        ({"loss": float("inf")}, False),
        ({"loss": float("-inf")}, False),
        ({"loss": float("inf"), SCALE: 2.0, SKIP_FLAG: 1.0}, True),
        ({"loss": float("inf"), SCALE: 0.5, SKIP_FLAG: 1.0}, False),
        ({"loss": 1.0, SCALE: 0.5, SKIP_FLAG: 0.0}, True),
    ],
)
def test_a_step_is_sound_or_not(out: dict[str, float], well: bool) -> None:
    assert can_continue({k: np.float32(v) for k, v in out.items()}) is well


@pytest.mark.parametrize(("scale", "no_hope"), [(1.0, False), (0.5, True), (2.0, False)])
def test_a_scale_below_one_helps_no_more(scale: float, no_hope: bool) -> None:
    assert is_exhausted(scale) is no_hope
    assert is_exhausted(float("nan"))
    assert is_exhausted(float("inf"))


@pytest.mark.parametrize(
    ("scale", "good", "finite", "expected"),
    [
        (4.0, 0.0, True, (4.0, 1.0, 0.0)),
        (4.0, 1.0, True, (8.0, 0.0, 0.0)),
        (4.0, 1.0, False, (2.0, 0.0, 1.0)),
        (2.0**31, 1.0, True, (2.0**32, 0.0, 0.0)),
        (2.0**32, 1.0, True, (2.0**32, 0.0, 0.0)),
    ],
)
def test_a_scale_doubles_after_steady_steps_up_to_an_end(
    scale: float, good: float, finite: bool, expected: tuple[float, float, float]
) -> None:
    """Here after two; its run of good steps then begins anew, and so it does where one is not."""
    low: BoundCall = CallOf("16-bit type", LOW_PRECISIONS).accept(
        Call("float16", (Argument("steady", 2),))
    )
    b = Builder()
    renewed = LossScale(b, low).next_states(
        b.equal(b.input("x", TensorType((), "float32")), b.const(1.0))
    )
    values = {
        SCALE_STATES[0]: scale,
        SCALE_STATES[1]: good,
        SCALE_STATES[2]: 0.0,
        "x": float(finite),
    }
    given = {name: np.float32(value) for name, value in values.items()}
    out = evaluate_results(b.build({}, renewed), given)
    assert tuple(float(out[f"update {name}"]) for name in SCALE_STATES) == expected


# ---- what does not fit

TEXT = """
net n {
  input(4x4x1)
  a: fc(3) -> relu
  output side(weight=%s): fc(2)
  fc(2)
}
data { source = digits, batch = 3 }
train { optimizer = sgd(lr=1)%s }
"""


def read(weight: object = 0.25, more: str = "") -> Recipe:
    return resolve_recipe(build_program(parse(TEXT % (weight, more))))


RECIPE = read()


def step(weight: object = 0.25, more: str = "") -> dict[str, Any]:
    """What a training step gives out and makes of the weights, on drawn images."""
    text = build_program(parse(TEXT % (weight, more)))
    recipe = resolve_recipe(text)
    graph = training_graph(elaborate(text, None, recipe.settings(training=True)), recipe)
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {n.name: draw_initial_value(n, 1) for n in graph.states}
    given |= {
        "input": rng.integers(0, 256, (3, 4, 4, 1)).astype(np.uint8),
        "labels": np.array([0, 1, 1], np.int32),
        "weights": np.ones(3, np.float32),
        "lr": np.float32(1),
    }
    out = evaluate_results(graph, given)
    moved = {n.name: out[f"update {n.name}"] - given[n.name] for n in graph.states}
    return {**out, **moved}


def test_a_side_output_counts_by_its_weight() -> None:
    alone, half, whole = (step(weight) for weight in (0, 0.5, 1))
    assert alone["loss"] == pytest.approx(alone["main_loss"])
    side = whole["loss"] - whole["main_loss"]
    assert side > 0.1
    assert half["loss"] - half["main_loss"] == pytest.approx(side / 2, rel=1e-5)


def test_the_last_glob_that_matches_scales_the_rate() -> None:
    plain = step()
    globs = '("*", 0.5), ("side.*", 3), ("a.*", 0.25), ("*.bias", 2), ("a.fc1.bias", 4)'
    found = step(more=f", lr_scale = [{globs}]")
    expected = {"a.fc1.weight": 0.25, "a.fc1.bias": 4, "fc1.weight": 0.5, "fc1.bias": 2}
    expected |= {"side.fc1.weight": 3, "side.fc1.bias": 2}
    weights = {name for name in plain if name.endswith((".weight", ".bias")) and " " not in name}
    assert weights == expected.keys()
    for name, factor in expected.items():
        np.testing.assert_allclose(found[name], factor * plain[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("classes", "fits"), [(1, False), (2, True), (3, False), (10, False)])
def test_an_output_gives_one_score_a_class(classes: int, fits: bool) -> None:
    network = elaborate(build_program(parse(TEXT % (1, ""))))
    names = tuple(map(str, range(classes)))
    if fits:
        check_classes(network, names)
        return
    with pytest.raises(
        NetError, match=f"the data set has {classes} classes, but the net gives 2 scores"
    ):
        check_classes(network, names)


@pytest.mark.parametrize("end", ["softmax", "log_softmax", "softmax -> identity"])
def test_a_loss_is_not_given_what_it_makes_itself(end: str) -> None:
    network = elaborate(build_program(parse(f"net n {{ input(4); fc(2) -> {end} }}")))
    with pytest.raises(NetError, match="`cross_entropy` takes plain scores"):
        check_loss(network, RECIPE)
    check_loss(elaborate(build_program(parse("net n { input(4); fc(2) -> sigmoid }"))), RECIPE)


@pytest.mark.parametrize(("batch", "fits"), [(1, False), (2, True)])
def test_batch_norm_wants_two_images(batch: int, fits: bool) -> None:
    text = "net n { input(4x4x1); conv(2, 3x3) -> batchnorm; fc(2) }\ntrain {}\n"
    text += f"data {{ source = digits, batch = {batch} }}"
    recipe = resolve_recipe(build_program(parse(text)))
    network = elaborate(build_program(parse(text)), None, recipe.settings(training=True))
    if fits:
        check_batch_norm(network, recipe)
        return
    with pytest.raises(NetError, match="a batch of one image"):
        check_batch_norm(network, recipe)


def test_states_are_taken_over_where_shape_and_name_agree() -> None:
    b = Builder()
    states: list[Node] = [
        b.state(n, TensorType((2, 3), "float32"), ("normal", 1.0)) for n in ("a", "b")
    ]
    assert match_states(states, {"a": (2, 3), "b": (2, 3), "c": (1,)}, (), "x") == states
    assert match_states(states, {"a": (2, 3)}, ("b",), "x") == states[:1]
    for given, complaint in (
        ({"a": (2, 3), "b": (3, 2)}, "`b` is 3x2, but the net needs 2x3"),
        ({"a": (2, 4), "b": (2, 3)}, "`a` is 2x4, but the net needs 2x3"),
        ({"a": (2, 3), "b": (6,)}, "`b` is 6, but the net needs 2x3"),
        ({"a": (2, 3)}, "`b` is missing"),
    ):
        with pytest.raises(NetError, match=f"x does not fit the net: {complaint}"):
            match_states(states, given, (), "x")


def test_the_squared_error_is_a_mean_over_classes() -> None:
    b = Builder(dtype="float64")
    scores = b.input("s", TensorType((2, 3), "float64"))
    labels, weights = b.input("l", TensorType((2,), "int32")), b.const(1.0)
    targets = Targets(3, weights, labels)
    graph = b.build({"y": LOSSES["mse"].build(b, scores, targets)}, prune=True)
    values = {"s": np.array([[1.0, 2.0, 4.0], [0, 0, 0]]), "l": np.array([1, 2], np.int32)}
    assert evaluate_results(graph, values)["y"].tolist() == [(1 + 1 + 16) / 3, 1 / 3]
