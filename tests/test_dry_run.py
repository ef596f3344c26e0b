"""What is said before a run, and of two nets: it is what is then so."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from netdsl.backends import open_backend
from netdsl.insight.network_diff import compare_networks
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.job import prepare_job
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.run.dry_run import dry_run
from netdsl.training.run.memory import predict_memory
from tests.conftest import ROOT
from tests.test_cli import DIGITS, LENET

NET = """net small {
  input(8x8x1)
  stem: conv(8, 3x3, pad=same) -> batchnorm -> relu
  head: fc(64) -> relu -> fc(10)
}
data { source = digits, batch = 256 }
train {
  optimizer = adam(no_decay=["*.bias", "nothing"]), freeze = "stem.conv1.*"
  lr_scale = [("head.*", 0.5)], epochs = 3
}
"""


def test_a_dry_run_tells_steps_and_globs() -> None:
    found = dry_run(prepare_job(build_program(parse(NET)), None))
    assert (found.images, found.validation, found.steps, found.epochs) == (1294, 144, 5, 3)
    assert found.params - found.trainable_params == 8 * 9 + 8
    globs = {(g.key, g.glob): g.weights for g in found.globs}
    assert globs["freeze", "stem.conv1.*"] == ("stem.conv1.weight", "stem.conv1.bias")
    assert globs["no_decay", "nothing"] == ()
    assert len(globs["lr_scale", "head.*"]) == 4
    assert json.loads(json.dumps(found.as_json()))["steps"] == 15


def test_memory_is_predicted() -> None:
    job = prepare_job(build_program(parse(NET)), None)
    state = State(open_backend("reference"))
    state.initialise(job.step_graph.states, 1)
    memory = predict_memory(job)
    assert memory.weights == 4 * job.network.params
    assert memory.weights + memory.states == sum(v.nbytes for v in state.snapshot().values())
    tracemalloc.start()
    executor = Executor(job.step_graph, state.backend, state)
    held = sum(t.size for t in tracemalloc.take_snapshot().traces if t.size > 10_000)
    tracemalloc.stop()
    assert executor.plan.kernels
    assert held == pytest.approx(memory.step, rel=0.1)


def test_dry_run_from_the_command_line(netdsl: Any, tmp_path: Path) -> None:
    code, out, _ = netdsl("train", DIGITS, "--dry-run")
    assert code == 0
    assert "20 epochs of 40 steps: 800 steps" in out
    assert "momentum" in out or "beta1=0.9" in out
    assert "one step" in out
    code, out, _ = netdsl("train", DIGITS, "--dry-run", "--set", "train.epochs=1")
    assert "\n1 epoch of 40 steps\nlearning rate: " in out
    assert "\ndata: digits, 10 classes" in out
    code, out, _ = netdsl("train", DIGITS, "--dry-run", "--json")
    assert json.loads(out)["main"]["steps_per_epoch"] == 40
    assert not list(tmp_path.iterdir())


def test_data_are_named_without_defaults() -> None:
    text = "data {{ source = {} }}\nnet a {{ input(8) }}\ntrain {{ epochs = 1 }}"
    for source, shown in (
        ("cifar10", "cifar10"),
        ("cifar10(path=none)", "cifar10"),
        ('mnist("x")', 'mnist(path="x")'),
    ):
        recipe = resolve_recipe(build_program(parse(text.format(source))))
        assert str(recipe.data.source.drop_defaults()) == shown


def test_two_nets_are_compared() -> None:
    text = NET + NET[: NET.index("data")].replace("small", "wide").replace("fc(64)", "fc(32)")
    p = build_program(parse(text))
    found = compare_networks(elaborate(p, "small"), elaborate(p, "wide"))
    assert [c.name for c in found.differing_layers] == ["head.fc1", "head.relu1"]
    assert [(c.name, c.a, c.b) for c in found.differing_weights] == [
        ("head.fc1.weight", "64x512", "32x512"),
        ("head.fc1.bias", "64", "32"),
        ("head.fc2.weight", "10x64", "10x32"),
    ]
    assert "stem.batchnorm1.running_mean" in found.transferable_weights
    assert found.transferable_params == 8 * 9 + 8 + 16 + 10
    assert compare_networks(elaborate(p, "small"), elaborate(p, "small")).is_identical


def test_diff_from_the_command_line(netdsl: Any) -> None:
    code, out, _ = netdsl("diff", f"{LENET}:lenet5", f"{LENET}:caffe_lenet", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["params"] == [61_706, 431_080]
    assert found["transfers"] == []
    assert netdsl("train", DIGITS, "--set", "train.epochs=1", "--out", "a")[0] == 1
    code, out, _ = netdsl("diff", DIGITS, "a")
    assert "the nets are the same" in out
    assert netdsl("diff", DIGITS, "nowhere.net")[0] == 2
    assert netdsl("diff", DIGITS, str(ROOT))[0] == 2


def test_larger_nets_are_predicted_to_need_more() -> None:
    small, large = (
        predict_memory(prepare_job(build_program(parse(NET.replace("fc(64)", f"fc({n})"))), None))
        for n in (64, 640)
    )
    assert large.weights > 5 * small.weights
    assert large.total > small.total
