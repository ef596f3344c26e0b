"""What a recipe asks for is what the step does: freezing, rates, accumulation, averages, stages."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.insight.program_check import check_program
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, load_program
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import draw_initial_value
from netdsl.training.recipe.recipe import resolve_recipe, stage_names
from netdsl.training.recipe.resolved_recipe import resolve_file
from netdsl.training.run.callbacks import Result
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.graphs import accumulating_graph, training_graph
from netdsl.training.store import checkpoint
from netdsl.types import Graph

NET = """
net small {
  input(8x8x1)
  stem: conv(4, 3x3, pad=same) -> batchnorm -> relu -> maxpool(2x2)
  head: fc(10)
}
data { source = digits, batch = 32 }
"""
REFERENCE = open_backend("reference")


def read(train: str) -> Program:
    return build_program(parse(NET + train, "small.net"))


def graph(train: str, build: Any = training_graph) -> Graph:
    recipe = resolve_recipe(read(train))
    found: Graph = build(elaborate(read(train), None, recipe.settings(training=True)), recipe)
    return found


def run(out: Path, train: str, name: str | None = None, **options: Any) -> Result:
    trainer = Trainer(read(train), name, REFERENCE, **options)
    return trainer.run(out, lambda p: None, lambda m: None)


def given(g: Graph, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {n.name: draw_initial_value(n, 1) for n in g.states}
    n = g["labels"].type.shape[0]
    values |= {
        "input": rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8),
        "labels": rng.integers(0, 10, n).astype(np.int32),
        "weights": np.ones(n, np.float32),
        "lr": np.float32(0.1),
        "step": np.int32(0),
        "update": np.int32(0),
        "seed": np.int32(1),
        "rank": np.int32(0),
        "ema_rate": np.float32(1),
    }
    return values


def stepped(g: Graph, values: dict[str, Any]) -> dict[str, Any]:
    """Inputs and states after one run."""
    out = evaluate_results(g, {k: v for k, v in values.items() if k in g.nodes})
    return values | {k.removeprefix("update "): v for k, v in out.items() if k.startswith("update")}


def test_frozen_weights_have_no_gradient_no_update_and_fixed_statistics() -> None:
    g = graph('train { freeze = "stem.*" }')
    assert set(g.updates) == {"head.fc1.weight", "head.fc1.bias"} or set(g.updates) == {
        "head.weight",
        "head.bias",
    }
    assert not [n for n in g.nodes if n.startswith("d.stem")]
    assert not g.find_by_op("moments")
    assert graph("train { }").find_by_op("moments")


def test_a_batch_norm_is_frozen_with_its_statistics_not_with_its_factor() -> None:
    assert graph('train { freeze = "*.gamma" }').find_by_op("moments")
    assert not graph('train { freeze = "*.batchnorm*.*" }').find_by_op("moments")


@pytest.mark.parametrize("optimizer", ["sgd(momentum=0.5)", "adamw", "rmsprop", "lars"])
def test_a_scaled_rate_is_a_rate_times_its_factor(optimizer: str) -> None:
    scaled = graph(f'train {{ optimizer = {optimizer}, lr_scale = [("*", 9), ("*", 0.5)] }}')
    plain = graph(f"train {{ optimizer = {optimizer} }}")
    values = given(plain)
    found = stepped(scaled, values)
    expected = stepped(plain, {**values, "lr": np.float32(0.05)})
    for name in plain.updates:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.1, momentum=0.9)", "adam"])
def test_accumulated_batches_are_one_large_batch(optimizer: str) -> None:
    """Without batch normalisation, which looks at each batch by itself."""
    text = NET.replace("-> batchnorm ", "").replace("batch = 32", "batch = {}")
    train = f"train {{ optimizer = {optimizer}, clip = 0.1, accumulate = %d }}"

    def built(batch: int, count: int, build: Any = training_graph) -> Graph:
        p = build_program(parse(text.replace("{}", str(batch)) + train % count))
        recipe = resolve_recipe(p)
        found: Graph = build(elaborate(p, None, recipe.settings(training=True)), recipe)
        return found

    large, small, adding = built(32, 1), built(8, 4), built(8, 4, accumulating_graph)
    expected, values = given(large), given(small)
    images, labels = expected["input"], expected["labels"]
    for update in range(3):
        expected = stepped(large, {**expected, "step": np.int32(update)})
        for i in range(4):
            part = {"input": images[i * 8 : i * 8 + 8], "labels": labels[i * 8 : i * 8 + 8]}
            counted = {"step": np.int32(update * 4 + i), "update": np.int32(update)}
            values = stepped(small if i == 3 else adding, {**values, **part, **counted})
        assert not values["head.weight.gradient"].any()
    for name in large.updates:
        np.testing.assert_allclose(values[name], expected[name], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_batch_drops_other_values(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one update too, and those of the next: one batch again and again, at a rate of 0,
    has another loss each time."""
    text = NET.replace("maxpool(2x2)", "dropout").replace("-> batchnorm ", "")
    train = f"train {{ optimizer = sgd(lr=0), accumulate = {accumulate} }}"
    stepper = Trainer(build_program(parse(text + train)), None, REFERENCE).stepper
    losses: list[float] = []
    run_once = Executor.run

    def seen(self: Executor, inputs: Any) -> Any:
        out = run_once(self, inputs)
        losses.append(float(out["loss"]))
        return out

    monkeypatch.setattr(Executor, "run", seen)
    with closing(stepper.batch_groups()) as groups:
        batch = next(groups)[0]
    for _ in range(4):
        stepper.update((batch,) * accumulate)
    assert len(set(losses)) == len(losses) == 4 * accumulate


