"""The training loop: epochs of steps, validation, checkpoints, and the test set once at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netdsl import __version__
from netdsl.data import sources
from netdsl.data.samples import Dataset, Samples, split, training_batches
from netdsl.errors import fail
from netdsl.files import write_atomically
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file
from netdsl.language.program import Program
from netdsl.plan.backend import Backend
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.runtime.state import State
from netdsl.train import checkpoint
from netdsl.train.compile import compile_evaluation, compile_step
from netdsl.train.fit import check_fit, check_loss, single_input
from netdsl.train.metrics import Record, Score, evaluate, mean
from netdsl.train.recipe import resolve, written_out

EVALUATION_BATCH = 250
CLOCK = ("seconds", "images_per_second")
"""Metrics that differ from run to run; weights do not carry them."""
KEPT = ("recipe.net", "metrics.jsonl", "last.safetensors", "best.safetensors")
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


class Trainer:
    """One run of one recipe. Building it reads the data and checks all that can be wrong, so that
    a run that starts does not end for a reason that could have been known."""

    def __init__(
        self,
        program: Program,
        recipe_name: str | None,
        backend: Backend,
        data_folder: str | None = None,
    ) -> None:
        self.recipe_name = recipe_name
        self.recipe = recipe = resolve(program, recipe_name)
        self.net_text = format_file(written_out(program, recipe_name))
        network = elaborate(program, recipe.net, recipe.settings(training=True))
        evaluating = elaborate(
            program, recipe.net, recipe.settings(training=False, batch=EVALUATION_BATCH)
        )
        self.image = single_input(network)
        check_loss(network, recipe)
        step = compile_step(network, recipe)
        dataset = sources.load(recipe.data.source, data_folder)
        check_fit(network, dataset.train.images.shape[1:], dataset.classes)
        self.dataset: Dataset = dataset
        self.train, self.validation = split(dataset.train, recipe.data.validation, recipe.seed)
        self.steps = len(self.train) // recipe.data.batch
        if self.steps == 0:
            message = f"a batch of {recipe.data.batch} is more than the {len(self.train)} images"
            raise fail(message, help="set a smaller `batch` in the data section")
        self.state = State(backend)
        self.state.initialise(step.states, recipe.seed)
        self.step = Executor(step, backend, self.state)
        self.kept = evaluating.graph.states
        self.evaluation = FoldedExecutor(
            compile_evaluation(evaluating, recipe), backend, self.state
        )

    def run(self, out: Path, watch: Watcher, tell: Teller) -> Result:
        """Trains to the end. `watch` sees every step, `tell` every epoch's metrics; `out` receives
        all that the run keeps."""
        self.out = out
        header = f"# netdsl {__version__}, train {self.recipe_name or 'section'}\n"
        write_atomically(self.out / "recipe.net", (header + self.net_text).encode())
        record = Record(self.out / "metrics.jsonl")
        best: dict[str, Any] | None = None
        for epoch in range(self.recipe.epochs):
            metrics = self._epoch(epoch, watch)
            record.add(metrics)
            self._save("last", metrics)
            if best is None or _quality(metrics) > _quality(best):
                best = metrics
                self._save("best", metrics)
            tell(metrics)
        assert best is not None
        final = {"best_epoch": best["epoch"], **best}
        if self.dataset.read_test is not None:
            tested = self._test(self.dataset.read_test())
            record.add({"best_epoch": best["epoch"], **tested})
            final |= tested
        return Result(final, self.out / "best.safetensors")

    def _epoch(self, epoch: int, watch: Watcher) -> dict[str, Any]:
        recipe = self.recipe
        lr = np.float32(recipe.optimizer.arguments["lr"])
        losses, hits = [], []
        started = time.perf_counter()
        batches = training_batches(self.train, recipe.data.batch, recipe.seed, epoch)
        for i, batch in enumerate(batches):
            out = self.step.run(
                {
                    self.image: batch.images,
                    "labels": batch.labels,
                    "weights": batch.weights,
                    "lr": np.asarray(lr),
                    "step": np.asarray(epoch * self.steps + i, dtype=np.int32),
                    "seed": np.asarray(recipe.seed, dtype=np.int32),
                }
            )
            losses.append(float(out["loss"]))
            hits.append(float(out["accuracy"]))
            rate = (i + 1) * recipe.data.batch / (time.perf_counter() - started)
            watch(Progress(epoch, recipe.epochs, i + 1, self.steps, losses[-1], rate))
        seconds = time.perf_counter() - started
        validation = self._score(self.validation) if len(self.validation) else None
        return {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self.steps,
            "train_loss": mean(losses),
            "train_accuracy": mean(hits),
            "val_loss": validation.loss if validation else None,
            "val_accuracy": validation.accuracy if validation else None,
            "lr": float(lr),
            "seconds": seconds,
            "images_per_second": self.steps * recipe.data.batch / seconds,
        }

    def _score(self, samples: Samples) -> Score:
        return evaluate(self.evaluation, self.image, samples, EVALUATION_BATCH)

    def _test(self, samples: Samples) -> dict[str, Any]:
        """The test set, read once, with the weights that validated best."""
        best = checkpoint.load(self.out / "best.safetensors")
        self.state.load(best.states, self.kept, best.origin)
        score = self._score(samples)
        return {
            "test_loss": score.loss,
            "test_accuracy": score.accuracy,
            "test_top5": score.top5,
            "test_images": score.images,
        }

    def _save(self, name: str, metrics: dict[str, Any]) -> None:
        content = checkpoint.Checkpoint(
            self.state.snapshot(),
            self.net_text,
            self.dataset.classes,
            {k: v for k, v in metrics.items() if k not in CLOCK},
            {"epoch": metrics["epoch"], "step": metrics["step"]},
        )
        checkpoint.save(self.out / f"{name}.safetensors", content)


def _quality(metrics: dict[str, Any]) -> tuple[float, float]:
    """What the best checkpoint is best at: validation accuracy, then loss; the training loss where
    nothing is held out."""
    if metrics["val_accuracy"] is None:
        return 0.0, -metrics["train_loss"]
    return metrics["val_accuracy"], -metrics["val_loss"]
