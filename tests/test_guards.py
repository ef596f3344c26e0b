"""The bad day and the days before it: NaNs are found, nets are watched, one batch is learnt."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.ir.interpreter import evaluate_graph
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program
from netdsl.runtime.state import draw_initial_value
from netdsl.training.job import prepare_job
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.run.overfit import overfit
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.graphs import training_graph
from netdsl.training.step.watch import build_watch_graph, parse_watch, summarise_watch
from netdsl.training.store import checkpoint

REFERENCE = open_backend("reference")
NET = """net small {
  input(8x8x1)
  c1: conv(4, 3x3)
  relu
  c2: conv(4, 3x3)
  relu
  head: fc(10)
}
data { source = digits, batch = 64 }
train { epochs = 3, optimizer = sgd(lr=%s) }
"""


def read(text: str) -> Program:
    return build_program(parse(text, "small.net"))


def run(text: str, out: Path, **options: Any) -> Trainer:
    trainer = Trainer(read(text), None, REFERENCE)
    trainer.run(out, lambda p: None, lambda m: None, **options)
    return trainer


def test_an_infinity_stops_the_run_and_names_layer_line_and_step(tmp_path: Path) -> None:
    with pytest.raises(NetError) as e:
        run(NET.replace("relu", "identity") % "1e12", tmp_path)
    told = e.value.render()
    assert "in step " in told
    assert "(epoch 1), first in " in told
    assert "small.net:" in told
    assert "no epoch has been completed yet" in told
    assert "lower it" in told


@pytest.mark.parametrize("at", [3, 30])
def test_the_first_fault_is_found_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A gradient that becomes NaN in one step, while the loss of that step is still sound."""
    from dataclasses import replace

    from netdsl.ops import OPS

    op, steps = OPS["dropout"], set()

    def broken(xp: Any, x: Any, seed: Any, step: Any, rank: Any, **attrs: Any) -> Any:
        y = op.reference(xp, x, seed, step, rank, **attrs)
        return y * np.float32("nan") if int(step) == at and len(steps) else y

    text = NET.replace("  relu\n", "  relu -> dropout(0.1)\n") % "0.01"
    monkeypatch.setitem(OPS, "dropout", replace(op, reference=broken))
    steps.add(at)
    with pytest.raises(NetError) as e:
        run(text, tmp_path)
    (d,) = e.value.diagnostics
    assert f"NaN in step {at + 1} (epoch {at // 20 + 1}), first in `dropout1`" in d.message
    assert d.span is not None
    assert d.span.position[0] == 4
    if at == 30:
        saved = checkpoint.load(tmp_path / "last.safetensors")
        assert saved.progress["epoch"] == 1
        assert all(np.isfinite(v).all() for v in saved.states.values())
        assert "last.safetensors, of epoch 1" in e.value.render()
        monkeypatch.undo()
        from netdsl.training.store.resume import load_continuation

        found = load_continuation(tmp_path)
        again = Trainer(found.program, None, REFERENCE, saved=found.saved)
        result = again.run(tmp_path, lambda p: None, lambda m: None)
        assert again.progress.epoch == 3
        assert math.isfinite(result.metrics["test_loss"])


def test_weights_that_go_wrong_in_the_last_step_of_an_epoch_are_not_kept(tmp_path: Path) -> None:
    trainer = Trainer(read(NET % "0.01"), None, REFERENCE)

    def spoil(p: Any) -> None:
        if (p.epoch, p.step) == (1, p.steps):
            values = trainer.state.snapshot()
            values["c2.weight"] = np.full_like(values["c2.weight"], np.nan)
            trainer.state.load(values, trainer.job.step_graph.states, "a fault")

    with pytest.raises(NetError, match="no longer finite, in epoch 2"):
        trainer.run(tmp_path, spoil, lambda m: None)
    saved = checkpoint.load(tmp_path / "last.safetensors")
    assert saved.progress["epoch"] == 1
    assert all(np.isfinite(v).all() for v in saved.states.values())


def test_a_validation_that_goes_wrong_while_the_weights_are_sound(tmp_path: Path) -> None:
    text = NET.replace("c1: conv(4, 3x3)", "c1: conv(4, 3x3) -> batchnorm") % "0.01"
    trainer = Trainer(read(text), None, REFERENCE)

    def spoil(p: Any) -> None:
        values = trainer.state.snapshot()
        values["c1.batchnorm1.running_mean"] = np.full(4, -3e38, np.float32)
        values["c1.batchnorm1.running_var"] = np.full(4, 1e-30, np.float32)
        trainer.state.load(values, trainer.job.step_graph.states, "a fault")

    with pytest.raises(NetError) as e:
        trainer.run(tmp_path, spoil, lambda m: None)
    (d,) = e.value.diagnostics
    assert "in the validation of epoch 1, first in `c1.batchnorm1`" in d.message
    assert d.span is not None
    assert d.span.position[0] == 3