def test_the_average_begins_at_the_weights_and_follows_them() -> None:
    g = graph("train { ema = 0.9 }")
    first = stepped(g, given(g))
    np.testing.assert_array_equal(first["head.weight.ema"], first["head.weight"])
    second = stepped(g, {**first, "ema_rate": np.float32(0.25)})
    expected = 0.75 * first["head.weight"] + 0.25 * second["head.weight"]
    np.testing.assert_allclose(second["head.weight.ema"], expected, rtol=1e-5, atol=1e-7)


def test_averaged_weights_are_what_is_judged_and_kept(tmp_path: Path) -> None:
    from netdsl.inference import Predictor

    result = run(tmp_path, "train { ema = 0.95, epochs = 2, optimizer = adam(lr=0.01) }")
    last = checkpoint.load(tmp_path / "last.safetensors").states
    best = checkpoint.load(tmp_path / "best.safetensors").states
    assert not [name for name in best if name.endswith(("ema", "mean.mean", "square"))]
    if result.metrics["best_epoch"] == 2:
        np.testing.assert_array_equal(best["head.weight"], last["head.weight.ema"])
    assert not np.array_equal(last["head.weight"], last["head.weight.ema"])
    score = Predictor(tmp_path, REFERENCE).evaluate(None).score
    assert score.accuracy == pytest.approx(result.metrics["test_accuracy"])


def test_several_losses_are_a_weighted_sum() -> None:
    both = graph("train { loss = [(cross_entropy, 2), (mse, 0.5)] }")
    values = given(both)
    parts = [
        evaluate_results(graph(f"train {{ loss = {loss} }}"), values)["loss"]
        for loss in ("cross_entropy", "mse")
    ]
    found = evaluate_results(both, {k: v for k, v in values.items() if k in both.nodes})["loss"]
    assert found == pytest.approx(2 * parts[0] + 0.5 * parts[1], rel=1e-6)


def test_the_run_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    trainer = Trainer(
        read("train { patience = 2, epochs = 9, optimizer = sgd(lr=0) }"), None, REFERENCE
    )
    trainer.run(tmp_path, lambda p: None, lambda m: None)
    assert trainer.progress.epoch == 1 + 2
    assert trainer.progress.best_epoch(None) == 1


def test_every_nth_epoch_is_kept(tmp_path: Path) -> None:
    run(tmp_path, "train { keep_every = 2, epochs = 5 }")
    assert sorted(p.name for p in tmp_path.glob("epoch*")) == [
        "epoch-0002.safetensors",
        "epoch-0004.safetensors",
    ]


def test_the_schedule_reaches_the_step(tmp_path: Path) -> None:
    import json

    run(tmp_path, "train { schedule = step(at=[1, 2], gamma=0.5), epochs = 3 }")
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["lr"] for x in lines[:3]] == pytest.approx([0.01, 0.005, 0.0025])


STAGED = """
train { epochs = 1, optimizer = adam }
train head { freeze = "stem.*" }
train all { after = head, optimizer = adam(lr=0.0001), expect val_accuracy > 0 }
"""


def test_stages_begin_from_the_best_of_the_one_before(tmp_path: Path) -> None:
    assert stage_names(read(STAGED), "all") == ("head", "all")
    run(tmp_path / "head", STAGED, "head")
    start = checkpoint.load(tmp_path / "head" / "best.safetensors")
    trainer = Trainer(read(STAGED), "all", REFERENCE, start=start)
    for name, value in trainer.state.snapshot().items():
        if name in start.states:
            np.testing.assert_array_equal(value, start.states[name])


def test_a_staged_recipe_written_out_repeats_itself() -> None:
    once = format_file(resolve_file(read(STAGED), "all"))
    again = build_program(parse(once))
    assert format_file(resolve_file(again, None)) == once
    assert stage_names(again, None) == ("head", None)
    assert resolve_recipe(again) == resolve_recipe(read(STAGED), "all")
    assert resolve_recipe(again, "head").freeze == ("stem.*",)


def test_the_data_that_was_used_is_the_data_that_is_written() -> None:
    text = NET.replace("data {", "data first {") + "data other { source = digits, batch = 7 }\n"
    p = build_program(parse(text + "train { }"))
    assert resolve_recipe(build_program(parse(format_file(resolve_file(p, None))))).data.batch == 32


