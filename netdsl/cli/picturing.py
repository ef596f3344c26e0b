"""Commands that make pictures of what a net has learnt: filters, activations, visualize."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, Device, Json, app, print_json, say, show
from netdsl.cli.using import Weights
from netdsl.errors import fail
from netdsl.types import dims

if TYPE_CHECKING:
    from netdsl.types import Array

Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE.png", help="The picture.")]
Layer = Annotated[
    str, typer.Argument(metavar="LAYER", help="A path, as `netdsl summary` prints them.")
]
MOST = 16


@app.command()
def filters(
    weights: Weights,
    out: Out,
    layer: Annotated[
        str | None, typer.Argument(metavar="[LAYER]", help="A convolution; the first one else.")
    ] = None,
    as_json: Json = False,
) -> int:
    """The filters of a convolution as a picture; middle grey is zero.

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

    _check_name(out)
    trained = Predictor(weights, open_backend("reference"))
    network = trained.network(trained.recipe.settings(training=False, batch=1))
    found = find_convolution(network, layer)
    values = compute_weights(network, found, trained.state.snapshot())
    _write(out, render_filters(values))
    shape, (count, channels) = values.shape, count_drawn_filters(values)
    if as_json:
        about = {"layer": found.path, "shape": list(shape), "drawn": [count, channels]}
        print_json({"picture": str(out), **about})
    else:
        line = f"{out}: `{found.path}`, {_part(count, shape[0], 'filters')} of {dims(shape[1:])}"
        some = f", {_part(channels, shape[3], 'channels')} of each"
        show(line + some * (channels < shape[3]))
    return OK


def _part(drawn: int, of: int, what: str) -> str:
    """How many are drawn, of how many where that is not all."""
    return f"{of} {what}" if drawn == of else f"the first {drawn} of {of} {what}"


@app.command()
def activations(
    weights: Weights,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    layer: Layer,
    out: Out,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """What a layer makes of a picture, a map for each channel.

    Example: netdsl activations runs/cifar-1/best.safetensors frog.png s1 -o maps.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.feature_maps import compute_feature_maps, render_feature_maps

    _check_name(out)
    maps = compute_feature_maps(Predictor(weights, open_backend(device)), image, layer)
    _write(out, render_feature_maps(maps))
    height, width, count = maps.shape
    if as_json:
        print_json({"picture": str(out), "layer": layer, "shape": list(maps.shape)})
    else:
        show(f"{out}: `{layer}`, {count} maps of {height}x{width}")
    return OK


@app.command()
def visualize(
    weights: Weights,
    place: Annotated[
        str,
        typer.Argument(metavar="LAYER[:CHANNEL]", help=f"Its first {MOST} channels, or one."),
    ],
    out: Out,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Of gradient ascent.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of noise and jitter.")] = 1,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """The pictures that channels of a layer answer to most, found by gradient ascent.

    Example: netdsl visualize runs/cifar-1/best.safetensors s3.cbr1:5 -o feature.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.feature_visualization import AscentSettings, visualize_channels
    from netdsl.insight.image_grid import make_grid, scale_to_range

    _check_name(out)
    layer, channel = _channel(place)
    trained = Predictor(weights, open_backend(device))
    channels, found = visualize_channels(
        trained, layer, channel, MOST, AscentSettings(steps=steps, seed=seed)
    )
    _write(out, make_grid(scale_to_range(found.pictures)))
    rows = list(zip(channels, found.initial_activations, found.final_activations, strict=True))
    if as_json:
        told = [{"channel": c, "before": b, "after": a} for c, b, a in rows]
        print_json({"picture": str(out), "layer": layer, "channels": told})
    else:
        for c, before, after in rows:
            show(f"{layer}:{c}  activation {before:.4g} -> {after:.4g}")
        show(f"{out}: {len(rows)} pictures")
    silent = [str(c) for c, before, after in rows if not after > before]
    if silent:
        say(
            f"no gradient led anywhere for {layer}:{', '.join(silent)}; "
            "the place before its ReLU may have one"
        )
    return OK


def _channel(place: str) -> tuple[str, int | None]:
    layer, colon, channel = place.partition(":")
    if not colon:
        return layer, None
    if not channel.isdecimal():
        raise fail(f"`{channel}` is no channel", help=f"a whole number from 0 on: `{layer}:0`")
    return layer, int(channel)


def _check_name(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise fail(f"{out} does not end in .png, and pictures are written as PNG")


def _write(out: Path, picture: Array) -> None:
    from netdsl.data.pictures import write_picture

    write_picture(out, picture)