def test_what_is_watched_is_what_numpy_says(tmp_path: Path) -> None:
    p = read(NET % "0.01")
    recipe = resolve_recipe(p)
    network = elaborate(p, None, recipe.settings(training=True))
    graph = build_watch_graph(network, recipe, ("gradients", "activations"))
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {n.name: draw_initial_value(n, 1) for n in graph.states}
    given["c1.bias"] = np.array([0, 0, 0, -1e6], np.float32)
    given |= {
        "input": rng.integers(0, 256, (64, 8, 8, 1)).astype(np.uint8),
        "labels": rng.integers(0, 10, 64).astype(np.int32),
        "weights": np.ones(64, np.float32),
    }
    values = evaluate_graph(graph, given)
    out = {label: values[name] for label, name in graph.outputs.items()}
    found = summarise_watch(graph, out, network)
    relu = values[network.find_node("relu1").name]
    shown = found["activations"]["relu1"]
    assert shown["norm"] == pytest.approx(np.linalg.norm(relu), rel=1e-5)
    assert shown["mean"] == pytest.approx(relu.mean(), rel=1e-5)
    assert shown["deviation"] == pytest.approx(relu.std(), rel=1e-5)
    assert shown["dead"] == 0.25
    assert found["activations"]["c1"]["dead"] == 0
    step = training_graph(network, recipe)
    update = evaluate_graph(step, {**given, "lr": np.float32(1)})[step.updates["c1.weight"]]
    gradient = given["c1.weight"] - update
    norm = found["gradients"]["c1.weight"]["norm"]
    assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)


def test_watching_is_written_down_and_changes_nothing(tmp_path: Path) -> None:
    plain = run(NET % "0.01", tmp_path / "a")
    looking = parse_watch("gradients, activations", 7)
    seen = run(NET % "0.01", tmp_path / "b", watch=looking)
    for name, value in plain.state.snapshot().items():
        np.testing.assert_array_equal(value, seen.state.snapshot()[name])
    lines = [json.loads(x) for x in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    looks = [x for x in lines if "watched_at" in x]
    assert [x["watched_at"] for x in looks] == list(range(0, 60, 7))
    assert set(looks[0]["activations"]) == {"c1", "relu1", "c2", "relu2", "head"}
    assert set(looks[0]["gradients"]) == {
        f"{x}.{k}" for x in ("c1", "c2", "head") for k in ("weight", "bias")
    }
    with pytest.raises(NetError, match="cannot be watched"):
        parse_watch("gradient", 1)


def test_one_batch_is_learnt_by_heart() -> None:
    text = NET.replace("head: fc(10)", "dropout(0.3); head: fc(10)").replace("sgd", "adam")
    text = (text % "0.005").replace("epochs", "loss = cross_entropy(smoothing=0.1), epochs")
    found = overfit(prepare_job(read(text), None), REFERENCE)
    assert found.ok
    assert found.expected == pytest.approx(math.log(10))
    assert found.first == pytest.approx(math.log(10), rel=0.5)
    assert found.accuracy == 1
    assert found.last <= 0.01


def test_a_net_that_learns_nothing_is_told() -> None:
    found = overfit(prepare_job(read(NET % "0"), None), REFERENCE, max_steps=20)
    assert not found.ok
    assert found.last == found.first


def depth(activation: str, norm: str, scale: float, layers: int = 20) -> list[float]:
    """The norms of the weights' gradients, first layer to last, in the first step."""
    body = f"(conv(8, 3x3, pad=same, weight=normal({scale})) {norm} -> {activation}) * {layers}"
    text = f"net deep {{ input(8x8x1); {body}; fc(10) }}\n" + NET[NET.index("data") :] % "0.01"
    job = prepare_job(read(text), None)
    graph = build_watch_graph(job.network, job.recipe, ("gradients",))
    given: dict[str, Any] = {n.name: draw_initial_value(n, 1) for n in graph.states}
    given |= {
        "input": job.train.images[:64],
        "labels": job.train.labels[:64],
        "weights": np.ones(64, np.float32),
    }
    values = evaluate_graph(graph, given)
    out = {label: values[name] for label, name in graph.outputs.items()}
    found = summarise_watch(graph, out, job.network)["gradients"]
    return [found[f"conv{i + 1}.weight"]["norm"] for i in range(layers)]


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_batch_norm_makes_gradients_independent_of_the_scale_of_weights(activation: str) -> None:
    """What the lecture says of deep nets, by the figures that `--watch` writes."""
    small, large = (depth(activation, "-> batchnorm", scale) for scale in (0.05, 0.3))
    for norms in (small, large):
        assert all(1e-2 < x < 1e2 for x in norms)
    assert min(depth(activation, "", 0.05)) < 1e-7


def test_without_batch_norm_gradients_vanish_or_explode_with_depth() -> None:
    sigmoid = depth("sigmoid", "", 0.05)
    assert sigmoid[0] < 1e-15 * sigmoid[-1]
    assert min(depth("relu", "", 0.3)) > 1e3
    assert max(depth("relu", "", 0.05)) < 1e-9


def test_batch_norm_allows_a_higher_rate(tmp_path: Path) -> None:
    """At a rate where the plain net is lost, the normalised one learns."""
    text = (
        NET.replace("fc(10)", "fc(10, weight=zeros)").replace("c1:", "").replace("c2:", "") % "1.5"
    )
    normed = text.replace("3x3)\n", "3x3) -> batchnorm\n")
    accuracies = []
    for name, given in (("plain", text), ("normed", normed)):
        try:
            accuracies.append(run(given, tmp_path / name).progress.history[-1]["val_accuracy"])
        except NetError:
            accuracies.append(0.0)
    assert accuracies[0] < 0.3
    assert accuracies[1] > 0.85
