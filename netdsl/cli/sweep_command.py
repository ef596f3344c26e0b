"""The command that trains a grid of recipes, values and seeds, and prints its table."""

from __future__ import annotations

import shlex
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import (
    CHECK_FAILED,
    OK,
    DataOption,
    DeviceOption,
    JsonOption,
    SavedExitCode,
    SetOption,
    app,
    echo_stderr,
    print_json,
    print_warnings,
)
from netdsl.cli.file_arguments import parse_argument
from netdsl.cli.progress import WorkDisplay, run_trainer, show_progress
from netdsl.file_io import split_file_and_name, write_atomically
from netdsl.interrupt import defer_interrupts

if TYPE_CHECKING:
    from netdsl.errors import Diagnostic
    from netdsl.training.metrics.table import MetricName
    from netdsl.training.run.callbacks import Result
    from netdsl.training.run.sweep import RunOutcome, SweepRunner
    from netdsl.training.run.sweep_table import SweepTable
    from netdsl.training.run.trainer import Trainer

RecipesArgument = Annotated[
    str,
    typer.Argument(metavar="FILE[:RECIPE,...]", help="A .net file; `-` reads stdin."),
]


@app.command()
def sweep(
    file: RecipesArgument,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'KEY=[...]'",
            help="A key as for --set, and a list of values; repeat it for a grid.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="A number of seeds (3 means 1 to 3), or a list such as 1,5,7."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A metric for the table instead of the default ones."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Directory of the sweep; default: sweeps/NAME-N."
        ),
    ] = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a line for each run to this file.")
    ] = None,
) -> int:
    """Train recipes with all combinations of values and seeds, and print a table of the means.

    Keys are the same as for --set: `train.KEY` applies to every recipe of the
    file, including those that run before another one, and `train.NAME.KEY`
    only to the recipe NAME. A bare name is a parameter of each recipe's net.

    Every run has its own directory in DIR, which works with `train --resume`,
    `eval` and so on. The same command with the same DIR continues a sweep:
    finished runs are read, others resumed. More values or seeds add runs.

    The exit code is 1 if a run fails, or if an expectation of its recipe does not hold.

    Example: netdsl sweep models/digits.net --vary 'train.optimizer.lr=[0.01, 0.001]' --seeds 3
    """
    from netdsl.backends import open_backend
    from netdsl.cli.sweep_display import show_failures, show_sweep
    from netdsl.language.override import parse_setting
    from netdsl.training.run.sweep import Sweep, SweepRunner, check_sweep
    from netdsl.training.run.sweep_grid import make_grid
    from netdsl.training.run.sweep_table import default_metrics, parse_metrics
    from netdsl.training.store.output_files import check_outputs
    from netdsl.training.store.run_directory import create_numbered

    path, names = split_file_and_name(file)
    recipes = [name.strip() for name in names.split(",")] if names is not None else [None]
    fixed = tuple(map(parse_setting, settings or ()))
    grid = make_grid(recipes, vary or (), seeds, fixed)
    if grid.size == 1 and not vary:
        echo_stderr(
            "nothing varies: `--vary 'train.optimizer.lr=[0.1, 0.01]'` gives values to compare, "
            "`--seeds 3` repeats runs"
        )
    asked = parse_metrics(metric or ())
    if csv is not None:
        check_outputs([csv], [Path(path)])
    backend = open_backend(device)
    planned = Sweep(parse_argument(path), grid, fixed)
    warnings: dict[Diagnostic, None] = {}
    with show_progress("reading data"):
        facts = check_sweep(planned, asked, data, out, lambda found: warnings.setdefault(found))
    print_warnings(warnings)
    metrics = asked or default_metrics([row.recipe for row in facts])
    # a default is measured where that costs nothing
    measured = asked or tuple(name for name in metrics if not name.metric.needs_scores)
    for note in planned.list_stage_notes():
        echo_stderr(note)
    folder = out if out is not None else create_numbered(Path("sweeps"), path)
    try:
        with show_progress() as display:
            run = partial(_run_quietly, display)
            runner = SweepRunner(
                planned, facts, backend, data, folder, run, display.on_phase, measured
            )
            table = _run_all(runner, metrics, display)
    except KeyboardInterrupt:
        options = [("--vary", vary or ()), ("--metric", metric or ()), ("--set", settings or ())]
        single = {"--seeds": seeds, "--data": data, "--csv": csv, "--out": folder}
        options += [(name, [str(value)]) for name, value in single.items() if value is not None]
        options += [("--device", [device])] if device != "auto" else []
        words = [x for name, values in options for value in values for x in (name, value)]
        command = shlex.join(["netdsl", "sweep", file, *words, *["--json"] * as_json])
        echo_stderr(f"continue it with `{command}`")
        raise
    if csv is not None:
        write_atomically(csv, table.as_csv().encode())
    if as_json:
        print_json(table.as_json(folder))
    else:
        show_sweep(table, asked)
    show_failures(table, folder, csv)
    return SavedExitCode(OK if table.ok else CHECK_FAILED)


def _run_quietly(display: WorkDisplay, trainer: Trainer, out: Path) -> Result:
    with defer_interrupts() as is_stop_requested:
        return run_trainer(trainer, out, display, True, is_stop_requested)


def _run_all(
    runner: SweepRunner, metrics: tuple[MetricName, ...], display: WorkDisplay
) -> SweepTable:
    """Executes a sweep with a line for each run; the files of its table are written after each."""
    from netdsl.cli.sweep_display import format_outcome
    from netdsl.training.run.sweep_table import SweepTable

    grid, total = runner.sweep.grid, len(runner.sweep.runs)
    display.print(f"{total:,} run{'s' * (total != 1)} in {runner.out}")
    outcomes: list[RunOutcome] = []
    started, new = time.perf_counter(), 0
    table = SweepTable.of(grid, metrics, ())
    titles = [f"[{i}/{total}] {run}: " for i, run in enumerate(runner.sweep.runs, 1)]
    display.title = titles[0]
    for outcome in runner.outcomes():
        outcomes.append(outcome)
        table = SweepTable.of(grid, metrics, outcomes)
        new += not outcome.is_old
        left = total - len(outcomes)
        if not outcome.is_old or not left:
            table.write(runner.out)
        pace = (time.perf_counter() - started) / new if new else None
        display.print(f"[{len(outcomes)}/{total}] {format_outcome(outcome, metrics, left, pace)}")
        display.title = titles[min(len(outcomes), total - 1)]
    return table
