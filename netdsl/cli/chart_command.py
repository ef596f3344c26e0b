"""The command that compares nets in a chart: chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl.cli.app import OK, DeviceOption, JsonOption, app, echo, echo_stderr, print_json
from netdsl.cli.file_arguments import find_net_files, load_program
from netdsl.cli.progress import show_progress
from netdsl.errors import fail

if TYPE_CHECKING:
    from netdsl.insight.charts.compute_curve import ComputeCurve
    from netdsl.insight.charts.points import ChartPoint
    from netdsl.insight.plots.history import RunHistory
    from netdsl.language.program import Program


@app.command()
def chart(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FOLDER|FILE...",
            help="Run directories, folders of runs, .net files or folders of .net files.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The chart: .svg, .png or .pdf.")
    ],
    x: Annotated[
        str,
        typer.Option(
            help="Cost on the horizontal axis: macs, params, activations, or, measured on this "
            "machine, images_per_second or memory."
        ),
    ] = "macs",
    area: Annotated[
        str, typer.Option(help="Quantity that the area of a ball shows, as in --x.")
    ] = "params",
    metric: Annotated[str, typer.Option(help="Accuracy: top1 or top5.")] = "top1",
    source: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Only accuracies whose source begins with TEXT, such as torchvision or paper.",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only nets with this number of classes; default: the most frequent."
        ),
    ] = None,
    compute: Annotated[
        bool,
        typer.Option(
            "--compute", help="Show the compute of training instead of the cost of a net."
        ),
    ] = False,
    target: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --compute: the accuracy to reach; default: the best that all runs reach.",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --compute: number of training images of recipes; default: ImageNet's.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of measurements.")] = 8,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Width and height of the chart in pixels; default: 1100x800, or 1100x480 with "
            "--compute.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Compare nets by accuracy and cost: published accuracies of .net files, and your own runs.

    A ball's area shows the number of parameters. With --compute, show the compute of training.

    Example: netdsl chart models --source torchvision -o balls.svg
    """
    from netdsl.insight.charts.points import QUANTITIES
    from netdsl.insight.plots.figure import check_format, import_matplotlib, parse_size
    from netdsl.training.store.output_files import check_outputs

    pixels = parse_size(size or ("1100x480" if compute else "1100x800"))
    _check_word("--metric", metric, ("top1", "top5"))
    _check_word("--x", x, tuple(QUANTITIES))
    _check_word("--area", area, tuple(QUANTITIES))
    check_outputs([out], map(Path, places))
    check_format(out)
    import_matplotlib()  # before what takes long
    if compute:
        return _chart_compute(places, out, metric, target, images, pixels, as_json)
    points = _collect_points(places, metric, source, {x, area}, batch, device)
    kept, dropped = _keep_comparable(points, classes)
    from netdsl.insight.charts.ball_chart import has_ball, plot_balls
    from netdsl.insight.plots.figure import save_figure

    without_ball = [p.name for p in kept if not has_ball(p, x, area)]
    kept = [p for p in kept if has_ball(p, x, area)]
    label = _ACCURACY_LABELS[metric]
    save_figure(plot_balls(kept, x, area, label, pixels), out)
    if as_json:
        print_json({"picture": str(out), "nets": [p.as_json() for p in kept]})
    else:
        _show_points(kept)
        echo(f"{out}: {len(kept)} net{'s' * (len(kept) != 1)}")
        if dropped:
            counts = ", ".join(f"{n} with {c}" for c, n in sorted(dropped.items()))
            echo_stderr(f"nets with other numbers of classes are left out: {counts} (`--classes`)")
        if without_ball:
            echo_stderr(f"nets without {x} or {area} are left out: {', '.join(without_ball)}")
    return OK


_ACCURACY_LABELS = {"top1": "top-1 accuracy (%)", "top5": "top-5 accuracy (%)"}


