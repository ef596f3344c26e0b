"""A sweep: checks all runs of a grid, then runs those that are not finished, and reads them all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from netdsl.backends.base import Backend
from netdsl.data.sources import GivenData, make_pin
from netdsl.errors import Diagnostic, NetError, fail, internal_error
from netdsl.language import syntax as s
from netdsl.language.format import format_file
from netdsl.language.override import Setting
from netdsl.language.program import Program, build_program, reject_read
from netdsl.training.metrics.table import MetricName
from netdsl.training.recipe.expectations import ExpectationResult, judge_expectations
from netdsl.training.recipe.lints import recipe_warnings
from netdsl.training.recipe.recipe import Recipe, resolve_recipe, stage_names
from netdsl.training.recipe.resolved_recipe import resolve_file
from netdsl.training.recipe.settings import override_recipe
from netdsl.training.run.phase import OnPhase, ignore_phase
from netdsl.training.run.stages import RunStage, prepare_stages, run_stages
from netdsl.training.run.sweep_grid import Combination, Grid, name_runs, seed_setting
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.training.store.finished_run import FinishedRun, read_finished_run
from netdsl.training.store.lock import lock_directories
from netdsl.training.store.resume import check_same_data, check_same_recipe, load_last
from netdsl.training.store.run_directory import RUN_FILES
from netdsl.training.store.warm_start import load_initial_weights


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: the name of its directory, its row in the table, and all that it sets."""

    name: str
    row: int
    combination: Combination
    seed: int
    settings: tuple[Setting, ...]

    @property
    def recipe(self) -> str | None:
        return self.combination.recipe

    def __str__(self) -> str:
        return self.combination.describe(self.seed)


@dataclass(frozen=True)
class Sweep:
    """The recipes of a file over a grid; `settings` are those that all runs have."""

    file: s.File
    grid: Grid
    settings: tuple[Setting, ...] = ()

    @cached_property
    def runs(self) -> tuple[SweepRun, ...]:
        """All combinations with the first seed, then with the next. Raises NetError if a setting
        does not fit the file."""
        rows = [*enumerate(self.grid.combinations)]
        seeds = [self._seeds(combination) for _, combination in rows]
        order = [(*row, seeds[row[0]][i]) for i in range(len(seeds[0])) for row in rows]
        names = name_runs([(combination, seed) for _, combination, seed in order])
        return tuple(
            SweepRun(name, *placed, self._settings(*placed[1:]))
            for name, placed in zip(names, order, strict=True)
        )

    def _seeds(self, combination: Combination) -> tuple[int, ...]:
        if self.grid.seeds:
            return self.grid.seeds
        settings = (*self.settings, *combination.settings)
        program = override_recipe(self.file, settings, combination.recipe)
        return (resolve_recipe(program, combination.recipe).seed,)

    def _settings(self, combination: Combination, seed: int) -> tuple[Setting, ...]:
        seeding = (seed_setting(seed),) if self.grid.seeds else ()
        return (*self.settings, *combination.settings, *seeding)

    def load_program(self, run: SweepRun) -> Program:
        """The file with the settings of a run."""
        return override_recipe(self.file, run.settings, run.recipe)

    def list_stage_notes(self) -> list[str]:
        """A note on each axis that is set in several stages of a recipe."""
        program, notes = build_program(self.file), []
        for recipe in self.grid.recipes:
            stages = [str(name) for name in stage_names(program, recipe)]
            keys = (a.key for a in self.grid.axes if a.key.startswith("train."))
            for key in keys if len(stages) > 1 else ():
                entry = key.removeprefix("train.")
                if not program.has_recipe(entry.partition(".")[0]):
                    where = f"{', '.join(stages[:-1])} and {stages[-1]}"
                    one = f"`train.{stages[-1]}.{entry}` only in {stages[-1]}"
                    notes.append(f"`{key}` is set in the stages {where}; {one}")
        return notes


@dataclass(frozen=True)
class RowFacts:
    """What is known about the runs of a row: the recipe, and of the data what needs no memory."""

    recipe: Recipe
    has_test_set: bool
    fingerprint: str
    name_fingerprint: str


def check_sweep(
    sweep: Sweep,
    metrics: Sequence[MetricName],
    data: GivenData,
    out: Path | None,
    warn: Callable[[Diagnostic], None],
) -> tuple[RowFacts, ...]:
    """Checks every run before the first one starts: its recipe, its data, its initial weights, that
    it can measure `metrics`, and that `out`, if given, holds no other run in its place. Returns
    what is known about each row. Raises NetError, naming the run, if something is wrong."""
    if out is not None and any((out / name).exists() for name in RUN_FILES):
        message = f"{out} is the directory of a run, but a sweep needs its own directory"
        raise fail(message, help="give another `--out`; no file is ever overwritten")
    known: dict[bytes, SweepRun] = {}
    facts: list[RowFacts] = []
    for run in sweep.runs:
        with _naming(run):
            program = sweep.load_program(run)
            pin = make_pin(data)
            resolved = resolve_file(program, run.recipe, pin)
            checksum = hashlib.sha256(format_file(resolved).encode()).digest()
            _check_different(run, known.setdefault(checksum, run))
            if out is not None:
                check_same_recipe(out / run.name, build_program(resolved, reject_read), pin)
            if run.row == len(facts):  # the first seed
                facts.append(_check_stages(program, run.recipe, data, metrics))
                for warning in recipe_warnings(program, run.recipe):
                    warn(warning)
    return tuple(facts)


