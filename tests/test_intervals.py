"""Intervals of validation and of saving: when they are due, and what they never change."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.insight.plots.history import read_history
from netdsl.insight.plots.series import PlotOptions, make_chart
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.parameter_types import Float
from netdsl.ranks.communicator import Communicator
from netdsl.signature import BoundCall
from netdsl.training.recipe.intervals import (
    INTERVALS,
    IntervalKind,
    Mark,
    count_validations,
    is_due,
)
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.run.callbacks import format_end, format_epoch
from netdsl.training.run.interval_timers import IntervalTimer, ValidationTimer
from netdsl.training.run.trainer import Trainer
from netdsl.training.store import checkpoint, progress
from netdsl.training.store.progress import Progress
from netdsl.training.store.resume import load_continuation
from netdsl.training.store.run_directory import RunDirectory
from netdsl.values import Argument, Call
from tests.processes import NETDSL, NO_OUTPUT, TIME_LIMIT, start_process
from tests.test_resume import Killed, kept
from tests.thread_ranks import run_ranks

REFERENCE = open_backend("reference")
NET = """
net small {
  input(8x8x1)
  conv(4, 3x3, pad=same, stride=2) -> batchnorm -> relu -> dropout(0.2) -> fc(10)
}
data { source = digits, batch = 128 }
"""
TRAIN = "optimizer = adam(lr=0.01), ema = 0.9, epochs = 5"
STEPS = 10
"""Updates in an epoch."""


def interval(name: str, count: float) -> BoundCall:
    return IntervalKind().accept(Call(name, (Argument(None, count),)))


def trainer(entries: str, **options: Any) -> Trainer:
    text = f"{NET} train {{ {TRAIN}, {entries} }}"
    return Trainer(build_program(parse(text)), None, REFERENCE, **options)


def run(out: Path, entries: str, on_step: Callable[[int], None] = lambda n: None) -> Trainer:
    made = trainer(entries)
    made.run(out, lambda s: on_step(s.completed_steps), lambda m: None)
    return made


def go_on(out: Path, *settings: str) -> Trainer:
    found = load_continuation(out, settings)
    made = Trainer(found.program, None, REFERENCE, saved=found.saved)
    made.run(out, lambda s: None, lambda m: None)
    return made


def validated(out: Path) -> list[int]:
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [x["epoch"] for x in lines if x.get("val_loss") is not None]


# ---- the table


@st.composite
def drawn_intervals(draw: st.DrawFn) -> BoundCall:
    name = draw(st.sampled_from(sorted(INTERVALS)))
    kind = INTERVALS[name].signature.params[0].type
    if isinstance(kind, Float):
        counts: Any = st.floats(0, kind.high, exclude_min=True)
    else:
        counts = st.integers(kind.low, kind.high)  # type: ignore[attr-defined]
    small = st.integers(1, 30)
    return interval(name, draw(st.one_of(counts, small)))


@given(drawn_intervals())
def test_an_interval_is_read_as_it_is_written(chosen: BoundCall) -> None:
    program = build_program(parse(f"{NET} train {{ save_every = {chosen} }}"))
    found = resolve_recipe(program).save_every
    assert found.name == chosen.name
    assert found.arguments["count"] == pytest.approx(chosen.arguments["count"], rel=1e-11)


@given(st.integers(1, 100_000))
def test_a_bare_integer_counts_epochs(count: int) -> None:
    assert IntervalKind().accept(count) == interval("epochs", count)


MARKS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2000), st.floats(0, 600)), min_size=1, max_size=40
)


@given(drawn_intervals(), MARKS)
def test_nothing_is_due_before_its_interval_has_passed(
    chosen: BoundCall, advances: Sequence[tuple[int, int, float]]
) -> None:
    """Between two times that it is due lies at least a multiple of `count`, and where as much has
    passed, it is due."""
    now = Mark(0, 0, 1000.0)
    timer, last = IntervalTimer(chosen, now), now
    count = chosen.arguments["count"]
    for epochs, steps, seconds in advances:
        now = Mark(now.epoch + epochs, now.update + steps, now.seconds + seconds)
        passed, multiple = {
            "epochs": (now.epoch - last.epoch, now.epoch // count * count > last.epoch),
            "steps": (now.update - last.update, now.update // count * count > last.update),
            "minutes": ((now.seconds - last.seconds) / 60, False),
        }[chosen.name]
        due = timer.is_due(now)
        assert due is is_due(chosen, last, now)
        assert not due or passed > 0
        assert due or not multiple
        assert due or passed < count * (1 + 1e-9)
        if due:
            timer.restart(now)
            last = now
            assert not timer.is_due(now)


@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 12_000))
def test_saving_at_steps_goes_on_as_if_never_stopped(count: int, every: int, start: int) -> None:
    timer = IntervalTimer(interval("steps", every), Mark(0, start, 0.0))
    due = []
    for update in range(start + 1, start + 10 * every + count):
        if timer.is_due(Mark(0, update, 0.0)):
            due.append(update)
            timer.restart(Mark(0, update, 0.0))
    assert due == [u for u in range(start + 1, start + 10 * every + count) if u % every == 0]


def walk(recipe: Recipe, steps: int, start: int) -> list[int]:
    """The epochs that are validated in a run that is resumed at its update `start`, those before it
    included."""
    found: list[int] = []
    history: list[dict[str, Any]] = []
    timer = ValidationTimer(recipe, Progress())
    for epoch in range(1, recipe.epochs + 1):
        if (epoch - 1) * steps <= start < epoch * steps:
            timer = ValidationTimer(
                recipe, Progress(epoch=epoch - 1, update=start, history=tuple(history))
            )
        done = Progress(epoch=epoch - 1, update=epoch * steps)
        if timer.is_due(done):
            timer.restart(done)
            found.append(epoch)
        history.append({"epoch": epoch, "step": epoch * steps})
    return found


RECIPE = resolve_recipe(build_program(parse(f"{NET} train {{ {TRAIN} }}")))


@given(
    st.sampled_from(["epochs", "steps"]),
    st.integers(1, 70),
    st.integers(1, 25),
    st.integers(1, 40),
    st.data(),
)
def test_the_same_epochs_are_validated_wherever_a_run_is_resumed(
    name: str, count: int, steps: int, epochs: int, data: st.DataObject
) -> None:
    recipe = replace(RECIPE, epochs=epochs, validate_every=interval(name, count))
    whole = walk(recipe, steps, 0)
    assert walk(recipe, steps, data.draw(st.integers(0, epochs * steps - 1))) == whole
    assert {1, epochs} <= {*whole}
    unit = 1 if name == "epochs" else steps
    ends = [e for e in range(1, epochs + 1) if e * unit // count > (e - 1) * unit // count]
    assert whole == sorted({1, epochs, *ends})
    if name == "epochs":
        assert len(whole) == count_validations(recipe.validate_every, epochs)


# ---- which epoch is the best


def judged(accuracy: float | None, train: float = 1.0) -> dict[str, Any]:
    loss = None if accuracy is None else 1 - accuracy
    return {"val_accuracy": accuracy, "val_loss": loss, "train_loss": train}


NOT = judged(None, 0.0)
"""An epoch that was not validated, with the best training loss."""


@pytest.mark.parametrize(
    ("history", "best", "waited"),
    [
        ([judged(0.5), NOT], 1, 0),
        ([judged(0.5), NOT, judged(0.6), NOT], 3, 0),
        ([judged(0.6), NOT, judged(0.5), NOT, judged(0.4)], 1, 2),
        ([judged(None, 2.0), NOT, judged(None, 1.0)], 2, 1),
    ],
)
def test_only_validated_epochs_count(history: list[dict[str, Any]], best: int, waited: int) -> None:
    done = Progress(epoch=len(history), history=tuple(history))
    assert (done.best_epoch(None), done.count_waited(None)) == (best, waited)
    for patience in (1, 2, 3):
        recipe = replace(RECIPE, epochs=99, patience=patience)
        assert done.is_finished(recipe) is (waited >= patience)


def test_plateau_follows_validated_epochs_only() -> None:
    recipe = replace(
        RECIPE,
        schedule=resolve_recipe(
            build_program(parse(f"{NET} train {{ schedule = plateau(factor=0.5, patience=0) }}"))
        ).schedule,
    )
    rates = [
        Progress(epoch=len(h), history=tuple(h)).learning_rate(recipe, STEPS)
        for h in ([judged(0.5)], [judged(0.5), NOT, NOT], [judged(0.5), NOT, judged(0.5)])
    ]
    assert rates == [0.01, 0.01, 0.005]


def test_lines_of_epochs_without_validation() -> None:
    known = {"epoch": 2, "train_accuracy": 0.5, "images_per_second": None, "seconds": 1.0}
    best = resolve_recipe(build_program(parse(f"{NET} train {{ best = max(val_f1) }}")))
    line = format_epoch(NOT | known | {"val_f1": None}, best)
    assert line == "epoch 2/10  loss 0.0000  accuracy 50.00%  1.0 s"
    done = Progress(epoch=5, history=(judged(0.6), NOT, judged(0.5), NOT, judged(0.4)))
    line = format_end(done, replace(RECIPE, epochs=9, patience=2))
    assert line.endswith("5 of 9 epochs: 2 validated ones without a better one (patience = 2)")


# ---- runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("plain")
    run(out, "seed = 1")
    return kept(out)


def final_states(out: Path) -> dict[str, Any]:
    return {k: v.tobytes() for k, v in checkpoint.load(out / "last.safetensors").states.items()}


@pytest.mark.parametrize("every", ["3", "steps(1)", "steps(25)", "minutes(0.0001)", "minutes(99)"])
def test_saving_changes_no_weight_and_no_figure(
    plain: dict[str, Any], tmp_path: Path, every: str
) -> None:
    run(tmp_path, f"save_every = {every}")
    found = kept(tmp_path)
    assert found["metrics.jsonl"] == plain["metrics.jsonl"]
    (tmp_path / "plain.safetensors").write_bytes(plain["last.safetensors"])
    states = checkpoint.load(tmp_path / "plain.safetensors").states
    assert final_states(tmp_path) == {k: v.tobytes() for k, v in states.items()}


UNCHANGED = """
net still { input(8x8x1); fc(10) }
data { source = digits, batch = 128 }
train { optimizer = sgd(lr=0), epochs = 4, save_every = EVERY }
"""


@pytest.mark.parametrize(
    ("every", "saved"),
    [
        ("2", {0, 10, 20}),
        ("steps(4)", {0, 10, *range(4, 40, 4)}),
        ("steps(20)", {0, 10, 20}),
        ("minutes(99)", {0, 10}),
    ],
)
def test_when_last_is_saved(tmp_path: Path, every: str, saved: set[int]) -> None:
    """Besides at its interval, after the first epoch alone: the weights do not change, so that no
    other one is better."""
    path, found = tmp_path / "last.safetensors", set()

    def look(report: Any) -> None:
        found.add(checkpoint.load(path).progress["update"] if path.exists() else 0)

    program = build_program(parse(UNCHANGED.replace("EVERY", every)))
    Trainer(program, None, REFERENCE).run(tmp_path, look, lambda m: None)
    assert found == saved
    assert checkpoint.load(path).progress["epoch"] == 4


def test_validation_by_interval_changes_no_weight(plain: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, "validate_every = 3")
    assert validated(tmp_path) == [1, 3, 5]
    found = kept(tmp_path)
    lines = plain["metrics.jsonl"]
    for there, line in zip(found["metrics.jsonl"], lines, strict=True):
        measured = {k: v for k, v in there.items() if v is not None and k != "best_epoch"}
        if "epoch" in line:
            assert measured == {k: line[k] for k in measured}
            assert {*there} == {*line}
    assert checkpoint.load(tmp_path / "best.safetensors").progress["epoch"] in (1, 3, 5)
    history = read_history(tmp_path)
    assert history.best_epoch in (1, 3, 5)
    chart = make_chart([history], PlotOptions(("accuracy",)))
    val = next(s for s in chart.curves[0].series if s.part == "val")
    assert np.isfinite(val.y).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(("every", "epochs"), [("25", [1, 3, 5]), ("7", [1, 2, 3, 4, 5])])
def test_validation_by_steps_comes_at_the_end_of_an_epoch(
    tmp_path: Path, every: str, epochs: list[int]
) -> None:
    made = run(tmp_path, f"validate_every = steps({every})")
    assert validated(tmp_path) == epochs
    notes = [x for x in made.opening_lines() if "validate_every" in x]
    assert len(notes) == (every == "7")


def test_validation_by_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of ten seconds an update, so 100 seconds an epoch."""
    made = trainer("validate_every = minutes(3)")
    clock = lambda: 10.0 * made.progress.update
    monkeypatch.setattr(progress, "time", type("Clock", (), {"monotonic": staticmethod(clock)}))
    made.run(tmp_path, lambda s: None, lambda m: None)
    assert validated(tmp_path) == [1, 3, 5]


