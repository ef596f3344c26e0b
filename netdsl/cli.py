"""The command line: one thin function a command; the work is done on the floors below."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl import __version__
from netdsl.errors import NetError, fail
from netdsl.files import finite

if TYPE_CHECKING:
    from netdsl.language.program import Program

OK, FAULTY, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A graph-compiled language for convolutional networks.",
)

File = Annotated[str, typer.Argument(metavar="FILE[:NAME]", help="A .net file; `-` reads stdin.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, as train.epochs=5."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cuda or reference.")]
DataDir = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="The folder that holds the data set.")
]


def main() -> None:
    """The entry point: what people can get wrong ends in a sentence and an exit code."""
    # small products gain nothing from more threads, and lose tenfold when another process runs;
    # it must be set before NumPy is first imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read the output has had enough; nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as e:
        _say(f"error: {e.filename or 'standard output'}: {e.strerror or e}")
        code = BAD_INPUT
    if code == INTERRUPTED:
        _say("interrupted; what was saved is kept")
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except NetError as e:
        _complain(e)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:
        _say("error: this needs more memory than there is")
        return BAD_INPUT
    except UnicodeEncodeError as e:
        _say(f"error: {e.object!r} is no readable text")
        return BAD_INPUT
    except typer.Exit as e:
        return e.exit_code
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        if e.format_message():
            _say(f"error: {e.format_message()}")
        return BAD_INPUT
    return code if isinstance(code, int) else OK


def _complain(error: NetError) -> None:
    _say(error.render())


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(finite(value), allow_nan=False))


# ---- files ---------------------------------------------------------------------------------------


def _split(file: str) -> tuple[str, str | None]:
    """`FILE[:NAME]` apart; a colon inside an existing path is no separator."""
    path, colon, name = file.rpartition(":")
    if not colon or Path(file).exists() or "/" in name or "\\" in name:
        return file, None
    return path, name


def _read(path: str) -> str:
    from netdsl.language.program import MOST_BYTES, decode, read_text

    if path != "-":
        return read_text(path)
    if sys.stdin is None:
        raise fail("there is no standard input")
    return decode(sys.stdin.buffer.read(MOST_BYTES + 1), "standard input")


def _load(path: str, settings: list[str] | None = None, net: str | None = None) -> Program:
    from netdsl.language.override import override
    from netdsl.language.parse import parse
    from netdsl.language.program import program, read_text

    file = parse(_read(path), "<stdin>" if path == "-" else path)
    return program(override(file, settings or (), net), read_text)


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


# ---- commands ------------------------------------------------------------------------------------


@app.command()
def check(file: File, settings: Sets = None, as_json: Json = False) -> int:
    """Parse, expand and infer every shape; tell all that is wrong.

    Example: netdsl check models/lenet.net
    """
    from netdsl.insight.check import check_program

    path, name = _split(file)
    errors: tuple[Any, ...] = ()
    nets: list[str] = []
    try:
        program = _load(path, settings, name)
        recipe = name if name not in program.nets else None
        nets, warnings = check_program(program, None if program.has_recipe(recipe) else name)
        for warning in warnings:
            _say(warning.render().replace("error:", "warning:", 1))
    except NetError as e:
        if not as_json:
            raise
        errors = e.diagnostics
    if as_json:
        _print_json({"ok": not errors, "errors": [_as_json(d) for d in errors], "nets": nets})
    else:
        _say(f"{path}: {', '.join(nets)}: all well" if nets else f"{path}: there is no net in it")
    return BAD_INPUT if errors else OK


def _as_json(diagnostic: Any) -> dict[str, Any]:
    line, column = diagnostic.span.position if diagnostic.span else (None, None)
    return {
        "file": diagnostic.span.source.name if diagnostic.span else None,
        "line": line,
        "column": column,
        "message": diagnostic.message,
        "help": diagnostic.help,
    }


@app.command()
def fmt(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files; `-` is a filter.")],
    check_only: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 where something would change.")
    ] = False,
) -> int:
    """Lay files out in the one canonical way; comments stay.

    Example: netdsl fmt models/*.net
    """
    from netdsl.files import write_atomically
    from netdsl.language.format import format_text

    changed, errors = [], []
    for path in files:
        try:
            text = _read(path)
            new = format_text(text, path)
            if path == "-" and not check_only:
                print(new, end="")
            elif new != text:
                if not check_only:
                    write_atomically(Path(path), new.encode())
                changed.append(path)
        except NetError as e:
            errors.append(e)
    for path in changed:
        _say(f"{'would change' if check_only else 'changed'} {path}")
    for error in errors:
        _complain(error)
    if errors:
        return BAD_INPUT
    return FAULTY if check_only and changed else OK


@app.command()
def test(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE...]", help="Files or folders.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Run the `test` sections: parameters, shapes, gradients that must come out.

    Example: netdsl test models
    """
    results, wrong, errors = [], 0, []
    for path in _net_files(files or ["."]):
        try:
            for result in _run_tests(path):
                wrong += not result.ok
                results.append(result)
                if not as_json:
                    _tell_test(path, result)
        except NetError as e:
            errors.append(e)
    for error in errors:
        _complain(error)
    if as_json:
        _print_json(
            {
                "passed": len(results) - wrong,
                "failed": wrong,
                "tests": [
                    {
                        "name": r.name,
                        "ok": r.ok,
                        "expectations": [
                            {"text": o.text, "ok": o.ok, "found": o.found} for o in r.outcomes
                        ],
                    }
                    for r in results
                ],
            }
        )
    else:
        _say(f"{len(results) - wrong} passed, {wrong} failed")
    if errors:
        return BAD_INPUT
    return FAULTY if wrong else OK


def _run_tests(path: str) -> Iterator[Any]:
    """The results of a file's tests; a file without any is checked, so nothing passes unread."""
    from netdsl.insight.check import check_program
    from netdsl.insight.expectations import run_test

    program = _load(path)
    if not program.tests:
        check_program(program)
        _say(f"{path}: no tests")
    for section in program.tests:
        yield run_test(program, section)


def _tell_test(path: str, result: Any) -> None:
    verdict = "ok  " if result.ok else "FAIL"
    n = len(result.outcomes)
    print(f"{verdict} {path}:{result.name}  {n} expectation{'s' * (n != 1)}")
    for o in result.outcomes:
        if not o.ok:
            print(f"     {o.text}: {o.found or 'it does not hold'}")


def _net_files(places: list[str]) -> list[str]:
    found: list[str] = []
    for place in places:
        if Path(place).is_dir():
            found += sorted(str(p) for p in Path(place).rglob("*.net") if p.is_file())
        else:
            found.append(place)
    if not found:
        raise fail(f"there are no .net files in {', '.join(places)}")
    return found


@app.command()
def summary(file: File, settings: Sets = None, as_json: Json = False) -> int:
    """The layers of a net: outputs, parameters, multiply-accumulates, memory of one image.

    Example: netdsl summary models/lenet.net:caffe_lenet
    """
    from netdsl.insight.summary import summarise
    from netdsl.language.elaborate import elaborate

    path, name = _split(file)
    found = summarise(elaborate(_load(path, settings, name), name))
    if as_json:
        _print_json(found.as_json())
    else:
        _show_summary(found)
    return OK


def _show_summary(found: Any) -> None:
    from rich.table import Table

    table = Table(title=found.net, box=None, pad_edge=False, title_justify="left")
    for heading in ("layer", "call", "output"):
        table.add_column(heading, no_wrap=heading != "call", overflow="fold")
    for heading in ("params", "MACs", "memory"):
        table.add_column(heading, justify="right")
    for r in found.layers:
        counts = [f"{n:,}" if n else "" for n in (r.params, r.macs)]
        table.add_row(r.name, r.call, r.output, *counts, _bytes(r.bytes))
    console = _console()
    console.print(table)
    console.print(
        f"\n{found.params:,} params, {found.macs:,} MACs and {found.activations:,} activations "
        "an image"
    )


def _bytes(n: int) -> str:
    size, unit = float(n), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


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
    from netdsl.train.loop import Trainer
    from netdsl.train.recipe import judge

    path, name = _split(file)
    program = _load(path, settings)
    trainer = Trainer(program, name, open_backend(device), data)
    result = _with_progress(trainer, _run_directory(path, out), as_json)
    metrics = result.metrics
    judged = judge(trainer.recipe, metrics)
    if as_json:
        keys = ("train_loss", "val_accuracy", "test_accuracy", "images_per_second")
        report = {"epochs": trainer.recipe.epochs, **{k: metrics.get(k) for k in keys}}
        expected = [{"text": m.text, "ok": m.ok, "found": m.found} for m in judged]
        _print_json(report | {"checkpoint": str(result.checkpoint), "expectations": expected})
    else:
        if metrics.get("test_accuracy") is not None:
            images = metrics["test_images"]
            print(f"test accuracy {metrics['test_accuracy']:.2%} on {images:,} images")
        print(f"weights in {result.checkpoint}")
    for m in judged:
        _say(f"expected {m.text}: {m.found}" + ("" if m.ok else ", so this FAILED"))
    return OK if all(m.ok for m in judged) else FAULTY


def _run_directory(path: str, out: Path | None) -> Path:
    """A directory for a new run, made here and now so that no other run takes it.

    Raises NetError where the one that was asked for holds files of a run already.
    """
    from netdsl.train.loop import KEPT

    if out is not None:
        there = [name for name in KEPT if (out / name).exists()]
        if there:
            message = f"{out} already holds {', '.join(there)}"
            raise fail(message, help="give another `--out`; nothing is ever written over")
        out.mkdir(parents=True, exist_ok=True)
        return out
    stem = Path(path).stem if path != "-" else "stdin"
    number = 1
    while True:
        claimed = Path("runs") / f"{stem}-{number}"
        try:
            claimed.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return claimed


def _with_progress(trainer: Any, out: Path, quiet: bool) -> Any:
    """Runs a trainer with a bar that shows loss, images/s and the time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} images/s"),
        TimeRemainingColumn(),
    )
    total = trainer.recipe.epochs * trainer.steps
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total, epoch="", loss=0.0, rate=0.0)

        def watch(p: Any) -> None:
            done = p.epoch * p.steps + p.step
            epoch = f"{p.epoch + 1}/{p.epochs}"
            bar.update(task, completed=done, epoch=epoch, loss=p.loss, rate=p.images_per_second)

        def tell(m: dict[str, Any]) -> None:
            if not quiet:
                bar.console.print(_epoch_line(m, trainer.recipe.epochs), soft_wrap=True)

        return trainer.run(out, watch, tell)


def _epoch_line(m: dict[str, Any], epochs: int) -> str:
    line = f"epoch {m['epoch']}/{epochs}  loss {m['train_loss']:.4f}"
    if m["val_accuracy"] is not None:
        line += f"  val loss {m['val_loss']:.4f}  val accuracy {m['val_accuracy']:.2%}"
    return f"{line}  {m['images_per_second']:,.0f} images/s  {m['seconds']:.1f} s"


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
        _print_json({k: getattr(report.score, k) for k in keys})
    else:
        s = report.score
        print(
            f"accuracy {s.accuracy:.2%}  top-5 {s.top5:.2%}  loss {s.loss:.4f}  {s.images:,} images"
        )
        _show_confusion(report)
    return OK


def _show_confusion(report: Any) -> None:
    from rich.table import Table

    table = Table(
        title="\nrows: what it is; columns: what was said", box=None, title_justify="left"
    )
    for heading in ("", *report.classes):
        table.add_column(heading, justify="right")
    for name, row in zip(report.classes, report.confusion, strict=True):
        table.add_row(name, *(str(n) if n else "." for n in row))
    _console().print(table)


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
        _print_json([{"image": str(i), "top": [[c, p] for c, p in top]} for i, top in found])
    else:
        for image, top in found:
            print(f"{image}: " + ", ".join(f"{c} {p:.1%}" for c, p in top))
    return OK


@app.command()
def gradcheck(
    file: File,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of weights, images and directions.")
    ] = 1,
    settings: Sets = None,
    as_json: Json = False,
) -> int:
    """Check every layer's gradient in this very net against finite differences, in float64.

    Example: netdsl gradcheck models/lenet.net
    """
    from netdsl.insight.gradcheck import gradcheck as run

    path, name = _split(file)
    rows = []
    for row in run(_load(path, settings, name), name, seed):
        rows.append(row)
        if not as_json:
            print(f"{'ok  ' if row.ok else 'FAIL'} {row.error:8.1e}  {row.name}")
    ok = all(r.ok for r in rows)
    if as_json:
        _print_json({"ok": ok, "layers": [{"name": r.name, "error": r.error} for r in rows]})
    return OK if ok else FAULTY


def _version(show: bool) -> None:
    if show:
        print(f"netdsl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A graph-compiled language for convolutional networks."""


if __name__ == "__main__":
    main()
