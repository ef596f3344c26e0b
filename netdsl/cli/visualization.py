"""Commands that draw pictures of what a net has learnt: filters, activations, visualize."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, DeviceOption, JsonOption, app, echo, echo_stderr, print_json
from netdsl.cli.prediction import WeightsArgument
from netdsl.cli.progress import show_progress
from netdsl.errors import fail
from netdsl.types import dims

if TYPE_CHECKING:
    from netdsl.types import Array

OutOption = Annotated[Path, typer.Option("-o", "--out", metavar="FILE.png", help="The picture.")]
LayerArgument = Annotated[
    str, typer.Argument(metavar="LAYER", help="A path, as `netdsl summary` prints it.")
]
MAX_CHANNELS = 16


@app.command()
def filters(
    weights: WeightsArgument,
    out: OutOption,
    layer: Annotated[
        str | None, typer.Argument(metavar="[LAYER]", help="A convolution; default: the first one.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Draw the filters of a convolution; middle grey is zero.

    Example: netdsl filters runs/cifar-1/best.safetensors -o filters.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.filters import (
        compute_weights,
        count_drawn_filters,
        find_convolution,
        render_filters,
    )

    _check_output(out, weights)
    trained = Predictor(weights, open_backend("reference"))
    network = trained.network(trained.recipe.settings(training=False, batch=1))
    found = find_convolution(network, layer)
    values = compute_weights(network, found, trained.state.snapshot())
    _write_picture(out, render_filters(values))
    shape, (count, channels) = values.shape, count_drawn_filters(values)
    if as_json:
        fields = {"layer": found.path, "shape": list(shape), "drawn": [count, channels]}
        print_json({"picture": str(out), **fields})
    else:
        filter_note = _format_count(count, shape[0], "filters")
        line = f"{out}: `{found.path}`, {filter_note} of {dims(shape[1:])}"
        channel_note = f", {_format_count(channels, shape[3], 'channels')} of each"
        echo(line + channel_note * (channels < shape[3]))
    return OK


def _format_count(drawn: int, total: int, noun: str) -> str:
    """How many are drawn, and of how many if not all."""
    return f"{total} {noun}" if drawn == total else f"the first {drawn} of {total} {noun}"


@app.command()
def activations(
    weights: WeightsArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    layer: LayerArgument,
    out: OutOption,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Draw the output of a layer for a picture, one map per channel.

    Example: netdsl activations runs/cifar-1/best.safetensors frog.png s1 -o maps.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.feature_maps import compute_feature_maps, render_feature_maps

    _check_output(out, weights, image)
    if Path(layer).is_file() and not image.exists():
        help = f"write `netdsl activations {weights} {layer} {image} -o {out}`"
        raise fail("the picture comes before the layer", help=help)
    maps = compute_feature_maps(Predictor(weights, open_backend(device)), image, layer)
    _write_picture(out, render_feature_maps(maps))
    height, width, count = maps.shape
    if as_json:
        print_json({"picture": str(out), "layer": layer, "shape": list(maps.shape)})
    else:
        echo(f"{out}: `{layer}`, {count} maps of {height}x{width}")
    return OK


@app.command()
def visualize(
    weights: WeightsArgument,
    place: Annotated[
        str,
        typer.Argument(
            metavar="LAYER[:CHANNEL]",
            help=f"A layer (its first {MAX_CHANNELS} channels), or one of its channels.",
        ),
    ],
    out: OutOption,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Steps of gradient ascent.")] = 200,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of the noise and jitter.")
    ] = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Draw pictures that activate channels of a layer most, found by gradient ascent.

    Example: netdsl visualize runs/cifar-1/best.safetensors s3.cbr1:5 -o feature.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.feature_visualization import AscentSettings, visualize_channels
    from netdsl.insight.image_grid import make_grid, scale_to_range

    _check_output(out, weights)
    layer, channel = _split_channel(place)
    with show_progress("compiling, and following the gradient"):
        trained = Predictor(weights, open_backend(device))
        channels, found = visualize_channels(
            trained, layer, channel, MAX_CHANNELS, AscentSettings(steps=steps, seed=seed)
        )
    _write_picture(out, make_grid(scale_to_range(found.pictures)))
    rows = list(zip(channels, found.initial_activations, found.final_activations, strict=True))
    if as_json:
        channel_rows = [{"channel": c, "before": b, "after": a} for c, b, a in rows]
        print_json({"picture": str(out), "layer": layer, "channels": channel_rows})
    else:
        for c, before, after in rows:
            echo(f"{layer}:{c}  activation {before:.4g} -> {after:.4g}")
        echo(f"{out}: {len(rows)} pictures")
    unchanged = [str(c) for c, before, after in rows if not after > before]
    if unchanged:
        echo_stderr(
            f"there is no gradient to follow for {layer}:{', '.join(unchanged)}; "
            "the place before its ReLU may have one"
        )
    return OK


def _split_channel(place: str) -> tuple[str, int | None]:
    indexed = re.fullmatch(r"(.+?)[/\[](\d+)\]?", place)
    if indexed:
        raise fail(f"`{place}` is no place", help=f"write `{indexed[1]}:{indexed[2]}`")
    layer, colon, channel = place.partition(":")
    if not colon:
        return layer, None
    if not channel.isdecimal():
        raise fail(f"`{channel}` is not a channel", help=f"give an integer from 0 up: `{layer}:0`")
    return layer, int(channel)


def _check_output(out: Path, *inputs: Path) -> None:
    from netdsl.training.store.output_files import check_outputs

    check_outputs([out], inputs)
    if out.suffix.lower() != ".png":
        raise fail(f"{out} does not end in .png, and pictures are written as PNG")


def _write_picture(out: Path, picture: Array) -> None:
    from netdsl.data.pictures import write_picture

    write_picture(out, picture)