RARE = "validate_every = 2, keep_every = 2, patience = 2"


@pytest.fixture(scope="module", params=["steps(4)", "3", "steps(25)"])
def rare(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """An interval of saving, and what a run with it keeps."""
    out = tmp_path_factory.mktemp("rare")
    run(out, f"save_every = {request.param}, {RARE}")
    return request.param, kept(out)


@pytest.mark.parametrize("at", [3, 7, 13, 20, 21, 38, 49])
def test_killed_at_any_update_and_resumed(
    rare: tuple[str, dict[str, Any]], tmp_path: Path, at: int
) -> None:
    every, whole = rare

    def die(n: int) -> None:
        if n == at:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, f"save_every = {every}, {RARE}", die)
    saved = tmp_path / "last.safetensors"
    if every == "steps(4)" and saved.exists():
        done = checkpoint.load(saved).progress["update"]
        assert at - done <= 4
    go_on(tmp_path)
    assert kept(tmp_path) == whole


def test_resumed_with_other_intervals(tmp_path: Path) -> None:
    def die(n: int) -> None:
        if n == 28:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, "save_every = steps(9), validate_every = 4", die)
    made = go_on(tmp_path, "train.validate_every=1", "train.save_every=minutes(5)")
    assert validated(tmp_path) == [1, 3, 4, 5]
    assert str(made.recipe.save_every) == "minutes(count=5)"
    note = made.progress.changes[0]
    assert "train.validate_every = epochs(count=1) (was epochs(count=4))" in note
    whole = tmp_path / "whole"
    run(whole, "seed = 1")
    assert final_states(tmp_path) == final_states(whole)


