"""The command that trains: a run, one that goes on, the overfitting of one batch."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import (
    FAULTY,
    OK,
    DataDir,
    Device,
    Filed,
    Json,
    Sets,
    Tune,
    app,
    print_json,
    say,
    show,
    warn,
)
from netdsl.cli.files import load_recipe, run_directory
from netdsl.cli.show import show_dry_run, show_overfit, with_progress
from netdsl.errors import fail
from netdsl.file_io import split_file_and_name
from netdsl.interrupt import defer_interrupts

if TYPE_CHECKING:
    from netdsl.backends.base import Backend
    from netdsl.language.program import Program
    from netdsl.training.run.callbacks import Result
    from netdsl.training.run.trainer import Trainer
    from netdsl.training.store.checkpoint import Checkpoint

OptionalFile = Annotated[
    str | None, typer.Argument(metavar="FILE[:RECIPE]", help="A .net file; `-` reads stdin.")
]


Resume = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Go on with the run in this directory.")
]


@app.command()
def train(
    file: OptionalFile = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of the run; runs/NAME-N unless given."),
    ] = None,
    resume: Resume = None,
    data: DataDir = None,
    device: Device = "auto",
    tune: Tune = None,
    shrink: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="A trial of a small version: channels divided by N; the images stay.",
        ),
    ] = None,
    settings: Sets = None,
    watch: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="gradients,activations: by layer, in metrics.jsonl."),
    ] = None,
    watch_every: Annotated[int, typer.Option(min=1, help="Updates between two looks.")] = 100,
    overfit: Annotated[
        bool, typer.Option("--overfit", help="Learn one batch by heart; nothing is kept.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Train a net by its recipe; metrics and checkpoints go to a run directory.

    Example: netdsl train models/digits.net --set train.epochs=5
    """
    from netdsl.backends import open_backend
    from netdsl.training.recipe.lints import recipe_warnings
    from netdsl.training.recipe.recipe import stage_names
    from netdsl.training.run.stages import run_stages
    from netdsl.training.step.watch import parse_watch
    from netdsl.training.store.lock import lock_directories

    watched = parse_watch(watch, watch_every) if watch is not None else None
    if shrink is not None:
        settings = [*(settings or ()), f"train.shrink={shrink}"]
    looks = dry_run or overfit
    # from before it is read, so that no other process goes on with it meanwhile
    with lock_directories(resume) if resume and resume.is_dir() and not looks else nullcontext():
        program, name, saved, folder = _begun(file, out, resume, settings)
        if resume is None:
            warn(recipe_warnings(program, name))

        staged = len(stage_names(program, name)) > 1

        def run(trainer: Trainer, out: Path) -> Result:
            if staged:
                say(f"train {trainer.job.name or 'section'}: {out}")
            say("\n".join(trainer.job.inventory.lines()))
            try:
                with defer_interrupts() as asked:
                    return with_progress(trainer, out, as_json, asked, watched)
            except KeyboardInterrupt:
                whole = out if trainer.job.name == name else out.parent
                say(f"go on with `{_going_on(whole, data, device, watch, watch_every)}`")
                raise

        backend = open_backend(device)
        if tune is not None:
            backend = backend.with_tuning(tune)
        if dry_run:
            return _dry_run(program, name, backend, data, as_json)
        if overfit:
            return _overfit(program, name, backend, data, as_json)
        trainer, result = run_stages(program, name, backend, data, folder, run, saved)
        return _report(trainer, result, as_json)


def _going_on(
    out: Path, data: Path | str | None, device: str, watch: str | None, every: int
) -> str:
    """The command that goes on with a run as it was begun; what the run itself keeps needs no
    saying again."""
    words = ["netdsl", "train", "--resume", str(out)]
    words += ["--data", str(data)] if data is not None else []
    words += ["--device", device] if device != "auto" else []
    words += ["--watch", watch, "--watch-every", str(every)] if watch is not None else []
    return shlex.join(words)


def _begun(
    file: str | None, out: Path | None, resume: Path | None, settings: list[str] | None
) -> tuple[Program, str | None, Checkpoint | None, Path | Callable[[], Path]]:
    """What is trained, which recipe, where its run stood, and where it is kept."""
    from netdsl.training.store.resume import load_continuation

    if resume is not None:
        if file is not None or out is not None:
            help = "`--set` changes it: `netdsl train --resume DIR --set train.epochs=20`"
            raise fail("a run that goes on has its own file and directory", help=help)
        found = load_continuation(resume, settings or ())
        for key, (old, new) in found.changes.items():
            say(f"{key} = {new}, was {old}")
        return found.program, None, found.saved, resume
    if file is None:
        raise fail("there is no file to train", help="netdsl train FILE, or --resume DIR")
    path, name = split_file_and_name(file)
    program = load_recipe(path, settings, name)
    return program, name, None, lambda: run_directory(path, out)


def _dry_run(
    program: Program, name: str | None, backend: Backend, data: str | None, as_json: bool
) -> int:
    from netdsl.training.job import prepare_job
    from netdsl.training.recipe.recipe import stage_names
    from netdsl.training.run.dry_run import dry_run

    found = {
        stage or "main": dry_run(
            prepare_job(program, stage, data, allow_missing=True), backend.fusion
        )
        for stage in stage_names(program, name)
    }
    if as_json:
        print_json({stage: run.as_json() for stage, run in found.items()})
    else:
        for run in found.values():
            show_dry_run(run)
    return OK


def _overfit(
    program: Program, name: str | None, backend: Backend, data: str | None, as_json: bool
) -> int:
    from netdsl.training.job import prepare_job
    from netdsl.training.run.overfit import overfit

    job = prepare_job(program, name, data)
    say("\n".join(job.inventory.lines()))
    found = overfit(job, backend)
    if as_json:
        print_json({"ok": found.ok, **asdict(found)})
    else:
        show_overfit(found)
    return OK if found.ok else FAULTY


def _report(trainer: Trainer, result: Result, as_json: bool) -> int:
    from netdsl.training.recipe.expectations import judge_expectations

    metrics = result.metrics
    judged = judge_expectations(trainer.recipe.expectations, metrics)
    if as_json:
        keys = ("train_loss", "val_accuracy", "test_accuracy", "images_per_second")
        report = {"epochs": trainer.progress.epoch, **{k: metrics.get(k) for k in keys}}
        expected = [{"text": m.text, "ok": m.ok, "found": m.figures} for m in judged]
        print_json(
            report
            | {"bad_pictures": metrics["bad_pictures"]}
            | {"checkpoint": str(result.checkpoint), "expectations": expected}
        )
    else:
        if metrics.get("test_accuracy") is not None:
            images = metrics["test_images"]
            show(f"test accuracy {metrics['test_accuracy']:.2%} on {images:,} images")
        show(f"weights in {result.checkpoint}")
    for m in judged:
        say(f"expected {m.text}: {m.figures}" + ("" if m.ok else ", so this FAILED"))
    return Filed(OK if all(m.ok for m in judged) else FAULTY)
