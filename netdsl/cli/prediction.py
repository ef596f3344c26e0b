"""Commands that use trained weights: eval, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netdsl.cli.app import OK, DataOption, DeviceOption, JsonOption, app, echo, print_json
from netdsl.text_escaping import escape_line

WeightsArgument = Annotated[
    Path, typer.Argument(metavar="WEIGHTS", help="A checkpoint; it contains its net.")
]


@app.command("eval")
def evaluate(
    weights: WeightsArgument,
    data: DataOption = None,
    size: Annotated[
        list[int] | None,
        typer.Option(metavar="PIXELS", help="Short side of the pictures; several are averaged."),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average each picture with its mirror image.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Show the accuracy of saved weights, of all images and by class, on the test images of their
    data set. Without any, on the validation images: its own, or those that the run held out; else
    on the training images.

    Example: netdsl eval runs/digits-1/best.safetensors
    """
    from netdsl.backends import open_backend
    from netdsl.cli.evaluation_tables import show_evaluation
    from netdsl.inference import Predictor

    report = Predictor(weights, open_backend(device)).evaluate(data, size or (), flip)
    if as_json:
        print_json(report.as_json())
    else:
        show_evaluation(report)
    return OK


@app.command()
def predict(
    weights: WeightsArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Show the five most likely classes of pictures.

    Example: netdsl predict runs/digits-1/best.safetensors three.png
    """
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor

    found = Predictor(weights, open_backend(device)).predict(images)
    if as_json:
        print_json([{"image": str(i), "top": [[c, p] for c, p in top]} for i, top in found])
    else:
        for image, top in found:
            formatted = ", ".join(f"{c} {p:.1%}" for c, p in top)
            echo(escape_line(f"{image}: {formatted or 'no class, because a score is NaN'}"))
    return OK
