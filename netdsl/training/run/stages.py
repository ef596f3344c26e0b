"""Recipes that run in sequence: each starts from the best weights of the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from netdsl.backends.base import Backend
from netdsl.data.sources import GivenData
from netdsl.language.program import Program
from netdsl.ranks.communicator import ONE_RANK, Communicator, share_path
from netdsl.training.checks import check_recipe
from netdsl.training.job import Job, prepare_job, resolve_text
from netdsl.training.metrics.table import MetricName
from netdsl.training.recipe.recipe import resolve_recipe, stage_names
from netdsl.training.recipe.resolved_recipe import without_expectations
from netdsl.training.run.callbacks import Result
from netdsl.training.run.phase import OnPhase, Phase, ignore_phase
from netdsl.training.run.trainer import Trainer
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import SUFFIX, Checkpoint
from netdsl.training.store.lock import lock_directories
from netdsl.training.store.metrics_log import read_test_metrics
from netdsl.training.store.progress import load_progress
from netdsl.training.store.recipe_file import write_recipe
from netdsl.training.store.resume import load_last
from netdsl.training.store.shared_checkpoint import share_checkpoint

RunStage = Callable[[Trainer, Path], Result]


def run_stages(
    program: Program,
    name: str | None,
    backend: Backend,
    data: GivenData,
    out: Path | Callable[[], Path],
    run: RunStage,
    saved: Checkpoint | None = None,
    on_phase: OnPhase = ignore_phase,
    metrics: Sequence[MetricName] = (),
) -> tuple[Trainer, Result]:
    """Runs a recipe after the recipes it comes after, each of these in a subdirectory of `out` with
    its name. `out` is created only after all checks have passed; all these directories are locked
    against other processes meanwhile. `saved` is the checkpoint to resume the last recipe from; the
    others resume from their own. `on_phase` is called with each phase of each run. The last recipe
    measures `metrics` besides those that it names."""
    *before, _ = stage_names(program, name)
    communicator = backend.communicator

    def make_folder() -> Path:
        """Rank 0 creates the directory of the run."""
        return out if isinstance(out, Path) else share_path(communicator, out)

    if not before or saved is not None:
        for stage in (*before, name):
            check_recipe(program, stage)
        only = Trainer(program, name, backend, data, None, saved, on_phase, metrics)
        folder = make_folder()
        with lock_directories(folder, communicator=communicator):
            return only, run(only, folder)
    on_phase(Phase("reading data"))
    prepare_stages(
        program, name, data, metrics, communicator
    )  # report errors in the data of later stages now
    unjudged_program = without_expectations(program)
    folder = make_folder()
    text = resolve_text(program, name, data)
    places = {str(stage): folder / str(stage) for stage in before}
    with lock_directories(folder, *places.values(), communicator=communicator):
        if communicator.is_root:
            write_recipe(folder / "recipe.net", name, text)
        start: Checkpoint | None = None
        for stage, place in places.items():
            start = _run_stage(unjudged_program, stage, backend, data, place, run, start, on_phase)
        trainer = Trainer(program, name, backend, data, start, None, on_phase, metrics)
        return trainer, run(trainer, folder)


def prepare_stages(
    program: Program,
    name: str | None,
    data: GivenData,
    metrics: Sequence[MetricName] = (),
    communicator: Communicator = ONE_RANK,
) -> tuple[Job, ...]:
    """The jobs of a recipe, which measures `metrics` besides its own, and of those before it, first
    to last. Raises NetError for all that can
    be wrong with them before one runs."""
    stages = stage_names(program, name)
    for stage in stages:
        check_recipe(program, stage)
    unjudged_program = without_expectations(program)
    before = (
        prepare_job(unjudged_program, stage, data, communicator=communicator)
        for stage in stages[:-1]
    )
    last = prepare_job(program, name, data, metrics=metrics, communicator=communicator)
    return (*before, last)


def _run_stage(
    program: Program,
    name: str,
    backend: Backend,
    data: GivenData,
    out: Path,
    run: RunStage,
    start: Checkpoint | None,
    on_phase: OnPhase,
) -> Checkpoint:
    """Runs a stage, as far as it is not finished, and returns its best weights."""
    communicator, best = backend.communicator, out / f"best{SUFFIX}"
    saved = share_checkpoint(communicator, lambda: load_last(out))
    recipe = resolve_recipe(program, name)
    over = saved is not None and load_progress(saved).is_finished(recipe)
    if not over or not communicator.share_flag(lambda: _has_results(out)):
        run(Trainer(program, name, backend, data, start, saved, on_phase), out)
    found = share_checkpoint(communicator, lambda: checkpoint.load(best))
    assert found is not None
    return found


def _has_results(out: Path) -> bool:
    """Whether a stage has its best weights and has been tested."""
    return bool(read_test_metrics(out / "metrics.jsonl")) and (out / f"best{SUFFIX}").is_file()
