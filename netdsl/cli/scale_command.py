"""The command that estimates training on many GPUs: scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, JsonOption, SetOption, app, echo, print_json
from netdsl.cli.file_arguments import load_recipe
from netdsl.cli.progress import show_progress
from netdsl.cli.tables import Column, TextTable, figures
from netdsl.errors import fail
from netdsl.file_io import split_file_and_name

if TYPE_CHECKING:
    from netdsl.insight.datasheets import GpuDatasheet
    from netdsl.insight.scaling import Interconnect, ScalingEstimate
    from netdsl.insight.scaling_report import GivenStep, MeasuredStep, ScalingReport

_MAX_GPUS = 2**20
_REACHED_SHARE = 0.8
"""The share of a link's bandwidth that an all-reduce reaches by default."""


@app.command()
def scale(
    file: Annotated[
        str, typer.Argument(metavar="FILE[:RECIPE]", help="A .net file; `-` reads stdin.")
    ],
    gpus: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of GPUs, one process each.")
    ] = "8,64,1024",
    per_node: Annotated[int, typer.Option(min=1, max=1024, help="GPUs in a node.")] = 8,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**20,
            help="Images per GPU (weak scaling); default: the recipe's batch is shared between the "
            "GPUs (strong scaling).",
        ),
    ] = None,
    step_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", help="Measured time of a training step on one GPU; default: predicted."
        ),
    ] = None,
    step_batch: Annotated[
        int | None,
        typer.Option(min=1, max=2**20, help="Images of that step; default: those of --batch."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Measure the step here: auto, cuda, cpu, reference or model."),
    ] = None,
    gpu: Annotated[
        str, typer.Option(help="The GPU whose limits and links are assumed: a100, h100 or h200.")
    ] = "h100",
    bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="GB/S",
            help="Bus bandwidth of an all-reduce in a node, as nccl-tests prints it; default: 80 "
            "percent of NVLink's in one direction.",
        ),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(
            metavar="GB/S",
            help="Bandwidth between nodes for each GPU, in one direction; default: 80 percent of "
            "its port.",
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(metavar="US", help="Time of one message between nodes; default: 14."),
    ] = None,
    variation: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", help="Standard deviation of a GPU's step time, for stragglers."
        ),
    ] = 1.0,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Estimate training on many GPUs: time and overlap of the all-reduce of gradients, efficiency,
    and the images per second that a node needs.

    Example: netdsl scale models/resnet.net:imagenet --gpus 8,64,1024 --batch 256
    """
    from netdsl.insight.datasheets import find_gpu
    from netdsl.insight.scaling_report import ScalingRequest, estimate_scaling

    datasheet = find_gpu(gpu)
    request = ScalingRequest(
        _parse_gpus(gpus),
        _make_interconnect(datasheet, per_node, bandwidth, network, latency),
        datasheet,
        batch,
        _choose_step(step_ms, step_batch or batch, device),
        _check_number("variation", variation, 0) / 100,
    )
    path, name = split_file_and_name(file)
    program = load_recipe(path, settings, name)
    with show_progress("planning" if device is None else "planning and timing"):
        report = estimate_scaling(program, name, request)
    if as_json:
        print_json(report.as_json())
    else:
        _show_report(report)
    return OK


def _parse_gpus(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        is_number = word.isascii() and word.isdecimal() and len(word) < 10
        if not is_number or not 1 <= int(word) <= _MAX_GPUS:
            raise fail(
                f"`--gpus {text}`: `{word}` is not a number of GPUs from 1 to {_MAX_GPUS:,}",
                help="write a list such as `--gpus 8,64,1024`",
            )
    return tuple(dict.fromkeys(map(int, words)))


def _check_number(option: str, value: float, least: float | None = None) -> float:
    """The value of an option if it is finite and positive, or at least `least`; else raises
    NetError."""
    if math.isfinite(value) and (value > 0 or value == least):
        return value
    bound = "above 0" if least is None else f"{least} or above"
    raise fail(f"`--{option} {value:g}` must be a number {bound}")


def _make_interconnect(
    gpu: GpuDatasheet,
    per_node: int,
    bandwidth: float | None,
    network: float | None,
    latency: float | None,
) -> Interconnect:
    from netdsl.insight.scaling import NETWORK_LATENCY, Interconnect

    return Interconnect(
        per_node,
        _REACHED_SHARE * gpu.link_bandwidth
        if bandwidth is None
        else 1e9 * _check_number("bandwidth", bandwidth),
        _REACHED_SHARE * gpu.port_bandwidth
        if network is None
        else 1e9 * _check_number("network", network),
        network_latency=NETWORK_LATENCY
        if latency is None
        else 1e-6 * _check_number("latency", latency, 0),
    )


def _choose_step(
    step_ms: float | None, images: int | None, device: str | None
) -> GivenStep | MeasuredStep | None:
    from netdsl.insight.scaling_report import GivenStep, MeasuredStep

    if step_ms is None:
        return None if device is None else MeasuredStep(device)
    if device is not None:
        raise fail(
            "`--device` measures the step that `--step-ms` gives", help="give only one of them"
        )
    if images is None:
        raise fail(
            "`--step-ms` does not say for how many images",
            help="add `--step-batch N`, or `--batch N` if every GPU computes as many",
        )
    return GivenStep(_check_number("step-ms", step_ms) / 1e3, images)


def _show_report(report: ScalingReport) -> None:
    timeline = report.estimates[0].timeline
    count = len(timeline.buckets)
    echo(
        f"{report.title}\n{report.sharing}\n"
        f"to reduce: {_format_megabytes(timeline.size)} MB, {len(timeline.gradients):,} gradients "
        f"in {count:,} bucket{'s' * (count > 1)}"
    )
    columns = [
        *map(figures, ("GPUs", "nodes", "batch", "images a GPU", "alone ms")),
        *map(figures, ("in node ms", "across ms", "hidden", "update ms")),
        *map(figures, ("serial", "overlap", "stragglers", "images/s", "images/s a node")),
    ]
    rows = [_format_estimate(e) for e in report.estimates]
    title = "\nupdates, with the efficiency without overlap, with it, and with stragglers too"
    TextTable(columns, rows, title).show()
    several = (e for e in report.estimates if count > 1)
    slower = [e for e in several if e.overlapped_seconds > e.serial_seconds]
    if slower:
        counts = " and ".join(f"{e.gpus:,}" for e in slower)
        echo(
            f"At {counts} GPUs, one all-reduce after the backward pass is faster: each bucket has "
            "the latency of one of its own."
        )
    _show_buckets(report.estimates[-1])
    echo("\nassumed")
    for line in report.assumptions:
        echo(f"  {line}")


def _format_estimate(e: ScalingEstimate) -> list[str]:
    return [
        f"{e.gpus:,}",
        f"{e.nodes:,}",
        f"{e.global_batch:,}",
        f"{e.timeline.images_per_update:,}",
        _format_ms(e.timeline.seconds),
        _format_ms(e.whole.in_node),
        _format_ms(e.whole.across_nodes),
        f"{e.hidden_share:.0%}",
        _format_ms(e.overlapped_seconds),
        f"{e.serial_efficiency:.1%}",
        f"{e.overlapped_efficiency:.1%}",
        f"{e.straggling_efficiency:.1%}",
        f"{e.images_per_second:,.0f}",
        f"{e.images_per_second_per_node:,.0f}",
    ]


def _show_buckets(e: ScalingEstimate) -> None:
    columns = [
        *map(figures, ("gradients", "MB", "ready ms", "start ms", "end ms")),
        Column("last weight"),
    ]
    rows = [
        (
            f"{x.bucket.count:,}",
            _format_megabytes(x.bucket.size),
            *map(_format_ms, (x.bucket.ready, x.start, x.end)),
            x.bucket.last_weight,
        )
        for x in e.reduced
    ]
    TextTable(columns, rows, f"\nbuckets, {e.gpus:,} GPU{'s' * (e.gpus > 1)}").show()


def _format_ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _format_megabytes(size: int) -> str:
    return f"{size / 1e6:,.3f}" if size < 1e5 else f"{size / 1e6:,.1f}"
