"""The training loop: epochs of updates, each epoch validated and saved; then one test."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from netdsl.training.job import Job
from netdsl.training.run.bad_pictures import PictureMonitor
from netdsl.training.run.callbacks import Callbacks, Result, StepReport, StopRequested
from netdsl.training.run.evaluator import Evaluator
from netdsl.training.run.interval_timers import IntervalTimer, ValidationTimer
from netdsl.training.run.phase import Phase
from netdsl.training.run.replicas import check_replicas
from netdsl.training.run.stepper import Stepper
from netdsl.training.run.watch_monitor import WatchMonitor
from netdsl.training.step.rank_reduction import SAVE, STOP
from netdsl.training.store.progress import TIMING_METRICS, Progress
from netdsl.training.store.run_directory import RunDirectory


def train(
    job: Job,
    stepper: Stepper,
    evaluator: Evaluator,
    directory: RunDirectory,
    pictures: PictureMonitor,
    callbacks: Callbacks,
    watch: WatchMonitor | None = None,
) -> Result:
    """Trains from `stepper.progress` to the end of the recipe.

    An epoch makes an update for each group of batches (several batches if the recipe accumulates),
    then validates and saves, each at the recipe's interval. `Progress` knows when a run is finished
    (all epochs, or no improvement within `patience`) and which epoch was the best; `on_epoch` may
    end it earlier. Raises StopRequested, Diverged and BadPicture, which `Trainer` handles.
    """
    communicator = stepper.state.backend.communicator

    def check_stop() -> None:
        if stepper.signals.agree(STOP, callbacks.should_stop()):
            stepper.synchronize()
            raise StopRequested

    def on_images(name: str, total: int, epoch: str = "") -> Callable[[int], None]:
        """What to call with the number of images that have been evaluated, of `total`."""

        def report(done: int) -> None:
            if communicator.any(callbacks.should_stop()):
                raise StopRequested
            callbacks.on_phase(Phase(name, done * communicator.size, total, epoch))

        callbacks.on_phase(Phase(name, 0, total, epoch))
        return report

    timing: dict[str, float | None] = {}
    saving = IntervalTimer(job.recipe.save_every, stepper.progress.mark)
    validating = ValidationTimer(job.recipe, stepper.progress)
    with pictures.verify_in_background() as verification:
        while not stepper.progress.is_finished(job.recipe):
            epoch = f"epoch {stepper.progress.epoch + 1}/{job.recipe.epochs}"
            callbacks.on_phase(Phase("starting", epoch=epoch))
            epoch_start, started = stepper.progress, time.perf_counter()
            with closing(stepper.prefetch_groups()) as groups:
                for group in groups:
                    check_stop()
                    verification.check()
                    stepper.take_snapshot()
                    if watch is not None:
                        watch.record(group[0])
                    stepper.update(group)
                    seconds = time.perf_counter() - started
                    callbacks.on_step(_step_report(job, epoch_start, stepper.progress, seconds))
                    if stepper.signals.agree(SAVE, saving.is_due(stepper.progress.mark)):
                        callbacks.on_phase(Phase("saving", epoch=epoch))
                        stepper.check_weights()
                        directory.save_last(stepper.progress)
                        saving.restart(stepper.progress.mark)
                        stepper.signals.clear(SAVE)
            stepper.check_finite()
            if stepper.signals.agree(STOP, False):  # a rank was asked before the last update
                raise StopRequested
            check_replicas(communicator, stepper.state, stepper.progress.epoch + 1)
            seconds = time.perf_counter() - started

            score = None
            if evaluator.has_validation and communicator.any(validating.is_due(stepper.progress)):
                validating.restart(stepper.progress)
                if pictures.are_files:
                    directory.save_last(stepper.progress)  # validation may meet a damaged picture
                score = evaluator.validate(on_images("validating", len(job.validation), epoch))
            callbacks.on_phase(Phase("saving", epoch=epoch))

            seen = stepper.progress.seen - epoch_start.seen
            rate = seen / seconds if seen else None
            timing = dict(zip(TIMING_METRICS, (seconds, rate), strict=True))
            metrics = _epoch_metrics(stepper, evaluator.metrics("val", score)) | timing
            directory.metrics_log.add(metrics)
            stepper.finish_epoch(metrics)
            is_due = communicator.any(saving.is_due(stepper.progress.mark))
            if is_saved := directory.save_epoch(stepper.progress, is_due):
                saving.restart(stepper.progress.mark)
                stepper.signals.clear(SAVE)
            pictures.check()  # it may end the run, so the epoch is saved first
            if callbacks.on_epoch(metrics) is True:
                if not is_saved:
                    directory.save_last(stepper.progress)
                break

        stepper.release_images()
        evaluator.release_images()
        result = _best_metrics(job, stepper.progress) | timing
        result |= _test(job, evaluator, directory, stepper.progress, on_images)
        pictures.report()
        return Result(result | {"bad_pictures": list(job.dataset.picture_errors)}, directory.best)


def _best_metrics(job: Job, progress: Progress) -> dict[str, Any]:
    best = progress.best_epoch(job.recipe.best)
    return {"best_epoch": best, **progress.history[best - 1]}


def _test(
    job: Job,
    evaluator: Evaluator,
    directory: RunDirectory,
    progress: Progress,
    on_images: Callable[[str, int], Callable[[int], None]],
) -> dict[str, Any]:
    """Reads the test set once, with the weights that validated best. Returns and records its
    metrics; none if there is no test set."""
    if job.dataset.read_test is None:
        return {}
    samples = job.dataset.read_test()
    score = evaluator.test(directory.best, samples, on_images("testing", len(samples)))
    metrics = evaluator.metrics("test", score) | {"test_images": score.images}
    best = progress.best_epoch(job.recipe.best)
    directory.metrics_log.add({"best_epoch": best, **metrics})
    return metrics


def _step_report(job: Job, epoch_start: Progress, now: Progress, seconds: float) -> StepReport:
    return StepReport(
        epoch=now.epoch,
        epochs=job.recipe.epochs,
        step=now.seen // job.images_per_update,
        steps=job.steps_per_epoch,
        loss=now.loss / now.batches if now.batches else None,
        images_per_second=(now.seen - epoch_start.seen) / seconds,
    )


def _epoch_metrics(stepper: Stepper, validation: Mapping[str, Any]) -> dict[str, Any]:
    p = stepper.progress
    return {
        "epoch": p.epoch + 1,
        "step": p.update,
        "train_loss": p.loss / p.batches,
        "train_accuracy": p.hits / p.batches,
        **validation,
        "lr": float(stepper.last_learning_rate()),
        **stepper.scale_metrics(),
    }
