"""The Typer application: shared options, the entry point, and error reporting."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl import __version__
from netdsl.cli.usage_advice import explain
from netdsl.errors import Diagnostic, NetError
from netdsl.file_io import replace_non_finite
from netdsl.ranks.abandoned_launch import is_rank
from netdsl.ranks.launcher import find_launch
from netdsl.standard_streams import STANDARD_OUTPUT
from netdsl.text_escaping import escape_text

if TYPE_CHECKING:
    from netdsl.interchange.transfer_report import TransferReport

OK, CHECK_FAILED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 70, 130


class SavedExitCode(int):
    """The exit code of work whose results are saved in files: if they cannot also be printed,
    nothing is lost."""


class StoppedExitCode(int):
    """The exit code of a run that has saved and stopped, which its ranks did together."""


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A graph-compiled language for convolutional networks.",
)

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE[:NAME]", help="A .net file; `-` reads stdin.")
]
NetArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE[:NET]|WEIGHTS", help="A .net file (`-` reads stdin), a checkpoint, or a run."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as train.epochs=5."),
]
ShrinkOption = Annotated[
    int | None,
    typer.Option(
        "--shrink",
        metavar="N",
        min=1,
        max=2**20,
        help="Use a small version: channels divided by N, and the smallest images that its "
        "layers accept.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda, cpu, reference or model.")]
TuneOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="Total time for timing kernels on a GPU; default: no limit.",
    ),
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="The folder that contains the data set.")
]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, and what ended it, as text for people. `is_agreed` says
    that all ranks of the run have agreed to end so."""

    exit_code: int
    message: str | None = None
    is_agreed: bool = False


def main() -> None:
    """The entry point: user errors end in a message and an exit code. A reader that closes the
    output early changes neither; a full disk behind the output is reported."""
    # small products gain nothing from more threads, and are ten times slower when another process
    # runs; it must be set before NumPy is first imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    launch = find_launch()
    if launch is not None and is_rank(sys.argv):
        from netdsl.cli.rank_process import run_rank

        sys.exit(run_rank(launch, _run, conclude))
    sys.exit(conclude(_run()))


def conclude(outcome: Outcome) -> int:
    """Prints what is left to be said, and returns the exit code."""
    exit_code = outcome.exit_code
    if outcome.message:
        echo_stderr(outcome.message)
    sys.stdout.flush()
    write_error = STANDARD_OUTPUT.reportable_error
    if write_error is not None:
        echo_stderr(f"error: standard output: {write_error.strerror or write_error}")
        exit_code = (
            exit_code if exit_code != OK or isinstance(exit_code, SavedExitCode) else BAD_INPUT
        )
    return int(exit_code)


@cache
def command_tree(name: str | None = None) -> Any:
    """All commands with their options, or only the one of that name. Typer reads them from the
    signatures: for all that takes longer than many a command. The class is not public."""
    tree = copy(app)
    if name is not None:
        tree.registered_commands = [c for c in app.registered_commands if c.name == name]
    return typer.main.get_command(tree)


def _called_command() -> str | None:
    """The command that the command line names first; None if there is none of that name."""
    names = {c.name for c in app.registered_commands}
    return next((word for word in sys.argv[1:2] if word in names), None)


def _run() -> Outcome:
    try:
        exit_code = command_tree(_called_command())(standalone_mode=False)
    except NetError as e:
        return Outcome(BAD_INPUT, e.render())
    except KeyboardInterrupt:
        return _conclude_code(INTERRUPTED)
    except typer.Exit as e:
        return _conclude_code(e.exit_code)
    except Exception as e:
        message = _describe_error(e)
        if message is None:
            return Outcome(INTERNAL_ERROR, f"{traceback.format_exc()}this is a bug in netdsl")
        return Outcome(BAD_INPUT, f"error: {message}" if message else "")
    return _conclude_code(exit_code if isinstance(exit_code, int) else OK)


def _conclude_code(exit_code: int) -> Outcome:
    if exit_code != INTERRUPTED:  # which Typer also makes of an interrupt
        return Outcome(exit_code)
    message = "interrupted; everything that was saved is kept"
    return Outcome(exit_code, message, isinstance(exit_code, StoppedExitCode))


_NO_THREAD_MESSAGE = "can't start new thread"  # Python's message; the error has no type of its own


def _describe_error(e: Exception) -> str | None:
    """The message for an error that is not a bug in netdsl; None for a bug."""
    if isinstance(e, MemoryError):
        return "this needs more memory than is available"
    if isinstance(e, UnicodeEncodeError):
        return f"{e.object!r} is not valid text"
    if isinstance(e, OSError):
        reason = e.strerror or str(e)
        return f"{e.filename}: {reason}" if e.filename else reason
    if isinstance(e, ImportError):
        return f"a part of netdsl cannot be loaded: {e}"
    if isinstance(e, RuntimeError) and _NO_THREAD_MESSAGE in str(e):
        return (
            "the system cannot start more threads, because of too little memory or a limit "
            "(`ulimit -u`, "
            "`ulimit -v`); NETDSL_THREADS=1 uses the fewest"
        )
    if hasattr(e, "format_message"):  # Typer's own errors, whose class is not public
        return explain(str(e.format_message()), sys.argv[1:], command_tree().commands)
    return None


def print_error(error: NetError) -> None:
    echo_stderr(error.render())


def print_warnings(warnings: Iterable[Diagnostic]) -> None:
    for warning in warnings:
        echo_stderr(warning.render())


def echo_stderr(text: str) -> None:
    """Prints to standard error, with control characters escaped."""
    print(escape_text(text), file=sys.stderr)


def echo(text: str, end: str = "\n") -> None:
    """Like `echo_stderr`, to standard output."""
    print(escape_text(text), end=end)


def print_json(value: Any) -> None:
    print(json.dumps(replace_non_finite(value), allow_nan=False))


def print_transfer_report(report: TransferReport, as_json: bool) -> None:
    """Prints what an import or an export has done."""
    if as_json:
        print_json(report.values)
    else:
        for line in report.lines:
            echo(line)


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
