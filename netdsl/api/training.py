"""Training from Python: the runs of `netdsl train`, with plain results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Never

import numpy as np

from netdsl.api.arguments import format_settings, read_path, reject_other_arguments
from netdsl.api.net import Net, load
from netdsl.backends import open_backend
from netdsl.data.arrays import dataset_from_arrays
from netdsl.data.samples import Dataset
from netdsl.data.sources import NO_SOURCE, GivenData
from netdsl.errors import fail
from netdsl.file_io import split_file_and_name
from netdsl.interrupt import defer_interrupts, find_plain_interrupt
from netdsl.language import syntax as s
from netdsl.language.elaborate import elaborate
from netdsl.language.override import override
from netdsl.language.program import Program, build_program, parse_file
from netdsl.language.unparse import expression_text
from netdsl.training.recipe.expectations import (
    ExpectationResult,
    judge_expectations,
    needs_test_set,
)
from netdsl.training.recipe.lints import recipe_warnings
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.recipe.resolved_recipe import without_expectations
from netdsl.training.recipe.settings import override_recipe
from netdsl.training.run.callbacks import OnEpoch, Result, StepReport, format_epoch
from netdsl.training.run.heartbeat import Heartbeat
from netdsl.training.run.launch import launch
from netdsl.training.run.phase import ignore_phase
from netdsl.training.run.stages import run_stages
from netdsl.training.run.trainer import Trainer

ArraysInMemory = tuple[Any, Any] | Mapping[str, Any]
TrainingData = str | os.PathLike[str] | ArraysInMemory | None
Place = str | os.PathLike[str]


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    `metrics` are those of its best epoch and of the test set, if there is one: `best_epoch`,
    `train_loss`, `val_accuracy`, `test_accuracy`, ...; `history` contains those of every epoch, and
    `expectations` the results of the recipe's expectations. `checkpoint` is the file with the best
    weights, in the run's `directory`."""

    metrics: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    expectations: tuple[ExpectationResult, ...]
    directory: Path
    checkpoint: Path
    warnings: tuple[str, ...] = ()
    device: str = "auto"

    @property
    def ok(self) -> bool:
        """Whether all expectations of the recipe are met."""
        return all(x.ok for x in self.expectations)

    @cached_property
    def net(self) -> Net:
        """The net with the best weights. Raises NetError if the checkpoint no longer exists."""
        return load(self.checkpoint, self.device)


def train(
    file: Place | None = None,
    *others: Never,
    data: TrainingData = None,
    set: Mapping[str, Any] | None = None,
    out: Place | None = None,
    resume: Place | None = None,
    device: str = "auto",
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
    verbose: bool = False,
    **unknown: Never,
) -> TrainingResult:
    """Trains `FILE` or `FILE:RECIPE` as `netdsl train` does; its run directory is `out`, by
    default runs/NAME-N. With `resume` instead of a file, resumes the run in that directory.

    `data` is the folder of `--data`, or arrays that replace the recipe's source: `(images,
    labels)`, or a mapping with `x_train`, `y_train` and optionally `x_val`, `y_val`, `x_test`,
    `y_test` and `classes`. Without `x_test`, expectations about the test set are not
    checked, and `warnings` of the result says so. Images are uint8 [N,H,W,C] or [N,H,W]; floats [N,
    *input_shape] are used unchanged. Labels are integers from 0 without gaps, or names; or
    several per image, 0 and 1 [N, classes].

    `set` changes the recipe as `--set` does: `{"train.epochs": 5, "classes": 3}`; a string is .net
    text: `{"train.optimizer": "adam(lr=0.01)"}`.

    `on_epoch` is called with the metrics of every epoch, after it is saved. If it returns True, the
    epoch is the last one, and the run ends as usual; False or None continues.
    An exception ends the run immediately; Ctrl-C saves it first and then raises KeyboardInterrupt.
    `resume` continues either. With `verbose`, prints a line for each epoch, and the progress after
    each minute without output. Raises NetError for every problem with the file, the data or the
    machine, and if the loss is no longer finite."""
    reject_other_arguments(others, unknown)
    place, folder, again = _read_places(file, out, resume)
    backend = open_backend(device)
    if on_epoch is not None and not callable(on_epoch):
        raise fail(f"`on_epoch` is of type {type(on_epoch).__name__}, which cannot be called")
    settings = format_settings(set)
    given, parse = _read_data(data)
    heartbeat = Heartbeat(print) if verbose else None
    runner = _Runner(on_epoch, heartbeat)
    with launch(place, folder, again, settings, parse) as start, heartbeat or nullcontext():
        if given is None:
            _require_source(start.program, start.name, resume is not None)
        program, notes = _leave_out_unmeasured(start.program, start.name, given)
        warnings = (*(d.message for d in recipe_warnings(program, start.name)), *notes)
        for line in warnings:
            runner.show(f"warning: {line}")
        trainer, result = run_stages(
            program,
            start.name,
            backend,
            given,
            start.out,
            runner.run,
            start.saved,
            heartbeat.on_phase if heartbeat else ignore_phase,
        )
    recipe = trainer.recipe
    outcomes = judge_expectations(recipe.expectations, result.metrics, recipe.top_level)
    return TrainingResult(
        dict(result.metrics),
        tuple(map(dict, trainer.progress.history)),
        tuple(outcomes),
        result.checkpoint.parent,
        result.checkpoint,
        warnings,
        device,
    )


