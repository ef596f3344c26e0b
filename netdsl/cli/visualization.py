"""Commands that draw pictures of what a net has learned: filters, activations, visualize."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from netdsl.cli.prediction import WeightsArgument
from netdsl.cli.progress import show_progress
from netdsl.errors import fail
from netdsl.limits import DEFAULT_ASCENT_STEPS, MAX_DEFAULT_FEATURES
from netdsl.text_escaping import escape_line
from netdsl.types import dims

if TYPE_CHECKING:
    from netdsl.insight.features.filters import FilterPage, ScaleKind
    from netdsl.insight.features.sheets import FeatureRow
    from netdsl.types import Array

OutOption = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The picture: .png.")]
ScaleOption = Annotated[
    str,
    typer.Option(
        "--scale",
        metavar="filter|layer",
        help="One colour scale for each filter or map, or one for the whole layer.",
    ),
]
STRONGEST = 4
"""Images of a data set that are shown beside a feature."""


@app.command()
def filters(
    weights: WeightsArgument,
    out: OutOption,
    layer: Annotated[
        str | None,
        typer.Argument(metavar="[LAYER]", help="A layer with weights; default: the first one."),
    ] = None,
    scale: ScaleOption = "filter",
    page: Annotated[
        int, typer.Option(min=1, help="Page to draw, if the filters need several.")
    ] = 1,
    as_json: JsonOption = False,
) -> int:
    """Draw all filters of a layer: in colour if they have three channels, otherwise a map for each
    channel, blue where a weight is negative and red where it is positive.

    Example: netdsl filters runs/cifar-1/best.safetensors -o filters.png
    """
    import numpy as np

    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.features.filters import (
        compute_filters,
        find_filters,
        find_page,
        render_filters,
    )

    _check_output(out, weights)
    kind = _read_scale(scale)
    trained = Predictor(weights, open_backend("reference"))
    network = trained.network(trained.recipe.settings(training=False, batch=1))
    found = find_filters(network, layer)
    values = compute_filters(network, found, trained.state.snapshot())
    shown = find_page(values, page)
    _write_picture(out, render_filters(values, shown, kind))
    if as_json:
        fields = {"layer": found.path, "shape": list(values.shape), "scale": kind}
        part = {"filters": list(shown.filters), "channels": list(shown.channels)}
        largest = float(abs(values).max())
        pages = {"page": shown.page, "pages": shown.pages}
        print_json({"picture": str(out), **fields, "largest": largest, **pages, **part})
    else:
        what = f"{values.shape[0]} filters of {dims(values.shape[1:])}"
        limits = f"{values.min():.3g} to {values.max():.3g}"
        echo(f"{out}: `{found.path}`, {what}, {limits}{_describe_page(shown)}")
    if lost := int((~np.isfinite(values)).sum()):
        echo_stderr(f"weights that are not finite: {lost:,}; what is scaled by them is grey")
    return OK


def _describe_page(page: FilterPage) -> str:
    """What is on the page, if that is not everything."""
    if page.pages == 1:
        return ""
    (first, last), (left, right) = page.filters, page.channels
    part = f"filters {first} to {last - 1}, channels {left} to {right - 1}"
    return f"; page {page.page} of {page.pages} (`--page`): {part}"


def _read_scale(scale: str) -> ScaleKind:
    if scale == "filter":
        return "filter"
    if scale == "layer":
        return "layer"
    raise fail(f"`--scale {scale}` is neither `filter` nor `layer`")


@app.command()
def activations(
    weights: WeightsArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    layers: Annotated[
        list[str],
        typer.Argument(metavar="LAYER...", help="Paths, as `netdsl summary` prints them."),
    ],
    out: OutOption,
    top: Annotated[
        int | None,
        typer.Option(min=1, max=10**6, help="Draw only this number of maps, the strongest first."),
    ] = None,
    scale: ScaleOption = "filter",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Draw the output of layers for a picture, one map per channel, beside the picture. The numbers
    are the channels and the ranges of their values.

    Example: netdsl activations runs/cifar-1/best.safetensors frog.png s1 s2 --top 12 -o maps.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.features.feature_maps import compute_feature_maps, render_feature_maps

    _check_output(out, weights, image)
    if not image.exists() and any(Path(layer).is_file() for layer in layers):
        arguments = " ".join(map(str, (*layers, image)))
        help = f"write `netdsl activations {weights} {arguments} -o {out}`"
        raise fail("the picture comes before the layer", help=help)
    kind = _read_scale(scale)
    picture, found = compute_feature_maps(Predictor(weights, open_backend(device)), image, layers)
    _write_picture(out, render_feature_maps(picture, found, top, kind))
    if as_json:
        described = [
            {
                "layer": f.place,
                "shape": list(f.maps.shape),
                "maps": [
                    {
                        "channel": c,
                        "low": float(f.maps[..., c].min()),
                        "high": float(f.maps[..., c].max()),
                    }
                    for c in f.strongest(top)
                ],
            }
            for f in found
        ]
        print_json({"picture": str(out), "layers": described})
    else:
        for f in found:
            height, width, count = f.maps.shape
            chosen = len(f.strongest(top))
            ranked = f", the {chosen} strongest" if chosen < count else ""
            echo(f"{out}: `{f.place}`, {count} maps of {height}x{width}{ranked}")
    return OK


@app.command()
def visualize(
    weights: WeightsArgument,
    place: Annotated[
        str,
        typer.Argument(
            metavar="LAYER[:CHANNEL,...]",
            help=f"A layer (its first {MAX_DEFAULT_FEATURES} channels) or some of its channels; "
            "for the last layer, also names of classes.",
        ),
    ],
    out: OutOption,
    neuron: Annotated[
        bool,
        typer.Option("--neuron", help="Maximise the value at the centre, not the mean of the map."),
    ] = False,
    diversity: Annotated[
        int, typer.Option(min=1, max=16, help="Number of different pictures for each channel.")
    ] = 1,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|run",
            help="Also show the strongest images of a folder, or of the run's training images.",
        ),
    ] = None,
    data: DataOption = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=1024,
            help="Side of the net's input in pixels; default: as in training.",
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=8, max=1024, help="Side of each picture on the sheet in pixels."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Steps of gradient ascent.")
    ] = DEFAULT_ASCENT_STEPS,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of the noise and the transformations.")
    ] = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Draw the pictures that activate channels of a layer most, by gradient ascent (Olah et al.
    2017). Dead channels are listed and left out.

    Example: netdsl visualize runs/cifar-1/best.safetensors s3.cbr1:5,7 -o features.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.features.ascent import AscentSettings
    from netdsl.insight.features.feature_search import FeatureQuery, FeatureSearch
    from netdsl.insight.features.sheets import render_features

    _check_output(out, weights)
    indexed = re.fullmatch(r"(.+?)[/\[](\d+)\]?", place)
    if indexed:
        raise fail(f"`{place}` is not a place", help=f"write `{indexed[1]}:{indexed[2]}`")
    layer, _, channels = place.partition(":")
    if place.endswith(":"):
        raise fail(f"`{place}` names no channel", help=f"give integers from 0 up: `{layer}:0,1`")
    with show_progress("reading weights") as display:
        trained = Predictor(weights, open_backend(device))
        search = FeatureSearch(
            trained,
            FeatureQuery(layer, channels or None, neuron, diversity, size),
            AscentSettings(steps=steps, seed=seed),
            display.on_phase,
        )
        found = search.run() if dataset is None else search.run_beside(dataset, data, STRONGEST)
    if found.dead:
        echo_stderr(_describe_dead(layer, found.dead, steps, dataset))
    if not found.rows:
        raise fail("no picture can be drawn", help="choose other channels, or another layer")
    _write_picture(out, render_features(found.rows, tile))
    if as_json:
        channel_rows = [row.as_json() for row in found.rows]
        about = {"picture": str(out), "layer": layer, "channels": channel_rows}
        print_json({**about, "dead": list(found.dead)})
    else:
        for row in found.rows:
            echo(escape_line(f"{row.name}  {_describe_row(row)}"))
        echo(f"{out}: {sum(len(row.feature.pictures) for row in found.rows)} pictures")
    return OK


def _describe_dead(layer: str, dead: Sequence[int], steps: int, dataset: str | None) -> str:
    reason = (
        "the same value for all images" if dataset else f"no increase in {steps:,} steps from noise"
    )
    return f"dead channels are left out: {layer}:{','.join(map(str, dead))} ({reason})"


def _describe_row(row: FeatureRow) -> str:
    climbs = zip(row.feature.before, row.feature.after, strict=True)
    text = "activation " + ", ".join(f"{b:.4g} -> {a:.4g}" for b, a in climbs)
    if row.images is None:
        return text
    peaks = ", ".join(f"{p:.4g}" for p in row.feature.peaks)
    images = row.images
    return (
        f"{text}; peak {peaks}; peaks of {images.count:,} images: 99.9th percentile "
        f"{images.percentile:.4g}, largest {images.peaks[0]:.4g}"
    )


def _check_output(out: Path, *inputs: Path) -> None:
    from netdsl.training.store.output_files import check_format, check_outputs

    check_outputs([out], inputs)
    check_format(out, (".png",))


def _write_picture(out: Path, picture: Array) -> None:
    from netdsl.data.pictures import write_picture

    write_picture(out, picture)