def test_a_run_that_is_ended_early_is_saved(tmp_path: Path) -> None:
    program = build_program(parse(UNCHANGED.replace("EVERY", "4, validate_every = 4")))
    made = Trainer(program, None, REFERENCE)
    made.run(tmp_path, lambda s: None, lambda m: m["epoch"] == 3)
    assert checkpoint.load(tmp_path / "last.safetensors").progress["epoch"] == 3
    assert checkpoint.load(tmp_path / "best.safetensors").progress["epoch"] == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    made = trainer("save_every = steps(3)")

    def spoil(n: int) -> None:
        if n == 6:  # between the update, whose loss was still finite, and saving
            name = "fc1.weight"
            value = made.state.backend.download(made.state.array(name))
            states = {**made.state.snapshot(), name: np.full_like(value, np.nan)}
            made.state.load(states, made.job.step_graph.states, "the test")

    with pytest.raises(NetError):
        made.run(tmp_path, lambda s: spoil(s.completed_steps), lambda m: None)
    saved = checkpoint.load(tmp_path / "last.safetensors")
    assert saved.progress["update"] == 3
    assert all(np.isfinite(v).all() for v in saved.states.values())


def test_a_process_killed_within_an_epoch_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """With signal 9, in its first epoch: without `save_every`, all would be lost."""
    file, out, whole = (tmp_path / name for name in ("small.net", "out", "whole"))
    text = NET.replace("batch = 128", "batch = 4")
    text += "train { optimizer = adam, epochs = 1, save_every = steps(20) }"
    file.write_text(text)
    command = (*NETDSL, "train", str(file), "--out", str(out), "--device", "reference")
    with start_process(*command, **NO_OUTPUT) as process:
        end = time.monotonic() + TIME_LIMIT
        while not (out / "last.safetensors").exists() and time.monotonic() < end:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait(TIME_LIMIT) == -signal.SIGKILL, "it was over before it was killed"
    saved = checkpoint.load(out / "last.safetensors").progress
    assert (saved["epoch"], saved["update"] % 20) == (0, 0)
    assert 0 < saved["update"] < 323
    go_on(out)
    made = Trainer(build_program(parse(text)), None, REFERENCE)
    made.run(whole, lambda s: None, lambda m: None)
    assert kept(out) == kept(whole)


