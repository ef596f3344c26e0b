"""The Typer application: shared options, the way in, and how anything that fails is told."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Annotated, Any

import typer

from netdsl import __version__
from netdsl.errors import NetError
from netdsl.files import finite
from netdsl.printable import printable

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
Shrink = Annotated[
    int | None,
    typer.Option(
        "--shrink",
        metavar="N",
        min=1,
        max=2**20,
        help="A small version: channels divided by N, the smallest images that its layers take.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cuda, cpu, reference or model.")]
Tune = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="How long a GPU's plans may be timed in all; no limit unless given.",
    ),
]
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
        say(f"error: {e.filename or 'standard output'}: {e.strerror or e}")
        code = BAD_INPUT
    if code == INTERRUPTED:
        say("interrupted; what was saved is kept")
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except NetError as e:
        complain(e)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:
        say("error: this needs more memory than there is")
        return BAD_INPUT
    except UnicodeEncodeError as e:
        say(f"error: {e.object!r} is no readable text")
        return BAD_INPUT
    except typer.Exit as e:
        return e.exit_code
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        if e.format_message():
            say(f"error: {e.format_message()}")
        return BAD_INPUT
    return code if isinstance(code, int) else OK


def complain(error: NetError) -> None:
    say(error.render())


def say(text: str) -> None:
    """On standard error; what a terminal would obey in it is shown instead."""
    print(printable(text), file=sys.stderr)


def show(text: str, end: str = "\n") -> None:
    """As `say`, on standard output."""
    print(printable(text), end=end)


def print_json(value: Any) -> None:
    print(json.dumps(finite(value), allow_nan=False))


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
