"""Commands that attribute the score of a class to parts of a picture: saliency, gradcam."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl.cli.app import OK, DeviceOption, JsonOption, app, echo, echo_stderr, print_json
from netdsl.cli.prediction import WeightsArgument
from netdsl.cli.progress import show_progress
from netdsl.limits import DEFAULT_ATTRIBUTION_STEPS
from netdsl.text_escaping import quote_name

if TYPE_CHECKING:
    from netdsl.insight.attribution import ChosenClass
    from netdsl.types import Array

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")]
ClassOption = Annotated[
    str | None,
    typer.Option("--class", metavar="C", help="Class by name or number; default: the most likely."),
]
PictureOption = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="FILE", help="The picture: .png, or .npy for its values."),
]
SizeOption = Annotated[
    int, typer.Option(metavar="PIXELS", min=16, max=2048, help="Height of the photo in pixels.")
]
MAX_COMPLETENESS_ERROR = 0.05


@app.command()
def saliency(
    weights: WeightsArgument,
    image: ImageArgument,
    out: PictureOption,
    class_name: ClassOption = None,
    steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of steps from baseline to image.")
    ] = DEFAULT_ATTRIBUTION_STEPS,
    baseline: Annotated[
        float, typer.Option(min=0, max=255, help="Grey level of the baseline.")
    ] = 0,
    cell: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1,
            max=2048,
            help="Side of the squares over which the picture sums pixels; default: 1/64 of "
            "the height.",
        ),
    ] = None,
    size: SizeOption = 320,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Draw how much each pixel adds to the score of a class, compared with a baseline, by
    integrated gradients: red increases the score, blue decreases it. The sum over all pixels is the
    difference between the two scores, up to an error that more steps reduce.

    Example: netdsl saliency runs/cifar-1/best.safetensors frog.png -o saliency.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.attribution import compute_saliency, load_picture
    from netdsl.insight.attribution_picture import render_saliency
    from netdsl.training.run.phase import Phase

    _check_output(out, weights, image)
    with show_progress("compiling") as display:
        trained = Predictor(weights, open_backend(device))
        found = compute_saliency(
            trained,
            load_picture(trained, image),
            class_name,
            steps,
            baseline,
            lambda done: display.on_phase(Phase("integrating", done, steps)),
        )
    _write(out, found.attributions, lambda: render_saliency(found, size, cell))
    if as_json:
        fields = {
            "baseline_score": found.baseline_score,
            "sum": found.total,
            "completeness_error": found.completeness_error,
            "steps": steps,
        }
        print_json({"picture": str(out), **_describe_class(found.chosen), **fields})
    else:
        echo(_format_class(found.chosen))
        echo(
            f"score {found.chosen.score:.4g} - baseline {found.baseline_score:.4g} = "
            f"{found.difference:.4g}; the pixels sum to {found.total:.4g}, "
            f"error {found.completeness_error:.1%}"
        )
        echo(f"{out}: integrated gradients, {steps} steps")
    if found.completeness_error > MAX_COMPLETENESS_ERROR:
        echo_stderr(f"the error of the sum is large; `--steps {4 * steps}` reduces it")
    return OK


@app.command()
def gradcam(
    weights: WeightsArgument,
    image: ImageArgument,
    out: PictureOption,
    layer: Annotated[
        str | None,
        typer.Argument(metavar="[LAYER]", help="A place with maps; default: the last one."),
    ] = None,
    class_name: ClassOption = None,
    size: SizeOption = 320,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Draw the regions of a picture that support a class, by Grad-CAM.

    Example: netdsl gradcam runs/cifar-1/best.safetensors frog.png -o gradcam.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.insight.attribution import compute_grad_cam, load_picture
    from netdsl.insight.attribution_picture import render_grad_cam

    _check_output(out, weights, image)
    with show_progress("compiling"):
        trained = Predictor(weights, open_backend(device))
        found = compute_grad_cam(trained, load_picture(trained, image), layer, class_name)
    _write(out, found.heat, lambda: render_grad_cam(found, size))
    height, width = found.heat.shape
    if as_json:
        fields = {
            "layer": found.place,
            "shape": [height, width],
            "largest": float(found.heat.max()),
        }
        print_json({"picture": str(out), **_describe_class(found.chosen), **fields})
    else:
        echo(_format_class(found.chosen))
        echo(f"{out}: Grad-CAM of `{found.place}`, {height}x{width}")
    if not found.heat.any():
        name = quote_name(found.chosen.name)
        echo_stderr(f"the maps of `{found.place}` do not support {name} anywhere: the heat is 0")
    return OK


def _format_class(chosen: ChosenClass) -> str:
    return f"class {quote_name(chosen.name)}, {chosen.probability:.1%}"


def _describe_class(chosen: ChosenClass) -> dict[str, Any]:
    return {
        "class": chosen.name,
        "index": chosen.index,
        "score": chosen.score,
        "probability": chosen.probability,
    }


_PICTURE_SUFFIX, _ARRAY_SUFFIX = ".png", ".npy"


def _check_output(out: Path, *inputs: Path) -> None:
    from netdsl.training.store.output_files import check_format, check_outputs

    check_outputs([out], inputs)
    help = "a picture is written as .png, its values as .npy"
    check_format(out, (_PICTURE_SUFFIX, _ARRAY_SUFFIX), help)


def _write(out: Path, values: Array, render: Callable[[], Array]) -> None:
    """Writes the numbers or the picture, as the suffix says."""
    import numpy as np

    from netdsl.data.npy import format_npy
    from netdsl.data.pictures import write_picture
    from netdsl.file_io import write_atomically

    if out.suffix.lower() == _ARRAY_SUFFIX:
        write_atomically(out, format_npy(values.astype(np.float32)))
    else:
        write_picture(out, render())
