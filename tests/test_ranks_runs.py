"""Whole runs on several ranks: one directory, one stop, and a run that continues on others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.data.samples import Batch
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.training.run.callbacks import Result, StepReport
from netdsl.training.run.trainer import Trainer
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.types import Array
from tests.thread_ranks import run_ranks

TEXT = """
net small {
  input(8x8x1) -> conv(8, 3x3, pad=1) -> batchnorm(sync=yes) -> relu -> maxpool(2x2)
  -> dropout(0.2) -> fc(10)
}
data { source = digits, batch = 40 }
train {
  optimizer = sgd(lr=0.05, momentum=0.9), schedule = cosine, epochs = 3, ema = 0.9
}
"""


def start(communicator: Communicator, saved: Checkpoint | None = None, text: str = TEXT) -> Trainer:
    program = build_program(parse(text))
    backend = open_backend("cpu").with_communicator(communicator)
    return Trainer(program, None, backend, saved=saved)


class StopAt:
    """Asks one rank to stop after a number of its updates."""

    def __init__(self, update: int | None) -> None:
        self.update, self.seen = update, 0

    def on_step(self, report: StepReport) -> None:
        self.seen += 1

    def is_asked(self) -> bool:
        return self.update is not None and self.seen >= self.update


def run_rank(
    communicator: Communicator,
    out: Path,
    stop: int | None = None,
    stopping_rank: int = 0,
    saved: Checkpoint | None = None,
) -> Result | None:
    """What the run of a rank returns; None if it was stopped."""
    trainer = start(communicator, saved)
    asked = StopAt(stop if communicator.rank == stopping_rank else None)
    try:
        return trainer.run(out, asked.on_step, lambda metrics: None, asked.is_asked)
    except KeyboardInterrupt:
        return None


def run(size: int, out: Path, **options: Any) -> list[Result | None]:
    out.mkdir(exist_ok=True)
    if size == 1:
        return [run_rank(ONE_RANK, out, **options)]
    return run_ranks(size, lambda c: run_rank(c, out, **options))


def weights(folder: Path, name: str = "last") -> Checkpoint:
    return checkpoint.load(folder / f"{name}.safetensors")


def difference(a: Checkpoint, b: Checkpoint) -> float:
    assert a.states.keys() == b.states.keys()
    return max(float(np.abs(a.states[k] - b.states[k]).max()) for k in a.states)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one rank."""
    out = tmp_path_factory.mktemp("one")
    run(1, out)
    return out


def test_a_run_on_ranks_has_the_metrics_and_files_of_one(whole: Path, tmp_path: Path) -> None:
    results = run(4, tmp_path / "four")
    assert sorted(p.name for p in (tmp_path / "four").iterdir()) == sorted(
        p.name for p in whole.iterdir()
    )
    one, four = read_metrics(whole), read_metrics(tmp_path / "four")
    assert len(one) == len(four)
    for a, b in zip(one, four, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "images_per_second"}:
            is_of_decisions = not key.endswith("loss") and key not in ("epoch", "step", "lr")
            most = 5e-3 if is_of_decisions else 2e-4  # one image decided otherwise
            assert b[key] == pytest.approx(a[key], abs=most), key
    timing = ("seconds", "images_per_second")
    figures = [{k: v for k, v in r.metrics.items() if k not in timing} for r in results if r]
    assert len(figures) == 4
    assert all(found == figures[0] for found in figures)


@pytest.mark.parametrize("stopping_rank", [0, 3])
def test_all_stop_after_one_update_and_continue_on_other_ranks(
    stopping_rank: int, whole: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    assert run(4, first, stop=50, stopping_rank=stopping_rank) == [None] * 4
    saved = weights(first)
    assert saved.progress["update"] in (50, 51)
    again = tmp_path / "again"
    run(4, again)
    for size in (4, 2, 1):
        out = tmp_path / f"on{size}"
        out.mkdir()
        for name in ("recipe.net", "metrics.jsonl", "last.safetensors", "best.safetensors"):
            (out / name).write_bytes((first / name).read_bytes())
        run(size, out, saved=weights(out))
        assert difference(weights(out), weights(whole)) <= 1e-4
        if size == 4:
            assert difference(weights(out), weights(again)) == 0
            assert difference(weights(out, "best"), weights(again, "best")) == 0
        else:
            assert difference(weights(out), weights(again)) <= 1e-5


def run_with(change: Callable[[Trainer], None], out: Path) -> str:
    """What ends a run on three ranks, of which rank 1 is changed before it starts."""

    def work(communicator: Communicator) -> str:
        trainer = start(communicator, text=TEXT.replace("batch = 40", "batch = 39"))
        if communicator.rank == 1:
            change(trainer)
        with pytest.raises(NetError) as e:
            trainer.run(out, lambda report: None, lambda metrics: None)
        return e.value.render()

    first, *others = run_ranks(3, work)
    assert others == [first] * 2
    return first


def test_a_nan_on_one_rank_ends_all_and_names_it(tmp_path: Path) -> None:
    def lose_a_batch(trainer: Trainer) -> None:
        inputs = trainer.stepper.inputs

        def with_nan(batch: Batch, i: int = 0) -> dict[str, Array]:
            given = inputs(batch, i)
            if trainer.stepper.progress.update == 7:
                given["weights"] = given["weights"] * np.float32(np.nan)
            return given

        trainer.stepper.inputs = with_nan  # type: ignore[method-assign]

    message = run_with(lose_a_batch, tmp_path)
    assert "NaN in step 8 (epoch 1), on rank 1 on host1, first in `weights`" in message


def test_weights_that_differ_are_found_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    def nudge(trainer: Trainer) -> None:
        trainer.state.arrays["fc1.bias"][0] += np.float32(1e-3)

    message = run_with(nudge, tmp_path)
    assert (
        "after epoch 1, the weights of rank 1 on host1 are not those of the other ranks" in message
    )