def _check_word(option: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        raise fail(f"there is no `{option} {word}`", help=f"values are {', '.join(known)}")


def _split_places(places: Sequence[str]) -> tuple[tuple[RunHistory, ...], list[str]]:
    """The runs and the .net files that the arguments stand for."""
    from netdsl.insight.plots.history import is_run, read_histories

    def holds_runs(place: str) -> bool:
        path = Path(place)
        return path.is_dir() and (is_run(path) or any(map(is_run, path.glob("*"))))

    runs = [Path(place) for place in places if holds_runs(place)]
    others = [place for place in places if Path(place) not in runs]
    return read_histories(runs), find_net_files(others) if others else []


def _collect_points(
    places: Sequence[str],
    metric: str,
    source: str | None,
    quantities: set[str],
    batch: int,
    device: str,
) -> list[ChartPoint]:
    from netdsl.insight.charts.points import (
        MEASURED_QUANTITIES,
        find_published_nets,
        measure_point,
        published_points,
        run_point,
        run_program,
    )

    found: list[tuple[ChartPoint, Program, str]] = []
    runs, files = _split_places(places)
    for run in runs:
        program, recipe = run_program(run)
        found.append((run_point(run, metric), program, recipe.net))
    nets = [n for f in files for n in find_published_nets(load_program(f), metric, source)]
    points = published_points(nets, metric)
    found += [(p, n.program, n.net) for n, p in zip(nets, points, strict=True)]
    if not found:
        raise fail(
            f"no net here has a published {metric}" + (f" from {source}" if source else ""),
            help="write `published(top1=0.7613)` in a net's test section, or give run directories",
        )
    if not quantities & MEASURED_QUANTITIES:
        return [point for point, _, _ in found]
    from netdsl.backends import open_backend

    with show_progress(f"measuring {len(found)} nets") as display:
        backend = open_backend(device)
        measured = []
        for i, (point, program, net) in enumerate(found, 1):
            display.title = f"{i} of {len(found)}: {point.name}"
            measured.append(measure_point(point, program, net, backend, batch))
    return measured


def _keep_comparable(
    points: Sequence[ChartPoint], classes: int | None
) -> tuple[list[ChartPoint], Counter[int]]:
    """The points of nets with `classes` classes, by default the most frequent number, and how many
    others there are by number of classes."""
    counts = Counter(p.classes for p in points)
    wanted = classes or counts.most_common(1)[0][0]
    if wanted not in counts:
        known = ", ".join(map(str, sorted(counts)))
        raise fail(f"no net here has {wanted} classes", help=f"numbers of classes here: {known}")
    del counts[wanted]
    return [p for p in points if p.classes == wanted], counts


def _show_points(points: Sequence[ChartPoint]) -> None:
    from netdsl.cli.tables import Column, TextTable, figures

    rows = [
        (
            p.name,
            f"{p.accuracy:.2%}",
            f"{p.params / 1e6:,.2f}",
            f"{p.macs / 1e9:,.3f}",
            "" if p.images_per_second is None else f"{p.images_per_second:,.1f}",
            "" if p.memory is None else f"{p.memory / 1e6:,.1f}",
            p.group,
        )
        for p in sorted(points, key=lambda p: -p.accuracy)
    ]
    headings = ("accuracy", "params (M)", "MACs (G)", "images/s", "memory (MB)")
    columns = [Column("net"), *map(figures, headings), Column("source", fold_width=20)]
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    TextTable([columns[i] for i in used], [[row[i] for i in used] for row in rows]).show()


def _chart_compute(
    places: Sequence[str],
    out: Path,
    metric: str,
    target: float | None,
    images: int | None,
    pixels: tuple[int, int],
    as_json: bool,
) -> int:
    from netdsl.insight.charts.compute_curve import (
        IMAGENET_IMAGES,
        common_target,
        plot_compute,
        recipe_curves,
        run_curve,
    )
    from netdsl.insight.charts.training_compute import (
        PUBLISHED_COMPUTE,
        PUBLISHED_SOURCE,
        PUBLISHED_TOP5,
    )
    from netdsl.insight.plots.figure import save_figure

    runs, files = _split_places(places)
    curves = [run_curve(run, metric) for run in runs]
    for file in files:
        curves += recipe_curves(load_program(file), metric, images or IMAGENET_IMAGES)
    target = target if target is not None else common_target(curves)
    figure = plot_compute(curves, target, _ACCURACY_LABELS[metric], pixels)
    save_figure(figure, out)
    if as_json:
        published = [p.as_json() for p in PUBLISHED_COMPUTE]
        print_json(
            {
                "picture": str(out),
                "target": target,
                "curves": [c.as_json() for c in curves],
                "published": {
                    "source": PUBLISHED_SOURCE,
                    "top5": PUBLISHED_TOP5,
                    "points": published,
                },
            }
        )
    else:
        _show_compute(curves, target)
        echo(f"{out}: {len(curves)} net{'s' * (len(curves) != 1)}")
    return OK


def _show_compute(curves: Sequence[ComputeCurve], target: float | None) -> None:
    from netdsl.cli.tables import Column, TextTable, figures
    from netdsl.insight.charts.training_compute import (
        PUBLISHED_COMPUTE,
        PUBLISHED_SOURCE,
        PUBLISHED_TOP5,
        TERAFLOPS_DAY,
    )

    def format_operations(count: float | None) -> tuple[str, str]:
        return ("never", "") if count is None else (f"{count:.3g}", f"{count / TERAFLOPS_DAY:.3g}")

    rows: list[tuple[Any, ...]] = []
    for curve in curves:
        wanted = target if curve.is_run and target is not None else max(curve.accuracies)
        counts = format_operations(curve.find_operations(wanted))
        rows.append((curve.name, f"{wanted:.2%}", *counts, "run" if curve.is_run else "recipe"))
    if rows:
        headings = ("accuracy reached", "operations", "teraflop/s-days")
        TextTable([Column("net"), *map(figures, headings), Column("from")], rows).show()
    echo("")
    level = f"{PUBLISHED_TOP5:.1%} top-5"
    echo(f"Published: training to {level} on ImageNet (AlexNet's level); a multiply-add counts")
    echo("as one operation in the published figures, as two in the columns here.")
    published = [
        (p.net, p.published.isoformat(), f"{p.teraflops_days:g}", *format_operations(p.operations))
        for p in PUBLISHED_COMPUTE
    ]
    headings = ("as published", "operations", "teraflop/s-days")
    columns = [Column("net"), Column("date", is_whole=True), *map(figures, headings)]
    TextTable(columns, published).show()
    echo(f"Source: {PUBLISHED_SOURCE}")
