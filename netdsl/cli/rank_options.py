"""What `train` does when it is one of several ranks, or is to start them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl import __version__
from netdsl.cli.app import echo_stderr
from netdsl.cli.file_arguments import parse_argument, read_source
from netdsl.ranks.local_launch import MAX_LOCAL_RANKS, check_ranks, make_command, replace_process

if TYPE_CHECKING:
    from netdsl.backends.base import Backend
    from netdsl.cli.progress import WorkDisplay
    from netdsl.language.program import Program
    from netdsl.language.syntax import File
    from netdsl.ranks.communicator import Communicator
    from netdsl.training.run.callbacks import StepReport
    from netdsl.training.run.phase import Phase

RanksOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=MAX_LOCAL_RANKS,
        help="Train on N processes of this machine, which share every batch; started by mpiexec.",
    ),
]
_SHARED_VARIABLES = ("NETDSL_VECTOR",)
"""The variables of the environment on which the bits of an update depend."""


def start_ranks(count: int | None) -> int | None:
    """Starts this command again on several ranks, in place of this process, unless that has been
    done. Returns the exit code if the command has run."""
    if count is None or not check_ranks(count):
        return None
    command = make_command(count)
    echo_stderr(f"{count} ranks, started by {command[0]}")
    return replace_process(command)


def make_parser(communicator: Communicator) -> Callable[[str], File]:
    """Returns what parses a file of the command line. Of several ranks, rank 0 reads standard
    input for all: a launcher gives it to nobody else."""

    def parse(path: str) -> File:
        from netdsl.language.upgrade import parse_any_format

        if path != "-" or communicator.is_alone:
            return parse_argument(path)
        text = communicator.share(lambda: read_source(path).encode()).decode()
        return parse_any_format(text, "<stdin>")

    return parse


def check_same_options(communicator: Communicator, options: Mapping[str, object]) -> None:
    """Raises NetError, on all ranks, if they run other versions or have other options."""
    from netdsl.ranks.same_start import check_same

    variables = {name: os.environ.get(name, "") for name in _SHARED_VARIABLES}
    given = {f"`--{name}`": _format_option(value) for name, value in options.items()}
    check_same(communicator, {"the version of netdsl": __version__, **given, **variables})


def _format_option(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def check_same_program(
    communicator: Communicator, program: Program, name: str | None, backend: Backend
) -> None:
    """Raises NetError, on all ranks, if they have read other files or run on other devices."""
    from netdsl.language.format import format_file
    from netdsl.ranks.same_start import check_same
    from netdsl.training.recipe.resolved_recipe import resolve_file

    if communicator.is_alone:
        return
    text = format_file(resolve_file(program, name))
    check_same(communicator, {"the net with its recipe": text, "the device": backend.name})


class NotedDisplay:
    """A display that also tells the watchdog what this rank does."""

    def __init__(self, display: WorkDisplay, communicator: Communicator) -> None:
        self._display, self._activity = display, communicator.activity

    @property
    def title(self) -> str:
        return self._display.title

    @title.setter
    def title(self, value: str) -> None:
        self._display.title = value

    def on_phase(self, phase: Phase) -> None:
        self._activity.phase = str(phase)
        self._display.on_phase(phase)

    def on_step(self, report: StepReport) -> None:
        place = f"in epoch {report.epoch + 1}, step {report.step:,} of {report.steps:,}"
        self._activity.phase = place
        self._display.on_step(report)

    def print(self, text: str) -> None:
        self._display.print(text)
