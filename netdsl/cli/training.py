"""Commands that run nets: train, eval, predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import FAULTY, OK, DataDir, Device, Json, Sets, app, print_json, say
from netdsl.cli.files import load_recipe, run_directory, split
from netdsl.cli.interrupt import asking
from netdsl.cli.show import show_confusion, with_progress
from netdsl.errors import fail

if TYPE_CHECKING:
    from netdsl.language.program import Program
    from netdsl.train.checkpoint import Checkpoint
    from netdsl.train.loop import Result, Trainer

OptionalFile = Annotated[
    str | None, typer.Argument(metavar="FILE[:RECIPE]", help="A .net file; `-` reads stdin.")
]


Resume = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Go on with the run in this directory.")
]


@app.command()
def train(
    file: OptionalFile = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of the run; runs/NAME-N unless given."),
    ] = None,
    resume: Resume = None,
    data: DataDir = None,
    device: Device = "auto",
    settings: Sets = None,
    as_json: Json = False,
) -> int:
    """Train a net by its recipe; metrics and checkpoints go to a run directory.

    Example: netdsl train models/digits.net --set train.epochs=5
    """
    from netdsl.backends import open_backend
    from netdsl.train.stages import run_stages

    program, name, saved, folder = _begun(file, out, resume, settings)

    def run(trainer: Trainer, out: Path) -> Result:
        with asking() as asked:
            return with_progress(trainer, out, as_json, asked)

    backend = open_backend(device)
    trainer, result = run_stages(program, name, backend, data, folder, run, saved)
    return _report(trainer, result, as_json)


def _begun(
    file: str | None, out: Path | None, resume: Path | None, settings: list[str] | None
) -> tuple[Program, str | None, Checkpoint | None, Path | Callable[[], Path]]:
    """What is trained, which recipe, where its run stood, and where it is kept."""
    from netdsl.train.resume import continuation

    if resume is not None:
        if file is not None or out is not None:
            help = "`--set` changes it: `netdsl train --resume DIR --set train.epochs=20`"
            raise fail("a run that goes on has its own file and directory", help=help)
        found = continuation(resume, settings or ())
        for key, (old, new) in found.changes.items():
            say(f"{key} = {new}, was {old}")
        return found.program, None, found.saved, resume
    if file is None:
        raise fail("there is no file to train", help="netdsl train FILE, or --resume DIR")
    path, name = split(file)
    program = load_recipe(path, settings, name)
    return program, name, None, lambda: run_directory(path, out)


def _report(trainer: Trainer, result: Result, as_json: bool) -> int:
    from netdsl.train.expect import judge

    metrics = result.metrics
    judged = judge(trainer.recipe.expectations, metrics)
    if as_json:
        keys = ("train_loss", "val_accuracy", "test_accuracy", "images_per_second")
        report = {"epochs": trainer.standing.epoch, **{k: metrics.get(k) for k in keys}}
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
