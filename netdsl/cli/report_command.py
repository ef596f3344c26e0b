"""The command that makes a page on one or several runs: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netdsl.cli.app import (
    OK,
    DataOption,
    DeviceOption,
    JsonOption,
    app,
    echo,
    echo_stderr,
    print_json,
)
from netdsl.cli.progress import show_progress

MAX_MISTAKES = 200


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of runs; several are compared."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The page: .html.")],
    data: DataOption = None,
    mistakes: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=MAX_MISTAKES, help="Number of misclassified images to show."
        ),
    ] = 20,
    time: Annotated[
        bool, typer.Option("--time/--no-time", help="Time a training step by layer.")
    ] = True,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Write a self-contained page on one or several runs: accuracy, curves, confused classes, worst
    mistakes, filters, graph, time and memory, recipe. Without the data set, the page shows only
    what the run directories contain. `--json` prints the numbers on the page.

    Example: netdsl report runs/digits-1 -o report.html
    """
    from netdsl.insight.report.report_file import write_report
    from netdsl.insight.report.run_report import ReportOptions

    options = ReportOptions(data, mistakes, time)
    with show_progress("reading runs") as display:
        found = write_report(runs, out, device, options, display.on_phase)
    for one in found:
        if one.problem:
            echo_stderr(f"{one.run.name} was not evaluated: {one.problem}")
    if as_json:
        print_json({"report": str(out), "runs": [one.as_json() for one in found]})
    else:
        echo(f"{out}: {', '.join(one.run.name for one in found)}")
    return OK