def test_ranks_save_and_validate_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks save as often as one, an update later: the request travels with an update."""
    saves: list[tuple[int, int]] = []
    save_last = RunDirectory.save_last

    def record(directory: RunDirectory, s: Progress, data: str | None = None) -> None:
        saves.append((s.epoch, s.update))
        save_last(directory, s, data)

    monkeypatch.setattr(RunDirectory, "save_last", record)
    program = build_program(parse(f"{NET} train {{ {TRAIN}, save_every = steps(6), {RARE} }}"))

    def run_rank(communicator: Communicator) -> None:
        backend = REFERENCE.with_communicator(communicator)
        Trainer(program, None, backend).run(tmp_path, lambda s: None, lambda m: None)

    run_ranks(2, run_rank)
    assert validated(tmp_path) == [1, 2, 4, 5]
    ends = [update for epoch, update in saves if update == epoch * STEPS]
    within = [update for epoch, update in saves if update != epoch * STEPS]
    assert within == [7, 13, 19, 25, 37, 43, 49]
    assert ends == [10, 20, 30, 40, 50]  # the best so far; the third as it is due


# ---- what is refused


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("validate_every = 0", "from 1 to 100,000, not 0"),
        ("save_every = steps(0)", "`count` of `steps`"),
        ("save_every = minutes(0)", "above 0"),
        ("save_every = hours(1)", "unknown interval `hours`"),
        ("save_every = none", "a number of epochs, or `epochs"),
        ("validate_every = minutes(1), schedule = plateau", "would depend on the clock"),
        ("validate_every = minutes(1), deterministic = yes", "the clock cannot say"),
    ],
)
def test_what_is_refused(entries: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        resolve_recipe(build_program(parse(f"{NET} train {{ {entries} }}")))


def test_the_clock_may_say_when_a_deterministic_run_is_saved() -> None:
    entries = "save_every = minutes(1), deterministic = yes, schedule = plateau"
    resolve_recipe(build_program(parse(f"{NET} train {{ {entries} }}")))
