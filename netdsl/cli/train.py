"""The command that trains: a new run, a resumed one, or the overfitting of one batch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl.cli.app import (
    CHECK_FAILED,
    INTERRUPTED,
    OK,
    DataOption,
    DeviceOption,
    JsonOption,
    SavedExitCode,
    SetOption,
    StoppedExitCode,
    TuneOption,
    app,
    echo,
    echo_stderr,
    print_json,
    print_warnings,
)
from netdsl.cli.display import show_dry_run, show_overfit
from netdsl.cli.follow_options import FollowOptions
from netdsl.cli.progress import run_trainer, show_progress
from netdsl.cli.rank_options import (
    NotedDisplay,
    RanksOption,
    check_same_options,
    check_same_program,
    make_parser,
    start_ranks,
)
from netdsl.errors import fail
from netdsl.interrupt import Stopped

if TYPE_CHECKING:
    from netdsl.backends.base import Backend
    from netdsl.language.program import Program
    from netdsl.training.recipe.recipe import Recipe
    from netdsl.training.run.callbacks import Result
    from netdsl.training.run.trainer import Trainer

OptionalFileArgument = Annotated[
    str | None, typer.Argument(metavar="FILE[:RECIPE]", help="A .net file; `-` reads stdin.")
]


ResumeOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Resume the run in this directory.")
]


@app.command()
def train(
    file: OptionalFileArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Directory of the run; default: runs/NAME-N."
        ),
    ] = None,
    resume: ResumeOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    tune: TuneOption = None,
    shrink: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Train a small version: channels divided by N, images unchanged.",
        ),
    ] = None,
    settings: SetOption = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Record gradients, activations or both "
            "(gradients,activations) per layer in metrics.jsonl.",
        ),
    ] = None,
    watch_every: Annotated[
        int, typer.Option(min=1, help="Number of updates between records.")
    ] = 100,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep a plot of the run up to date: .png, .svg or .pdf.",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files to RUN/tensorboard.")
    ] = False,
    tensorboard_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write event files for TensorBoard to this folder."),
    ] = None,
    overfit: Annotated[
        bool, typer.Option("--overfit", help="Overfit one batch; nothing is saved.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run would do, without starting it.")
    ] = False,
    ranks: RanksOption = None,
    requeue: Annotated[
        bool,
        typer.Option(
            "--requeue",
            help="Continue the run in --out if it was started before; else start it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Train a net by its recipe; metrics and checkpoints go to a run directory.

    Example: netdsl train models/digits.net --set train.epochs=5
    """
    if (code := start_ranks(ranks)) is not None:
        return code

    from netdsl.backends import open_backend
    from netdsl.ranks.world import current_world
    from netdsl.training.recipe.lints import recipe_warnings
    from netdsl.training.recipe.recipe import list_choices, stage_names
    from netdsl.training.run.launch import launch, launch_or_continue
    from netdsl.training.run.stages import run_stages
    from netdsl.training.step.watch import parse_watch

    watch_settings = parse_watch(watch, watch_every) if watch is not None else None
    if shrink is not None:
        settings = [*(settings or ()), f"train.shrink={shrink}"]
    follow = FollowOptions(plot, tensorboard, tensorboard_dir)
    is_preview = dry_run or overfit
    world = current_world()
    communicator = world.communicator
    options = {"set": settings, "device": device, "watch": watch, "watch-every": watch_every}
    modes = {"dry-run": dry_run, "overfit": overfit, "requeue": requeue, "json": as_json}
    check_same_options(communicator, {**options, **modes, "resume": resume is not None})
    if overfit and not communicator.is_alone:
        raise fail("`--overfit` runs on one rank", help="leave out `--ranks`, or the launcher")
    if communicator.is_root and not is_preview:
        is_continued = requeue and out is not None and (out / "recipe.net").is_file()
        follow.check(file, out, out if is_continued else resume)
    parse = make_parser(communicator)
    if requeue:
        _check_requeue(out, resume, is_preview)
    starting = (
        launch_or_continue(file, out, settings or (), data, parse, communicator)
        if requeue and out is not None
        else launch(file, out, resume, settings or (), parse, is_preview, communicator)
    )
    with starting as start:
        program, name = start.program, start.name
        for key, (old, new) in start.changes.items():
            echo_stderr(f"{key} = {new}, was {old}")
        if start.is_new:
            print_warnings(recipe_warnings(program, name))
            for note in list_choices(program, name):
                echo_stderr(note)

        has_stages = len(stage_names(program, name)) > 1

        def run(trainer: Trainer, out: Path) -> Result:
            if has_stages:
                display.print(f"train {trainer.job.name or 'section'}: {out}")
            display.print("\n".join(trainer.opening_lines()))
            run_root = out if trainer.job.name == name else out.parent
            recorders = follow.make_recorders(out, run_root) if communicator.is_root else {}
            try:
                with world.defer_interrupts() as is_stop_requested:
                    result = run_trainer(
                        trainer, out, display, as_json, is_stop_requested, watch_settings, recorders
                    )
            except KeyboardInterrupt:
                size = communicator.size if not communicator.is_alone else None
                arguments = _format_resume_command(
                    run_root, data, device, watch, watch_every, ranks or size
                )
                command = shlex.join([*arguments, *follow.arguments])
                display.print(f"resume it with `{command}`")
                raise
            display.print(trainer.closing_line())
            return result

        backend = open_backend(device)
        check_same_program(communicator, program, name, backend)
        if not communicator.is_alone:
            backend = backend.with_communicator(communicator)
        if tune is not None:
            backend = backend.with_tuning(tune)
        if dry_run:
            return _dry_run(program, name, backend, data, as_json)
        if overfit:
            return _overfit(program, name, backend, data, as_json)
        with show_progress() as shown:
            display = NotedDisplay(shown, communicator)
            try:
                trainer, result = run_stages(
                    program, name, backend, data, start.out, run, start.saved, display.on_phase
                )
            except Stopped:
                return StoppedExitCode(INTERRUPTED)
        return _print_report(trainer, result, as_json)


