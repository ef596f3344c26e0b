"""The command that plots the metrics of runs: plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netdsl.cli.app import OK, JsonOption, app, echo, print_json
from netdsl.errors import fail


@app.command()
def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of runs or of sweeps."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="The picture: .png, .svg or .pdf."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column of metrics.jsonl, such as val_f1 or lr; `f1` means those of all parts. "
            "May be repeated. Default: losses and accuracies.",
        ),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT", help="Norms by layer: gradients, activations or both, with a comma."
        ),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Draw a line for each run, not a mean over seeds.")
    ] = False,
    by: Annotated[
        str | None, typer.Option(metavar="AXIS", help="Horizontal axis: epoch, step or seconds.")
    ] = None,
    log: Annotated[
        bool | None,
        typer.Option("--log/--linear", help="Scale of the vertical axis; default: by the values."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Width and height of the picture in pixels.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Plot losses, accuracies and other metrics of one or several runs.

    Runs of one recipe that differ only in their seeds become one line:
    their mean, with a band of one standard deviation. Dots mark the best epochs.

    Example: netdsl plot runs/cifar-1 runs/cifar-2 -o curves.svg
    """
    from netdsl.insight.plots.curves import draw_chart
    from netdsl.insight.plots.figure import check_format, parse_size, save_figure
    from netdsl.insight.plots.history import read_histories
    from netdsl.insight.plots.series import PlotOptions, make_chart
    from netdsl.training.step.watch import parse_watch
    from netdsl.training.store.output_files import check_outputs

    if out is None and not as_json:
        raise fail("the picture has no name", help="add `-o curves.png`, .svg or .pdf")
    if out is not None:
        check_format(out)
    pixels = parse_size(size) if size is not None else None
    quantities = parse_watch(watch, 1).quantities if watch is not None else ()
    histories = read_histories(runs)
    options = PlotOptions(tuple(metric or ()), quantities, by, log, each)
    chart = make_chart(histories, options)
    if out is not None:
        check_outputs([out], [path for h in histories for path in h.files])
        save_figure(draw_chart(chart, pixels), out)
    if as_json:
        print_json({"picture": None if out is None else str(out), **chart.as_json()})
    else:
        echo(f"{out}: {chart.title}")
    return OK