@dataclass(frozen=True)
class _Runner:
    """Runs a recipe; with a heartbeat, shows its epochs and where it is."""

    on_epoch: OnEpoch | None
    heartbeat: Heartbeat | None

    def show(self, line: str) -> None:
        if self.heartbeat is not None:
            self.heartbeat.print(line)

    def on_step(self, report: StepReport) -> None:
        if self.heartbeat is not None:
            self.heartbeat.on_step(report)

    def run(self, trainer: Trainer, out: Path) -> Result:
        for line in trainer.opening_lines():
            self.show(line)

        def on_epoch(metrics: dict[str, Any]) -> object:
            self.show(format_epoch(metrics, trainer.recipe))
            return _is_stop(self.on_epoch(dict(metrics))) if self.on_epoch else False

        try:
            with defer_interrupts(find_plain_interrupt) as is_stop_requested:
                result = trainer.run(out, self.on_step, on_epoch, is_stop_requested, log=self.show)
        except KeyboardInterrupt as e:
            e.add_note(f"resume the run with netdsl.train(resume={str(out)!r})")
            raise
        self.show(trainer.closing_line())
        return result


def _is_stop(returned: Any) -> bool:
    """Whether what `on_epoch` has returned ends the run: any true or false value of Python or NumPy
    says so, None does not. Anything else, such as the count that `file.write` returns, could mean
    either. Raises NetError for it."""
    if returned is None:
        return False
    value = np.asarray(returned)
    if value.dtype == bool and value.ndim == 0:
        return bool(value)
    raise fail(
        f"`on_epoch` returned a value of type {type(returned).__name__}",
        help="return True to end the run, and False or None to continue it; the epoch is saved, "
        "so `resume` "
        "continues the run",
    )


def fit_arrays(
    file: Place,
    make_dataset: Callable[[tuple[int, ...]], Dataset],
    choose_settings: Callable[[Program, str | None], Sequence[str]],
    device: str,
    folder: Path,
) -> tuple[Net, tuple[Mapping[str, Any], ...]]:
    """Trains a recipe on data in memory, and returns its net and the metrics of every epoch; the
    run directory is `folder`. `choose_settings` gives what to set in the program and its recipe of
    that name, `make_dataset` the data for the shape of the net's input. The recipe's expectations,
    which are about its own data, are not checked."""
    backend = open_backend(device)
    path, name = split_file_and_name(read_path(file, "file"))
    tree = drop_source(parse_file(path))
    settings = choose_settings(build_program(tree), name)
    program = without_expectations(override_recipe(tree, settings, name))
    recipe = resolve_recipe(program, name)
    network = elaborate(program, recipe.net, recipe.settings(training=False, batch=1))
    dataset = make_dataset(network.image_shape)
    runner = _Runner(None, None)
    trainer, result = run_stages(program, name, backend, dataset, folder, runner.run)
    return load(result.checkpoint, device), trainer.progress.history


_NET_HELP = """give the file of its recipe; after `net.save("x.safetensors")`, `set={"train.init": \
'weights("x.safetensors")'}` starts from its weights"""


def _read_places(file: Any, out: Any, resume: Any) -> tuple[str | None, Path | None, Path | None]:
    """The file of a run, its directory, and that of the run to resume. Raises NetError unless there
    is a new run or one to resume."""
    if file is None and resume is None:
        help = 'netdsl.train("FILE.net"), or netdsl.train(resume="DIR")'
        raise fail("there is no file to train", help=help)
    if resume is not None and (file is not None or out is not None):
        help = '`set` changes it: netdsl.train(resume="DIR", set={"train.epochs": 20})'
        raise fail("a resumed run has its own file and directory", help=help)
    of_net = _NET_HELP if isinstance(file, Net) else None
    place = None if file is None else read_path(file, "file", of_net)
    folder = None if out is None else Path(read_path(out, "out"))
    return place, folder, None if resume is None else Path(read_path(resume, "resume"))


def _require_source(program: Program, name: str | None, is_resumed: bool) -> None:
    """Raises NetError if a recipe whose data were not given names none itself."""
    if resolve_recipe(program, name).data.source.record is not NO_SOURCE:
        return
    if is_resumed:
        help = "pass the same data again: netdsl.train(resume=..., data=...)"
        raise fail("this run was trained on data passed to it, such as arrays", help=help)
    help = (
        '`data=(images, labels)` or `data="DIR"` passes data; `source = ...` in the file names a '
        "source"
    )
    raise fail("the data section has no `source`", help=help)


def _leave_out_unmeasured(
    program: Program, name: str | None, data: GivenData
) -> tuple[Program, list[str]]:
    """The program without expectations of a test set that data in memory do not have, and a note
    about each: they are about the data that these replace."""
    if not isinstance(data, Dataset) or data.read_test is not None:
        return program, []
    expectations = filter(needs_test_set, resolve_recipe(program, name).expectations)
    notes = [
        f"`expect {expression_text(condition)}` is not checked: the data set has no `x_test`"
        for condition in expectations
    ]
    return without_expectations(program, needs_test_set) if notes else program, notes


def _read_data(data: TrainingData) -> tuple[GivenData, Callable[[str], s.File]]:
    """The data for a run, and how to read its file: data in memory replace its source."""
    if data is None:
        return None, parse_file
    if isinstance(data, str | os.PathLike):
        return os.fspath(data), parse_file
    return dataset_from_arrays(data), lambda path: drop_source(parse_file(path))


def drop_source(file: s.File) -> s.File:
    """The file with data sections that name no source, at least one."""
    if not any(isinstance(i, s.Section) and i.kind == "data" for i in file.items):
        file = replace(file, items=(*file.items, s.Section(file.span, "data", None, ())))
    return override(file, ["data.source=none"])
