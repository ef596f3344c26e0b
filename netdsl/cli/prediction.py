"""Commands that use trained weights: eval, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netdsl.cli.app import OK, DataOption, DeviceOption, JsonOption, app, echo, print_json
from netdsl.cli.display import show_confusion
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
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Show the accuracy of saved weights on the test images of their data set. Without any, on the
    validation images: its own, or those that the run held out; else on the training images.

    Example: netdsl eval runs/digits-1/best.safetensors
    """
    from netdsl.backends import open_backend
    from netdsl.data.inventory import format_skipped_pictures
    from netdsl.inference import Predictor

    report = Predictor(weights, open_backend(device)).evaluate(data, size or ())
    if as_json:
        keys = ("accuracy", "top5", "loss", "images")
        scores = {k: getattr(report.score, k) for k in keys}
        print_json(scores | {"part": report.images, "bad_pictures": list(report.skipped)})
    else:
        s = report.score
        top5 = "" if s.top5 is None else f"top-5 {s.top5:.2%}  "
        echo(
            f"accuracy {s.accuracy:.2%}  {top5}loss {s.loss:.4f}  "
            f"{s.images:,} {report.images} images"
        )
        if report.note:
            echo(report.note)
        show_confusion(report)
        for line in format_skipped_pictures(report.skipped):
            echo(line)
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
