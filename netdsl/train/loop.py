"""The training loop: epochs of steps, validation, checkpoints, and the test set once at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.data.samples import Batch, Samples, grouped, training_batches
from netdsl.errors import NetError, fail
from netdsl.files import write_atomically
from netdsl.language.program import Program
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.train import checkpoint
from netdsl.train.checkpoint import SUFFIX, Checkpoint, usable
from netdsl.train.job import EVALUATION_BATCH, Job, prepare
from netdsl.train.metrics import Record, Score, evaluate
from netdsl.train.standing import CLOCK, Standing
from netdsl.train.start import adopted, shapes, weights_file
from netdsl.train.written import recipe_text
from netdsl.types import Array, Backend

KEPT = ("recipe.net", "metrics.jsonl", f"last{SUFFIX}", f"best{SUFFIX}")
"""The files of a run directory."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever watches it."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    images_per_second: float


Watcher = Callable[[Progress], None]
Teller = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Result:
    """A finished run: the metrics of its best epoch and of the test, and where the weights lie."""

    metrics: dict[str, Any]
    checkpoint: Path


class _Asked(Exception):
    """Somebody asked that the run stop."""


class Trainer:
    """One run of one recipe. Building it reads the data and checks all that can be wrong.

    It begins from weights drawn anew, from those of `start`, or where the run of `saved` stood.
    """

    def __init__(
        self,
        program: Program,
        recipe_name: str | None,
        backend: Backend,
        data_folder: str | None = None,
        start: Checkpoint | None = None,
        saved: Checkpoint | None = None,
    ) -> None:
        self.job: Job = prepare(program, recipe_name, data_folder)
        self.recipe, self.steps, self.backend = self.job.recipe, self.job.steps, backend
        self.standing = Standing()
        self.pace: dict[str, float] = {}
        self.state = State(backend)
        if saved is not None:
            self._go_on(saved)
        else:
            self._begin(start)
        job = self.job
        self.step = Executor(job.step, backend, self.state)
        self.accumulation = (
            Executor(job.accumulation, backend, self.state) if job.accumulation else None
        )
        self.judging = State(backend) if self.recipe.ema else self.state
        self.judging.initialise(job.evaluation.states, self.recipe.seed)
        self.evaluation = Executor(job.evaluation, backend, self.judging)

    def _begin(self, start: Checkpoint | None) -> None:
        left_out: tuple[str, ...] = ()
        if start is None and self.recipe.init is not None:
            path, left_out = weights_file(self.recipe.init)
            start = checkpoint.load(path)
        if start is not None:
            given, span = usable(start.states), self.recipe.spans.get("init")
            states = self.job.network.graph.states
            wanted = adopted(states, shapes(given), left_out, start.origin, span)
            self.state.load(given, wanted, start.origin)
        self.state.initialise(self.job.step.states, self.recipe.seed)

    def _go_on(self, saved: Checkpoint) -> None:
        adopted(self.job.step.states, shapes(saved.states), (), saved.origin)
        self.state.load(saved.states, self.job.step.states, saved.origin)
        try:
            self.standing = Standing.of(saved.progress)
        except ValueError as e:
            raise fail(f"{saved.origin} cannot be gone on from: {e}") from None

    # ---- the run

    def run(
        self,
        out: Path,
        watch: Watcher,
        tell: Teller,
        asked: Callable[[], bool] = lambda: False,
    ) -> Result:
        """Trains to the end. `watch` sees every step, `tell` every epoch's metrics; `out` receives
        all that the run keeps. Where `asked` says so, it saves and raises KeyboardInterrupt."""
        self.out, self.watch, self.asked = out, watch, asked
        text = recipe_text(self.job.name, self.job.net_text, self.standing.changes)
        write_atomically(out / "recipe.net", text.encode())
        self.record = Record.kept(out / "metrics.jsonl", self.standing.lines, self.standing.history)
        self._settle()
        try:
            while not self.standing.finished(self.recipe):
                tell(self._epoch())
            return self._end()
        except _Asked:
            self._save_last()
            raise KeyboardInterrupt from None

    def _epoch(self) -> dict[str, Any]:
        began, started = self.standing, time.perf_counter()
        batches = training_batches(
            self.job.train, self.recipe.data.batch, self.recipe.seed, began.epoch, began.seen
        )
        rate = self._rate()
        for group in grouped(batches, self.recipe.accumulate):
            self._stop_if_asked()
            rate = self._rate()
            self._update(group, rate)
            self._show(began, started)
        seconds = time.perf_counter() - started
        score = self._score(self.job.validation) if len(self.job.validation) else None
        s = self.standing
        metrics: dict[str, Any] = {
            "epoch": s.epoch + 1,
            "step": s.update,
            "train_loss": s.loss / s.batches,
            "train_accuracy": s.hits / s.batches,
            "val_loss": score.loss if score else None,
            "val_accuracy": score.accuracy if score else None,
            "lr": float(rate),
        }
        self.pace = dict(zip(CLOCK, (seconds, (s.seen - began.seen) / seconds), strict=True))
        metrics |= self.pace
        self._keep(metrics)
        return metrics

    def _rate(self) -> Array:
        return np.float32(self.standing.rate(self.recipe, self.steps))

    def _update(self, group: tuple[Batch, ...], rate: Array) -> None:
        """One update of the weights, over one batch or several."""
        losses, hits = [], []
        for i, batch in enumerate(group):
            last = i == len(group) - 1
            executor = self.step if last or self.accumulation is None else self.accumulation
            out = executor.run(self._inputs(batch, i, rate))
            losses.append(float(out["loss"]))
            hits.append(float(out["accuracy"]))
        self.standing = self.standing.after(self.job.images, losses, hits)

    def _inputs(self, batch: Batch, i: int, rate: Array) -> dict[str, Array]:
        s, ema = self.standing, self.recipe.ema
        return {
            self.job.image: batch.images,
            "labels": batch.labels,
            "weights": batch.weights,
            "lr": np.asarray(rate),
            "step": np.asarray(s.step + i, dtype=np.int32),
            "update": np.asarray(s.update, dtype=np.int32),
            "seed": np.asarray(self.recipe.seed, dtype=np.int32),
            "ema_rate": np.asarray(s.ema_rate(ema) if ema else 0, dtype=np.float32),
        }

    def _show(self, began: Standing, started: float) -> None:
        s = self.standing
        rate = (s.seen - began.seen) / (time.perf_counter() - started)
        done, mean = s.seen // self.job.images, s.loss / s.batches
        self.watch(Progress(s.epoch, self.recipe.epochs, done, self.steps, mean, rate))

    def _score(self, samples: Samples) -> Score:
        if self.judging is not self.state:
            given = usable(self.state.snapshot())
            self.judging.load(given, self.evaluation.graph.states, "the average of the weights")
        return self._measure(self.evaluation, samples)

    def _measure(self, executor: Executor, samples: Samples) -> Score:
        stop = lambda batch, out: self._stop_if_asked()
        return evaluate(executor, self.job.image, samples, EVALUATION_BATCH, stop)

    def _stop_if_asked(self) -> None:
        if self.asked():
            raise _Asked

    def _end(self) -> Result:
        """The test set, read once, with the weights that validated best."""
        path = self.out / f"best{SUFFIX}"
        number = self.standing.best
        final = {"best_epoch": number, **self.standing.history[number - 1], **self.pace}
        if self.job.dataset.read_test is not None:
            best, state = checkpoint.load(path), State(self.backend)
            state.load(best.states, self.job.evaluation.states, best.origin)
            samples = self.job.dataset.read_test()
            score = self._measure(Executor(self.job.evaluation, self.backend, state), samples)
            tested = {
                "test_loss": score.loss,
                "test_accuracy": score.accuracy,
                "test_top5": score.top5,
                "test_images": score.images,
            }
            self.record.add({"best_epoch": number, **tested})
            final |= tested
        return Result(final, path)

    # ---- what is kept

    def _keep(self, metrics: dict[str, Any]) -> None:
        """An epoch is over. The last checkpoint is written before the best, so that wherever a run
        is cut off, the last one can make up for what is missing."""
        self.standing = self.standing.with_epoch(metrics, self.record.count + 1)
        self.record.add(metrics)
        self._save_last()
        if self.standing.best == self.standing.epoch:
            self._save_usable("best")
        self._keep_for_good()

    def _keep_for_good(self) -> None:
        every, epoch = self.recipe.keep_every, self.standing.epoch
        if every and epoch and epoch % every == 0:
            self._save_usable(f"epoch-{epoch:04}")

    def _settle(self) -> None:
        """What a run that was cut off had no time to keep. Raises NetError where the best weights
        are lost."""
        s, path = self.standing, self.out / f"best{SUFFIX}"
        if s.epoch == 0:
            return
        try:
            there = checkpoint.load(path).progress.get("epoch")
        except NetError:
            if s.best != s.epoch or s.seen:
                raise
            there = None
        if s.best == s.epoch and s.seen == 0 and there != s.epoch:
            self._save_usable("best")
        if s.seen == 0:
            self._keep_for_good()

    def _save_last(self) -> None:
        self._save("last", self.state.snapshot())

    def _save_usable(self, name: str) -> None:
        """Only what evaluation needs; of averaged weights the average."""
        given = usable(self.state.snapshot())
        self._save(name, {n.name: given[n.name] for n in self.job.evaluation.states})

    def _save(self, name: str, states: dict[str, Array]) -> None:
        s = self.standing
        metrics = s.history[-1] if s.history else {}
        content = Checkpoint(
            states, self.job.net_text, self.job.dataset.classes, metrics, s.as_json()
        )
        checkpoint.save(self.out / f"{name}{SUFFIX}", content)
