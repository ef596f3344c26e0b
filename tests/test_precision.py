"""Mixed precision: what it reaches, and a scaled loss that finds its scale and loses no bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.loss_scale import SCALE, SKIPPED_STEPS
from netdsl.training.store import checkpoint
from netdsl.training.store.resume import load_continuation
from netdsl.types import Array
from tests.conftest import ROOT
from tests.test_resume import kept

NET = """net small {
  input(8x8x1)
  conv(8, 3x3, pad=same) -> batchnorm -> relu -> maxpool(2x2) -> fc(10)
}
data { source = digits, batch = 64 }
train { epochs = 2, optimizer = adam(lr=0.01), precision = %s%s }
"""
MODEL = open_backend("model")


def trainer(precision: str, more: str = "", device: str = "model") -> Trainer:
    return Trainer(build_program(parse(NET % (precision, more))), None, open_backend(device))


def run(t: Trainer, out: Path, **options: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    t.run(out, lambda p: None, told.append, **options)
    return told


def same(a: dict[str, Array], b: dict[str, Array], but: tuple[str, ...] = ()) -> bool:
    return all(np.array_equal(a[k], b[k]) for k in a if not k.startswith(but))


@pytest.mark.parametrize("device", ["reference", "model", "cpu"])
@pytest.mark.parametrize("precision", ["mixed", "mixed(float16)"])
def test_mixed_precision_learns_as_well_as_full(
    precision: str, device: str, tmp_path: Path
) -> None:
    full = run(trainer("full"), tmp_path / "full")
    low = trainer(precision, device=device)
    kinds = {n.op: n.type.dtype for n in low.job.step_graph.nodes.values()}
    assert kinds["matmul"] == ("bfloat16" if precision == "mixed" else "float16")
    assert {n.type.dtype for n in low.job.step_graph.states} == {"float32"}
    found = run(low, tmp_path / "low")
    assert found[-1]["train_loss"] == pytest.approx(full[-1]["train_loss"], rel=0.05)
    assert found[-1]["val_accuracy"] >= full[-1]["val_accuracy"] - 0.03


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(tmp_path: Path) -> None:
    """At first every step overflows: nothing moves but the scale, until gradients fit."""
    t = trainer("mixed(float16(scale=2e9))")
    before, moved = t.state.snapshot(), []

    def watch(p: Any) -> None:
        now = t.state.snapshot()
        moved.append((float(now[SCALE]), float(now[SKIPPED_STEPS]), same(before, now, (SCALE,))))

    told: list[dict[str, Any]] = []
    t.run(tmp_path, watch, told.append)
    out = int(moved[-1][1])
    assert 5 < out < 25
    assert moved[:out] == [(2e9 / 2 ** (i + 1), i + 1.0, True) for i in range(out)]
    assert not moved[out][2]
    assert [m["skipped"] for m in told][-1] == out
    assert told[-1]["loss_scale"] == moved[-1][0]
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["skipped"] == told[0]["skipped"]


def test_what_is_left_out_does_not_count_for_adam() -> None:
    """The first update that is made is Adam's first: every weight moves by the rate at most, and
    the largest by just that."""
    t = trainer("mixed(float16(scale=2e9))")
    (group, *_) = list(t.stepper.batch_groups())
    first = t.state.snapshot()
    while same(first, t.state.snapshot(), (SCALE,)):
        t.stepper.update(group)
    now = t.state.snapshot()
    assert now[SKIPPED_STEPS] > 5
    steps = [np.abs(now[n.name] - first[n.name]).max() for n in t.job.network.parameters]
    assert max(steps) == pytest.approx(0.01, rel=1e-3)


def test_the_scale_doubles_after_steady_steps(tmp_path: Path) -> None:
    t, scales = trainer("mixed(float16(scale=8, steady=4))"), []
    run(t, tmp_path)
    first = trainer("mixed(float16(scale=8, steady=4))")
    first.run(tmp_path / "b", lambda p: scales.append(float(first.state.arrays[SCALE])), print)
    assert scales[:9] == [8, 8, 8, 16, 16, 16, 16, 32, 32]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_scaled_run_goes_on_to_the_same_bits(accumulate: int, tmp_path: Path) -> None:
    """Wherever it is stopped: while it searches its scale, and after it has doubled."""
    more = f", accumulate = {accumulate}, clip = 1, ema = 0.9"
    precision = "mixed(float16(scale=1e9, steady=5))"
    run(trainer(precision, more), tmp_path / "whole")
    whole = kept(tmp_path / "whole")
    for updates in (2, 15):
        out, count = tmp_path / str(updates), iter(range(1000))
        with pytest.raises(KeyboardInterrupt):
            run(trainer(precision, more), out, should_stop=lambda c=count, u=updates: next(c) >= u)
        assert SCALE in checkpoint.load(out / "last.safetensors").states
        found = load_continuation(out)
        run(Trainer(found.program, None, MODEL, saved=found.saved), out)
        assert kept(out) == whole


def test_an_accumulated_overflow_leaves_the_whole_update_out() -> None:
    t = trainer("mixed(float16(scale=2e9))", ", accumulate = 3")
    before = t.state.snapshot()
    (group, *_) = list(t.stepper.batch_groups())
    t.stepper.update(group)
    now = t.state.snapshot()
    assert (float(now[SCALE]), float(now[SKIPPED_STEPS])) == (1e9, 1.0)
    assert same(before, now, (SCALE,))


def test_what_no_scale_helps_stops_the_run_and_names_the_layer(tmp_path: Path) -> None:
    """Activations that float16 cannot hold overflow at any scale of the loss."""
    text = (
        (NET % ("mixed(float16)", ""))
        .replace("-> batchnorm", "")
        .replace("same)", "same, weight=9e4)")
    )
    t = Trainer(build_program(parse(text, "hot.net")), None, MODEL)
    with pytest.raises(NetError) as e:
        run(t, tmp_path)
    told = e.value.render()
    assert "an infinity in step 17 (epoch 1), first in `conv1`" in told
    assert "hot.net:3" in told


def test_a_run_in_full_precision_goes_on_in_16_bits(tmp_path: Path) -> None:
    run(trainer("full"), tmp_path)
    found = load_continuation(tmp_path, ["train.precision=mixed(float16)", "train.epochs=3"])
    t = Trainer(found.program, None, MODEL, saved=found.saved)
    assert run(t, tmp_path)[-1]["loss_scale"] == 65536
    assert "mixed(low=float16(scale=65536, steady=2000))" in (tmp_path / "recipe.net").read_text()


def test_precision_from_the_command_line(netdsl: Any) -> None:
    model = str(ROOT / "models" / "digits.net")
    given = ["train", model, "--dry-run", "--set", "train.precision=mixed(float16)"]
    code, out, _ = netdsl(*given)
    assert code == 0
    assert "precision: mixed, products and activations in float16" in out
    assert "scaled by 65,536" in out
    assert json.loads(netdsl(*given, "--json")[1])["main"]["precision"].startswith("mixed")
    code, _, err = netdsl("train", model, "--set", "train.precision=mixed(half)")
    assert code == 2
    assert "unknown 16-bit type `half`" in err