def _check_requeue(out: Path | None, resume: Path | None, is_preview: bool) -> None:
    """Raises NetError where `--requeue` says nothing."""
    if resume is not None:
        raise fail(
            "`--requeue` and `--resume` both say where a run continues",
            help="`netdsl train FILE --out DIR --requeue` starts the run, or continues it",
        )
    if out is None:
        help = "name the directory of the run with `--out DIR`: every start is to use the same one"
        raise fail("`--requeue` needs `--out`", help=help)
    if is_preview:
        raise fail("`--requeue` continues a run, but here nothing is saved", help="leave it out")


def _format_resume_command(
    out: Path,
    data: Path | str | None,
    device: str,
    watch: str | None,
    watch_every: int,
    ranks: int | None,
) -> list[str]:
    """The command that resumes a run with the same options; those that the run saves are left
    out."""
    arguments = ["netdsl", "train", "--resume", str(out)]
    arguments += ["--data", str(data)] if data is not None else []
    arguments += ["--device", device] if device != "auto" else []
    arguments += ["--ranks", str(ranks)] if ranks is not None else []
    arguments += ["--watch", watch, "--watch-every", str(watch_every)] if watch is not None else []
    return arguments


def _dry_run(
    program: Program, name: str | None, backend: Backend, data: str | None, as_json: bool
) -> int:
    from netdsl.training.job import prepare_job
    from netdsl.training.recipe.recipe import stage_names
    from netdsl.training.run.dry_run import dry_run

    with show_progress("reading data and planning"):
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
    from netdsl.training.run.phase import Phase

    with show_progress("reading data") as display:
        job = prepare_job(program, name, data)
        display.print("\n".join(job.inventory.lines()))
        display.on_phase(Phase("overfitting"))
        found = overfit(job, backend)
    if as_json:
        print_json({"ok": found.ok, **asdict(found)})
    else:
        show_overfit(found)
    return OK if found.ok else CHECK_FAILED


def _format_test(metrics: Mapping[str, Any], recipe: Recipe) -> str:
    """The accuracy on the test images, and the metric that chose the weights."""
    from netdsl.training.metrics.table import METRIC_NAMES, format_metric

    names = [METRIC_NAMES["test_accuracy"]]
    if recipe.best is not None:
        names.append(replace(recipe.best.metric, part="test"))
    shown = (n for n in dict.fromkeys(names) if str(n) in metrics)
    return ", ".join(f"{n.title} {format_metric(metrics[str(n)], n.metric)}" for n in shown)


def _print_report(trainer: Trainer, result: Result, as_json: bool) -> int:
    from netdsl.training.metrics.table import METRIC_NAMES
    from netdsl.training.recipe.expectations import judge_expectations

    metrics = result.metrics
    outcomes = judge_expectations(trainer.recipe.expectations, metrics, trainer.recipe.top_level)
    if as_json:
        requested = map(str, trainer.recipe.requested_metrics)
        keys = dict.fromkeys(["best_epoch", *METRIC_NAMES, *requested, "images_per_second"])
        size = trainer.backend.communicator.size
        report = {
            "epochs": trainer.progress.epoch,
            "ranks": size,
            **{k: metrics.get(k) for k in keys},
        }
        expected = [{"text": m.text, "ok": m.ok, "found": m.figures} for m in outcomes]
        print_json(
            report
            | {"bad_pictures": metrics["bad_pictures"]}
            | {"checkpoint": str(result.checkpoint), "expectations": expected}
        )
    else:
        if metrics.get("test_accuracy") is not None:
            echo(f"{_format_test(metrics, trainer.recipe)} on {metrics['test_images']:,} images")
        echo(f"weights in {result.checkpoint}")
    for m in outcomes:
        echo_stderr(f"expected {m.text}: {m.figures}" + ("" if m.ok else ", so this FAILED"))
    return SavedExitCode(OK if all(m.ok for m in outcomes) else CHECK_FAILED)