def test_weights_of_another_run_are_taken_over_by_name(tmp_path: Path) -> None:
    run(tmp_path, "train { epochs = 1 }")
    saved = checkpoint.load(tmp_path / "best.safetensors").states
    init = f'init = weights("{tmp_path}", except="head.*")'
    trainer = Trainer(read(f"train {{ {init} }}"), None, REFERENCE)
    taken = f"weights: 2 of 3 layers from {tmp_path}, 1 drawn: head"
    small = "  scores near 0 at first: head is drawn 0.01 times as large as usual (`score_scale`)"
    assert trainer.opening_lines() == (*trainer.job.inventory.lines(), taken, small)
    whole = init.replace(', except="head.*"', "")
    complete = Trainer(read(f"train {{ {whole} }}"), None, REFERENCE)
    assert complete.opening_lines() == complete.job.inventory.lines()
    state = trainer.state.snapshot()
    for name in ("stem.conv1.weight", "stem.batchnorm1.running_mean"):
        np.testing.assert_array_equal(state[name], saved[name])
    assert not np.array_equal(state["head.weight"], saved["head.weight"])
    renamed = NET.replace("stem:", "trunk:")
    (tmp_path / "other.net").write_text(f"{renamed}train {{ {init} }}")
    with pytest.raises(NetError, match="weights of the net `small` under other names") as e:
        Trainer(load_program(str(tmp_path / "other.net")), None, REFERENCE)
    command = f"import {tmp_path} --into {tmp_path / 'other.net'}:small -o fitted.safetensors"
    assert f'`netdsl {command} --except "head.*"`' in e.value.render()
    wider = build_program(parse((NET + f"train {{ {init} }}").replace("conv(4", "conv(8")))
    with pytest.raises(NetError) as e:
        Trainer(wider, None, REFERENCE)
    assert "`stem.conv1.weight` is 4x3x3x1, but the net needs 8x3x3x1" in e.value.render()
    assert "`stem.conv1.bias` is 4, but the net needs 8" in e.value.render()


@pytest.mark.parametrize(
    ("train", "complaint", "help"),
    [
        ('train { freeze = "stemm.*" }', "no weight matches", "did you mean `stem.*`"),
        ('train { lr_scale = [("haed.*", 2)] }', "given in `lr_scale`", "did you mean `head.*`"),
        ('train { freeze = "features.*" }', "no weight", "globs that match: stem.*, head.*"),
        ('train { freeze = "*" }', "nothing to train", ""),
        ("train { lr_scale = 3 }", "a list of pairs", ""),
        ("train { loss = [(crossentropy, 1)] }", "unknown loss", "cross_entropy"),
        ("train { schedule = cos }", "unknown schedule", "cosine"),
        ("train { schedule = step }", "needs `at`", ""),
        ("train { scheduler = cosine }", "no key `scheduler`", "did you mean `schedule`"),
        ("train { after = nowhere }", "no `train` section called", ""),
        ("train a { after = b }\ntrain b { after = a }", "form a cycle", "after = none"),
        ("train { after = a }\ntrain a { epochs = 1 }", "form a cycle", "train a"),
        ('train b { }\ntrain a { after = b, init = weights("x") }', "both set", "none"),
        ("train { patience = 0 }", "at least 1|from 1", ""),
        ("train { ema = 1 }", "below 1", ""),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told(train: str, complaint: str, help: str) -> None:
    with pytest.raises(NetError, match=complaint) as e:
        check_program(read(train))
    assert help in e.value.render()
    assert "small.net:" in e.value.render()


def test_no_decay_may_match_nothing() -> None:
    assert check_program(read('train { optimizer = sgd(no_decay="nothing.*") }'))


def test_the_weights_of_a_stage_must_fit() -> None:
    text = NET + (
        "net wide { input(8x8x1); stem: conv(8, 3x3, pad=same) -> batchnorm; head: fc(10) }\n"
        "train a { net = wide }\ntrain b { net = small, after = a }"
    )
    with pytest.raises(NetError, match="does not fit the net") as e:
        check_program(build_program(parse(text)))
    assert "`stem.conv1.weight` is 8x3x3x1" in e.value.render()


def test_batch_norm_over_one_image_says_what_to_use_instead() -> None:
    text = (NET + "train { }").replace("batch = 32", "batch = 1")
    with pytest.raises(NetError, match="batch of one image") as e:
        check_program(build_program(parse(text)))
    assert "groupnorm" in e.value.render()


def test_a_dry_run_sees_that_the_first_weights_do_not_fit(tmp_path: Path) -> None:
    from netdsl.training.job import prepare_job
    from netdsl.training.run.dry_run import dry_run

    run(tmp_path, "train { epochs = 1 }")
    text = (NET + f'train {{ init = weights("{tmp_path}") }}').replace("fc(10)", "fc(5) -> fc(10)")
    with pytest.raises(NetError) as e:
        dry_run(prepare_job(build_program(parse(text)), None))
    assert "`head.fc1.weight` is missing" in e.value.render()
    assert 'weights("FILE", except="head.*")' in e.value.render()
