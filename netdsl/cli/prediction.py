"""Commands that use trained weights: eval, predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl.cli.app import (
    BAD_INPUT,
    OK,
    DataOption,
    DeviceOption,
    JsonOption,
    app,
    echo,
    print_error,
    print_json,
)
from netdsl.text_escaping import escape_line, quote_name

if TYPE_CHECKING:
    from netdsl.inference import PicturePrediction

MAX_OTHERS = 5
"""Labels below the threshold that are printed."""
WeightsArgument = Annotated[
    Path, typer.Argument(metavar="WEIGHTS", help="A checkpoint; it contains its net.")
]


@app.command("eval")
def evaluate(
    weights: WeightsArgument,
    data: DataOption = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="PIXELS",
            help="Short side of the pictures; repeat it to average over several sizes.",
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average each picture with its mirror image.")
    ] = False,
    confusion: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the whole confusion matrix.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Write a row for each image: its class, the prediction, probabilities.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Show the accuracy of saved weights, overall and by class, on the test images of their data
    set. If there are none, use the validation images of the data set or those that the run held
    out, and otherwise the training images.

    Example: netdsl eval runs/digits-1/best.safetensors
    """
    from netdsl.backends import open_backend
    from netdsl.cli.evaluation_files import (
        check_evaluation_files,
        open_predictions,
        write_confusion,
    )
    from netdsl.cli.evaluation_tables import show_evaluation
    from netdsl.cli.progress import show_progress
    from netdsl.inference import Predictor

    check_evaluation_files([*filter(None, (confusion, predictions))], weights)
    with show_progress("reading weights") as display:
        predictor = Predictor(weights, open_backend(device))
        with open_predictions(predictions, predictor.classes) as on_predictions:
            report = predictor.evaluate(
                data,
                size or (),
                flip,
                needs_confusion=confusion is not None,
                on_predictions=on_predictions,
                on_phase=display.on_phase,
            )
    if confusion is not None and report.confusion is not None:
        write_confusion(confusion, report.classes, report.confusion)
    if as_json:
        print_json(report.as_json())
    else:
        show_evaluation(report)
    return OK


@app.command()
def predict(
    weights: WeightsArgument,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Picture files, or folders: all pictures in and below them."
        ),
    ],
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the predictions as a table (.csv)."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Show the five most likely classes of each picture, one line per picture. For a net with
    several labels per image, show the labels with a probability above 50 %, then the most likely
    others. Files that cannot be read are reported, the others are still predicted, and the exit
    code is 2.

    Example: netdsl predict runs/digits-1/best.safetensors three.png
    """
    from netdsl.backends import open_backend
    from netdsl.cli.prediction_table import format_prediction_table
    from netdsl.cli.progress import show_progress
    from netdsl.file_io import write_atomically
    from netdsl.inference import Predictor
    from netdsl.training.run.phase import Phase
    from netdsl.training.store.output_files import check_outputs, check_suffix

    if csv is not None:
        check_suffix(csv, ".csv", "`--csv` writes a table")
        check_outputs([csv], [weights])
    with show_progress("reading weights") as display:
        predictor = Predictor(weights, open_backend(device))
        display.on_phase(Phase("compiling kernels"))
        predictions = predictor.predict(_find_images(images))
    found = []
    for prediction in predictions:
        found.append(prediction)
        if prediction.error is not None:
            print_error(prediction.error)
        elif not as_json:
            echo(escape_line(f"{prediction.path}: {_format_prediction(prediction)}"))
    if as_json:
        print_json([_describe_prediction(prediction) for prediction in found])
    if csv is not None:
        write_atomically(csv, format_prediction_table(found, predictor.classes).encode())
    return BAD_INPUT if any(p.error is not None for p in found) else OK


def _find_images(places: Sequence[Path]) -> list[Path]:
    """The files that are named, and the pictures of the folders. Raises NetError if a folder has
    none."""
    from netdsl.data.folder_scan import find_pictures

    found = (find_pictures(place) if place.is_dir() else [place] for place in places)
    return [path for paths in found for path in paths]


def _describe_prediction(prediction: PicturePrediction) -> dict[str, Any]:
    about = {"image": str(prediction.path), "top": [[c, p] for c, p in prediction.top]}
    if prediction.error is not None:
        return about | {"error": prediction.error.message}
    if prediction.labels is None:
        return about
    return about | {"labels": [name for name, _ in prediction.labels]}


def _format_prediction(prediction: PicturePrediction) -> str:
    if not prediction.top:
        return "no class, because a score is NaN"
    labels = prediction.labels
    if labels is None:
        return _format_classes(prediction.top)
    others = prediction.top[len(labels) :]
    more = f", and {len(others) - MAX_OTHERS:,} more" if len(others) > MAX_OTHERS else ""
    rest = f"; below 50%: {_format_classes(others[:MAX_OTHERS])}{more}" if others else ""
    return (_format_classes(labels) or "no label") + rest


def _format_classes(classes: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{quote_name(name)} {p:.1%}" for name, p in classes)
