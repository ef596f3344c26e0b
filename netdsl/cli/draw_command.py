"""The command that draws the graph of a net: draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from netdsl.cli.app import (
    OK,
    DeviceOption,
    JsonOption,
    NetArgument,
    SetOption,
    ShrinkOption,
    app,
    echo,
    print_json,
)
from netdsl.cli.compiler import BatchOption
from netdsl.cli.file_arguments import load_net
from netdsl.cli.progress import show_progress
from netdsl.errors import fail, suggest_name
from netdsl.file_io import split_file_and_name, write_atomically

if TYPE_CHECKING:
    from netdsl.insight.compile_target import PreparedGraph
    from netdsl.insight.draw.costs import Costs
    from netdsl.insight.draw.svg import Drawing
    from netdsl.insight.draw.tree import NetTree

_SUFFIXES = (".svg", ".html", ".png", ".pdf")
_DEFAULT_SCALE = 2.0
"""Pixels of a PNG for each pixel of the layout."""


@app.command("draw")
def draw_(
    file: NetArgument,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="FILE", help="The drawing: .svg, .html, .png or .pdf."),
    ],
    depth: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            help="Depth of open groups; 0 opens none. Default: the largest depth that stays "
            "readable.",
        ),
    ] = None,
    all_repeats: Annotated[bool, typer.Option("--all", help="Draw every repeated group.")] = False,
    cost: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="Colour layers by params, macs, memory or time."),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Group the layers that are fused into one kernel.")
    ] = False,
    columns: Annotated[
        int | None,
        typer.Option(min=1, max=20, help="Columns of a long chain; default: by its height."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=50, max=30_000, help="Width of a .png in pixels; default: twice that of the .svg."
        ),
    ] = None,
    batch: BatchOption = None,
    device: DeviceOption = "auto",
    shrink: ShrinkOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Draw the graph of a net: its blocks as groups, its layers as boxes with their output shapes.
    In an .html file, groups can be folded and opened. --batch and --device apply to
    --kernels and --cost time.

    Example: netdsl draw models/googlenet.net:googlenet -o googlenet.svg
    """
    from netdsl.insight.draw.costs import CostKind
    from netdsl.insight.draw.drawing import DrawOptions, draw

    _check_arguments(file, out, width)
    if cost is not None and cost not in get_args(CostKind):
        help = suggest_name(cost, get_args(CostKind), "one of")
        raise fail(f"there is no `--cost {cost}`", help=help)
    chosen = load_net(file, settings, shrink)
    network = chosen.elaborate()
    tree, costs = None, None
    if kernels or cost == "time":
        from netdsl.insight.compile_target import CompileTarget, prepare_target

        target = CompileTarget(chosen.name, False, batch, shrink=chosen.shrink)
        with show_progress("compiling"):
            prepared = prepare_target(chosen.program, target)
            tree = _make_kernel_tree(prepared, device) if kernels else None
            costs = _measure_time(prepared, device) if cost == "time" else None
    if cost is not None and cost != "time":
        from netdsl.insight.draw.costs import find_costs

        costs = find_costs(network, cost)  # type: ignore[arg-type]  # checked above
    drawing = draw(network, DrawOptions(depth, all_repeats, columns, costs, tree))
    write_atomically(out, _FORMATS[out.suffix.lower()](drawing, width))
    boxes = len(drawing.layout.rectangles)
    size = [round(drawing.width), round(drawing.height)]
    if as_json:
        print_json({"picture": str(out), "net": network.name, "shown": boxes, "size": size})
    else:
        echo(f"{out}: `{network.name}`, {boxes} boxes and groups")
    return OK


def _check_arguments(file: str, out: Path, width: int | None) -> None:
    from netdsl.training.store.output_files import check_outputs

    if out.suffix.lower() not in _SUFFIXES:
        raise fail(f"{out} is not a drawing", help=f"its name must end in {', '.join(_SUFFIXES)}")
    if width is not None and out.suffix.lower() != ".png":
        raise fail("`--width` applies only to a .png", help="other formats have no pixels")
    path, _ = split_file_and_name(file)
    check_outputs([out], [Path(path)] if path != "-" else [])


def _make_kernel_tree(prepared: PreparedGraph, device: str) -> NetTree:
    from netdsl.backends import fusion_of
    from netdsl.insight.draw.kernels import make_kernel_tree
    from netdsl.plan.plan import make_plan

    return make_kernel_tree(prepared.network, make_plan(prepared.graph, fusion_of(device)))


def _measure_time(prepared: PreparedGraph, device: str) -> Costs:
    from netdsl.backends import open_backend
    from netdsl.insight.draw.costs import find_time_costs
    from netdsl.insight.profiler import profile_step

    return find_time_costs(profile_step(prepared, open_backend(device), rounds=9))


def _write_svg(drawing: Drawing, width: int | None) -> bytes:
    from netdsl.insight.draw.svg import write_svg

    return write_svg(drawing).encode()


def _write_html(drawing: Drawing, width: int | None) -> bytes:
    from netdsl.insight.draw.page import write_page

    return write_page(drawing).encode()


def _write_png(drawing: Drawing, width: int | None) -> bytes:
    from netdsl.insight.draw.raster import render

    return render(drawing, "png", width / drawing.width if width else _DEFAULT_SCALE)


def _write_pdf(drawing: Drawing, width: int | None) -> bytes:
    from netdsl.insight.draw.raster import render

    return render(drawing, "pdf", 1.0)


_FORMATS: dict[str, Callable[[Drawing, int | None], bytes]] = {
    ".svg": _write_svg,
    ".html": _write_html,
    ".png": _write_png,
    ".pdf": _write_pdf,
}
