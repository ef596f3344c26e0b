"""The training loop: epochs of steps, validation, checkpoints, and the test set once at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.backends.base import Backend
from netdsl.backends.picked import made
from netdsl.data.inventory import skipped_lines
from netdsl.data.pictures import BadPicture, Pictures
from netdsl.data.samples import Batch, Samples, evaluation_batches, on_device
from netdsl.data.sources import SKIP
from netdsl.data.verifying import Verification
from netdsl.errors import NetError, fail
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.printable import printable_line
from netdsl.runtime.executor import Executor, FoldedExecutor, Workspace
from netdsl.runtime.state import State
from netdsl.training.job import Job, prepare_job
from netdsl.training.recipe.initial_weights import match_states, shapes_of
from netdsl.training.run.evaluate import Score, evaluate
from netdsl.training.run.memory import out_of_memory_error
from netdsl.training.run.nan_check import Fault, divergence_error, find_fault
from netdsl.training.run.stepper import Diverged, Stepper
from netdsl.training.step.graphs import SUM_SUFFIX
from netdsl.training.step.loss_scale import SCALE_STATES as SCALED
from netdsl.training.step.watch import WatchRequest, build_watch_graph, summarise_watch
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint, inference_states
from netdsl.training.store.pipeline_revisions import check_pipeline
from netdsl.training.store.progress import TIMING_METRICS, Progress, load_progress
from netdsl.training.store.resume import note_changes
from netdsl.training.store.run_directory import RUN_FILES, RunDirectory
from netdsl.training.store.warm_start import initialise_weights

__all__ = ["RUN_FILES", "Result", "StepReport", "Trainer"]


@dataclass(frozen=True)
class StepReport:
    """Where a run stands, for whoever watches it."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    images_per_second: float


OnStep = Callable[[StepReport], None]
OnEpoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Result:
    """A finished run: the metrics of its best epoch and of the test, and where the weights lie."""

    metrics: dict[str, Any]
    checkpoint: Path


