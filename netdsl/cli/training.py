"""Commands that run nets: train, eval, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netdsl.cli.app import FAULTY, OK, DataDir, Device, File, Json, Sets, app, print_json, say
from netdsl.cli.files import load_recipe, run_directory, split
from netdsl.cli.show import show_confusion, with_progress


@app.command()
def train(
    file: File,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of the run; runs/NAME-N unless given."),
    ] = None,
    data: DataDir = None,
    device: Device = "auto",
    settings: Sets = None,
    as_json: Json = False,
) -> int:
    """Train a net by its recipe; metrics and checkpoints go to a run directory.

    Example: netdsl train models/digits.net --set train.epochs=5
    """
    from netdsl.backends import open_backend
    from netdsl.train.expect import judge
    from netdsl.train.loop import Trainer

    path, name = split(file)
    program = load_recipe(path, settings, name)
    trainer = Trainer(program, name, open_backend(device), data)
    result = with_progress(trainer, run_directory(path, out), as_json)
    metrics = result.metrics
    judged = judge(trainer.recipe.expectations, metrics)
    if as_json:
        keys = ("train_loss", "val_accuracy", "test_accuracy", "images_per_second")
        report = {"epochs": trainer.recipe.epochs, **{k: metrics.get(k) for k in keys}}
        expected = [{"text": m.text, "ok": m.ok, "found": m.found} for m in judged]
        print_json(report | {"checkpoint": str(result.checkpoint), "expectations": expected})
    else:
        if metrics.get("test_accuracy") is not None:
            images = metrics["test_images"]
            print(f"test accuracy {metrics['test_accuracy']:.2%} on {images:,} images")
        print(f"weights in {result.checkpoint}")
    for m in judged:
        say(f"expected {m.text}: {m.found}" + ("" if m.ok else ", so this FAILED"))
    return OK if all(m.ok for m in judged) else FAULTY


Weights = Annotated[
    Path, typer.Argument(metavar="WEIGHTS", help="A checkpoint; it carries its net.")
]


@app.command("eval")
def evaluate(
    weights: Weights, data: DataDir = None, device: Device = "auto", as_json: Json = False
) -> int:
    """Accuracy of saved weights on the test images of their data set.

    Example: netdsl eval runs/digits-1/best.safetensors
    """
    from netdsl.backends import open_backend
    from netdsl.train.use import Trained

    report = Trained(weights, open_backend(device)).evaluate(data)
    if as_json:
        keys = ("accuracy", "top5", "loss", "images")
        print_json({k: getattr(report.score, k) for k in keys})
    else:
        s = report.score
        print(
            f"accuracy {s.accuracy:.2%}  top-5 {s.top5:.2%}  loss {s.loss:.4f}  {s.images:,} images"
        )
        show_confusion(report)
    return OK


@app.command()
def predict(
    weights: Weights,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """The five likeliest classes of pictures.

    Example: netdsl predict runs/digits-1/best.safetensors three.png
    """
    from netdsl.backends import open_backend
    from netdsl.train.use import Trained

    found = Trained(weights, open_backend(device)).predict(images)
    if as_json:
        print_json([{"image": str(i), "top": [[c, p] for c, p in top]} for i, top in found])
    else:
        for image, top in found:
            print(f"{image}: " + ", ".join(f"{c} {p:.1%}" for c, p in top))
    return OK