def _check_different(run: SweepRun, first: SweepRun) -> None:
    if first is run:
        return
    pairs = zip(run.combination.settings, first.combination.settings, strict=True)
    keys = [f"`{a.key}`" for a, b in pairs if str(a) != str(b)]
    if run.recipe != first.recipe:
        help = "with these settings, the two recipes are the same"
    else:
        where = f"the recipe `{run.recipe}`" if run.recipe else "this recipe"
        help = (
            f"{' and '.join(keys)} changes nothing in {where}; `train.KEY` is set in every recipe "
            "of the file, `train.NAME.KEY` only in that one. Vary the keys of one recipe in a "
            "sweep of its own"
        )
    raise fail(f"`{first}` and `{run}` are the same run", help=help)


def _check_stages(
    program: Program, recipe: str | None, data: GivenData, metrics: Sequence[MetricName]
) -> RowFacts:
    jobs = prepare_stages(program, recipe, data, metrics)
    for job in jobs:
        if job.recipe.init is not None:
            load_initial_weights(job.recipe, job.network.graph.states)
    dataset = jobs[-1].dataset
    return RowFacts(
        jobs[-1].recipe,
        dataset.read_test is not None,
        dataset.fingerprint,
        dataset.name_fingerprint,
    )


@contextmanager
def _naming(run: SweepRun) -> Iterator[None]:
    try:
        yield
    except NetError as e:
        note = f"in the run {run}"
        raise NetError(*(replace(d, notes=(*d.notes, note)) for d in e.diagnostics)) from None


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended: with its metrics, or with the reason why it failed. `is_old` if it was
    finished before."""

    run: SweepRun
    found: FinishedRun | None = None
    reason: str | None = None
    expectations: tuple[ExpectationResult, ...] = ()
    is_old: bool = False

    @property
    def ok(self) -> bool:
        """Whether the run is finished, and all expectations of its recipe hold."""
        return self.found is not None and all(x.ok for x in self.expectations)

    @property
    def status(self) -> str:
        return "failed" if self.found is None else "finished"

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.found.metrics if self.found else {}


@dataclass(frozen=True)
class SweepRunner:
    """Runs a checked sweep in its directory; `run_stage` executes one run or stage of it. Every run
    measures `metrics` besides those of its recipe."""

    sweep: Sweep
    facts: Sequence[RowFacts]
    backend: Backend
    data: GivenData
    out: Path
    run_stage: RunStage
    on_phase: OnPhase = ignore_phase
    metrics: tuple[MetricName, ...] = ()

    def outcomes(self) -> Iterator[RunOutcome]:
        """Runs what is not finished, resumes what was interrupted, and yields the outcome of each.
        What goes wrong in a run is its outcome, and the next one starts; what a run has measured is
        always read from its directory."""
        with lock_directories(self.out):
            yield from map(self._try, self.sweep.runs)

    def _try(self, run: SweepRun) -> RunOutcome:
        try:
            return self._run(run)
        except NetError as e:
            return RunOutcome(run, reason=e.diagnostics[0].message)

    def _run(self, run: SweepRun) -> RunOutcome:
        program, folder = self.sweep.load_program(run), self.out / run.name
        last = load_last(folder)
        found = self._read(run, program, last)
        is_old = found is not None
        if found is None:
            run_stages(
                program,
                run.recipe,
                self.backend,
                self.data,
                folder,
                self.run_stage,
                last,
                self.on_phase,
                self.metrics,
            )
            found = self._read(run, program, load_last(folder))
        if found is None:
            raise internal_error(f"the run {folder} has ended without finishing")
        recipe = resolve_recipe(program, run.recipe)
        judged = judge_expectations(recipe.expectations, found.metrics, recipe.top_level)
        return RunOutcome(run, found, None, tuple(judged), is_old)

    def _read(self, run: SweepRun, program: Program, last: Checkpoint | None) -> FinishedRun | None:
        if last is None:
            return None
        facts = self.facts[run.row]
        check_same_data(last, facts.fingerprint, facts.name_fingerprint)
        recipe = resolve_recipe(program, run.recipe)
        before = [str(name) for name in stage_names(program, run.recipe)[:-1]]
        folder = self.out / run.name
        return read_finished_run(folder, last, recipe, before, facts.has_test_set)