class _StopRequested(Exception):
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
        self.job: Job = prepare_job(program, recipe_name, data_folder)
        self.recipe, self.steps = self.job.recipe, self.job.steps_per_epoch
        self.backend = backend = backend.repeatable() if self.recipe.deterministic else backend
        there = backend.free_bytes()
        try:
            self._allocate(backend, start, saved)
        except MemoryError:
            raise self._short(program, there) from None
        self.before = saved.net_text if saved else None
        self.said = len(self.job.dataset.faults)  # the inventory has them
        self.pace: dict[str, float] = {}

    def _allocate(
        self, backend: Backend, start: Checkpoint | None, saved: Checkpoint | None
    ) -> None:
        self.state = State(backend)
        standing = self._saved(saved) if saved else self._drawn(start)
        self.workspace = Workspace(backend, self.job.graphs)
        self.stepper = Stepper(self.job, self.state, standing, self.workspace)
        self.judging = State(backend) if self.recipe.ema else self.state
        self.judging.initialise(self.job.evaluation_graph.states, self.recipe.seed)
        self.evaluation = FoldedExecutor(
            self.job.folded_evaluation, backend, self.judging, self.workspace
        )
        self.stepper.upload_images()
        self.validation = on_device(self.job.validation, self.job.transform, backend)

    def _short(self, program: Program, there: int | None) -> NetError:
        """What is said where the run does not fit into memory."""
        at = lambda batch: self.job.with_batch(program, batch)
        return out_of_memory_error(self.job, self.backend.fusion, there, at)

    def _drawn(self, start: Checkpoint | None) -> Progress:
        recipe, states = self.recipe, self.job.network.graph.states
        if start is not None:
            given = inference_states(start.states)
            self.state.load(
                given, match_states(states, shapes_of(given), (), start.origin), start.origin
            )
        else:
            initialise_weights(self.state, states, recipe.init, recipe.spans.get("init"))
        self.state.initialise(self.job.step_graph.states, recipe.seed)
        return Progress()

    def _saved(self, saved: Checkpoint) -> Progress:
        self._check_data(saved)
        check_pipeline(saved, self.job)
        # a loss that was not scaled before begins with the recipe's scale
        anew = [name for name in SCALED if name not in saved.states]
        states = self.job.step_graph.states
        wanted = [n for n in states if not n.name.endswith(SUM_SUFFIX) and n.name not in anew]
        help = f'a new run begins with its weights by `init = weights("{saved.origin}")`'
        match_states(wanted, shapes_of(saved.states), (), saved.origin, help=help)
        self.state.load(saved.states, wanted, saved.origin)
        self.state.initialise(states, self.recipe.seed)
        standing, images = (
            load_progress(note_changes(saved, self.job.net_text)),
            len(self.job.train),
        )
        if standing.seen > images:
            seen = f"{standing.seen:,} of the {images:,} images of an epoch"
            raise fail(f"{saved.origin} cannot be resumed: it says that it has seen {seen}")
        return standing

    def _check_data(self, saved: Checkpoint) -> None:
        """Raises NetError where the run has learnt from other images than there are now."""
        before = saved.progress.get("data", self.job.data_fingerprint)
        if before not in (self.job.data_fingerprint, self.job.dataset.fingerprint_of_names):
            raise fail(
                f"the data are not those that the run of {saved.origin} has learnt from",
                notes=[f"then: {before}", f"now: {self.job.data_fingerprint}"],
                help="images that were held out would be trained on; put the data back, or begin "
                "a new run with `init = weights(...)`",
            )

    @property
    def progress(self) -> Progress:
        return self.stepper.progress

    # ---- the run

    def run(
        self,
        out: Path,
        watch: OnStep,
        tell: OnEpoch,
        asked: Callable[[], bool] = lambda: False,
        watching: WatchRequest | None = None,
        say: Callable[[str], None] = lambda words: None,
    ) -> Result:
        """Trains to the end. `watch` sees every step, `tell` every epoch's metrics; `out` receives
        all that the run keeps. Where `asked` says so, it saves and raises KeyboardInterrupt;
        `say` is told what was found damaged and mended.
        Raises NetError, naming the layer, where the loss is no finite number any more."""
        self.watch, self.asked, self.say = watch, asked, say
        self.watching = self._watching(watching) if watching else None
        self.directory = RunDirectory(out, self.job, self.state, self.progress, self.before, say)
        changed = self.before not in (None, self.job.net_text)
        if changed:  # so that a change is not forgotten where the run is cut off again
            self.directory.save_last(self.progress)
        try:
            with self._verifying() as self.verification:
                while not self.progress.is_finished(self.recipe):
                    tell(self._epoch())
                return self._end()
        except _StopRequested:
            self.directory.save_last(self.progress)
            raise KeyboardInterrupt from None
        except Diverged:
            raise self._stopped() from None
        except BadPicture as e:
            raise self._refused(e) from None

    def _epoch(self) -> dict[str, Any]:
        stepper, began, started = self.stepper, self.progress, time.perf_counter()
        with closing(stepper.prefetch_groups()) as groups:
            for group in groups:
                self._stop_if_asked()
                self.verification.check()
                stepper.take_snapshot()
                self._look(group[0])
                stepper.update(group)
                self._show(began, started)
        stepper.check_finite()
        seconds = time.perf_counter() - started
        if len(self.validation) and self._has_files:
            self.directory.save_last(self.progress)  # a damaged picture may end the judging
        score = self._score(self.validation) if len(self.validation) else None
        s = self.progress
        metrics: dict[str, Any] = {
            "epoch": s.epoch + 1,
            "step": s.update,
            "train_loss": s.loss / s.batches,
            "train_accuracy": s.hits / s.batches,
            "val_loss": score.loss if score else None,
            "val_accuracy": score.accuracy if score else None,
            "lr": float(stepper.last_learning_rate()),
            **stepper.scale_metrics(),
        }
        self.pace = dict(
            zip(TIMING_METRICS, (seconds, (s.seen - began.seen) / seconds), strict=True)
        )
        metrics |= self.pace
        self.directory.metrics_log.add(metrics)
        stepper.progress = s.finish_epoch(metrics)
        self.directory.save_epoch(stepper.progress)
        self._say_skipped()
        self._check_classes_left()
        return metrics

    def _show(self, began: Progress, started: float) -> None:
        s = self.progress
        rate = (s.seen - began.seen) / (time.perf_counter() - started)
        done, mean = s.seen // self.job.images_per_update, s.loss / s.batches if s.batches else None
        self.watch(StepReport(s.epoch, self.recipe.epochs, done, self.steps, mean, rate))

    def _stop_if_asked(self) -> None:
        if self.asked():
            self.stepper.synchronize()
            raise _StopRequested

    def _stopped(self) -> NetError:
        epoch, found = self.progress.epoch + 1, self.stepper.find_fault()
        where = f"step {found[0]:,} (epoch {epoch})" if found else f"epoch {epoch}"
        return self._told(found[1] if found else None, where, self.job.network)

    def _told(self, fault: Fault | None, where: str, network: Network) -> NetError:
        last, rate = self.directory.last, float(self.stepper.learning_rate())
        kept = f"{last}, of epoch {self.progress.epoch}" if last.exists() else None
        return divergence_error(network, fault, where, rate, kept)

    # ---- bad pictures

    def _verifying(self) -> Verification:
        """What decodes the pictures to judge by while the first epoch runs."""
        test = self.job.dataset.read_test
        parts = [self.job.validation, *([test()] if test is not None and self._has_files else [])]
        pictures = [x.images for x in parts if isinstance(x.images, Pictures)]
        return Verification(pictures, self.job.transform)

    @property
    def _has_files(self) -> bool:
        return isinstance(self.job.train.images, Pictures)

    def _refused(self, fault: BadPicture) -> NetError:
        """What is said of a bad picture, once what was learnt is saved. It may be put back, with
        others that are damaged too, so that the run goes on with pictures of these names."""
        try:
            self.stepper.synchronize()
        except Diverged:
            return self._stopped()
        self.directory.save_last(self.progress, self.job.dataset.fingerprint_of_names)
        first = fault.diagnostics[0]
        mend = first.help or "put it back whole"
        help = f"{mend}, then go on with `--resume`; {SKIP}, and so does "
        return fail(first.message, help=f"{help}`--resume DIR --set data.on_bad_picture=skip`")

    def _say_skipped(self) -> None:
        """Names the bad pictures that were met since it was last said."""
        faults = self.job.dataset.faults
        if len(faults) > self.said:
            self.say("\n".join(skipped_lines(faults)))
        self.said = len(faults)

    def _check_classes_left(self) -> None:
        """Raises NetError where every picture of a class to learn from is skipped."""
        if not self.said:
            return
        train, classes = self.job.train, self.job.dataset.classes
        left = np.bincount(train.labels, train.counted, len(classes))
        if not left.all():
            name = printable_line(classes[int(left.argmin())])
            raise fail(
                f"none of the pictures of `{name}` to learn from can be used",
                help="put some back whole, then begin a new run; or one without that class",
            )

    # ---- watching and measuring

    def _watching(self, watching: WatchRequest) -> tuple[WatchRequest, Executor]:
        graph = build_watch_graph(self.job.network, self.recipe, watching.quantities)
        return watching, Executor(graph, self.backend, self.state, workspace=self.workspace)

    def _look(self, batch: Batch) -> None:
        """What is watched, written down."""
        if self.watching is None or self.progress.update % self.watching[0].every:
            return
        self.stepper.synchronize()  # nothing is looked at that comes behind a fault
        executor = self.watching[1]
        out = executor.run(self.stepper.inputs(batch))
        plain = {k: self.backend.download(v) for k, v in out.items()}
        found = summarise_watch(executor.graph, plain, self.job.network)
        self.directory.metrics_log.add({"watched_at": self.progress.update, **found})

    def _score(self, samples: Samples) -> Score:
        if self.judging is not self.state:
            given = inference_states(self.state.snapshot())
            self.judging.load(given, self.job.evaluation_graph.states, "the average of the weights")
        score = self._measure(self.evaluation, samples)
        if not math.isfinite(score.loss):
            raise self._told(
                self._evaluation_fault(samples),
                f"the validation of epoch {self.progress.epoch + 1}",
                self.job.evaluation_network,
            )
        return score

    def _evaluation_fault(self, samples: Samples) -> Fault | None:
        """The first value that is not finite where every weight is."""
        states = self.judging.snapshot()
        for part in self._batches(samples):
            images = made(part.images)
            given = {self.job.image_input: images, "labels": part.labels, "weights": part.weights}
            fault = find_fault(self.job.evaluation_graph, {**states, **given})
            if fault is not None:
                return fault
        return None

    def _measure(self, executor: FoldedExecutor, samples: Samples) -> Score:
        stop = lambda batch, out: self._stop_if_asked()
        return evaluate(executor, self.job.image_input, self._batches(samples), stop)

    def _batches(self, samples: Samples) -> Iterator[Batch]:
        return evaluation_batches(samples, self.job.evaluation_network.batch, self.job.transform)

    def _end(self) -> Result:
        """The test set, read once, with the weights that validated best."""
        self.stepper.release_images()
        self.validation = self.job.validation
        path, number = self.directory.best, self.progress.best_epoch
        final = {"best_epoch": number, **self.progress.history[number - 1], **self.pace}
        if self.job.dataset.read_test is not None:
            best, state = checkpoint.load(path), State(self.backend)
            state.load(best.states, self.job.evaluation_graph.states, best.origin)
            samples = self.job.dataset.read_test()
            tester = FoldedExecutor(self.job.folded_evaluation, self.backend, state, self.workspace)
            score = self._measure(tester, samples)
            tested = {
                "test_loss": score.loss,
                "test_accuracy": score.accuracy,
                "test_top5": score.top5,
                "test_images": score.images,
            }
            self.directory.metrics_log.add({"best_epoch": number, **tested})
            final |= tested
        self._say_skipped()
        return Result(final | {"bad_pictures": list(self.job.dataset.faults)}, path)
