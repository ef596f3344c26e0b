"""Where a command is, on standard error: a spinner or a bar on a terminal, else a line a minute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from netdsl.cli.app import echo_stderr
from netdsl.cli.tables import CONSOLE_OPTIONS
from netdsl.text_escaping import escape_line, escape_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from netdsl.insight.recorders import Recorder
    from netdsl.training.run.callbacks import Result, StepReport
    from netdsl.training.run.phase import Phase
    from netdsl.training.run.trainer import Trainer
    from netdsl.training.step.watch import WatchRequest


class WorkDisplay(Protocol):
    """Shows where work is; `title` starts what is shown, `print` prints a line above it."""

    title: str

    def on_phase(self, phase: Phase) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def print(self, text: str) -> None: ...


@contextmanager
def show_progress(phase: str | None = None) -> Iterator[WorkDisplay]:
    """Shows on standard error where the work of the block is, which starts with `phase`. Nothing
    else may be printed inside it."""
    from netdsl.training.run.heartbeat import Heartbeat
    from netdsl.training.run.phase import Phase

    with _show_on_terminal() if _is_terminal() else Heartbeat(echo_stderr) as display:
        if phase is not None:
            display.on_phase(Phase(phase))
        yield display


def _is_terminal() -> bool:
    """Whether standard error is a terminal that can rewrite a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


@contextmanager
def _show_on_terminal() -> Iterator[TerminalProgress]:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, **CONSOLE_OPTIONS)
    display = TerminalProgress(console)
    with Live(
        console=console,
        get_renderable=display.render,
        transient=True,
        refresh_per_second=10,
        redirect_stdout=False,
    ) as live:
        display.refresh = live.refresh
        yield display


class TerminalProgress:
    """A spinner with the phase; in training a bar with loss, images/s and remaining time."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.spinner import Spinner

        from netdsl.training.run.heartbeat import WorkTracker

        self.title = ""
        self.refresh: Callable[[], None] = lambda: None
        self._console, self._tracker = console, WorkTracker()
        self._spinner = Spinner("line")  # of ASCII characters, which every terminal has
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("", total=None, status="")

    def on_phase(self, phase: Phase) -> None:
        last = self._tracker.phase
        self._tracker.on_phase(phase)
        if phase.epoch:
            self._bar.update(self._task, status=phase.description)
        if last is None or last.name != phase.name:
            self.refresh()  # a phase that ends soon is seen too

    def on_step(self, report: StepReport) -> None:
        self._tracker.on_step(report)
        loss = "" if report.loss is None else f"loss {report.loss:.4f}  "
        self._bar.update(
            self._task,
            total=report.epochs * report.steps,
            completed=report.completed_steps,
            description=f"{escape_line(self.title)}epoch {report.epoch + 1}/{report.epochs}",
            status=f"{loss}{report.images_per_second:,.0f} images/s",
        )

    def print(self, text: str) -> None:
        self._console.print(escape_text(text), soft_wrap=True)

    def render(self) -> RenderableType:
        """What is shown now."""
        from rich.text import Text

        phase, step = self._tracker.phase, self._tracker.step
        if step is not None and (phase is None or phase.epoch):
            return self._bar.get_renderable()
        line = self._tracker.describe()
        if not line:
            return Text("")
        self._spinner.update(text=Text(escape_line(self.title + line)))
        return self._spinner


def run_trainer(
    trainer: Trainer,
    out: Path,
    display: WorkDisplay,
    is_quiet: bool,
    should_stop: Callable[[], bool],
    watch: WatchRequest | None = None,
    recorders: Mapping[str, Recorder] | None = None,
) -> Result:
    """Runs a trainer, prints a line for each epoch unless `is_quiet`, and has recorders follow the
    run."""
    from netdsl.insight.recorders import follow_run
    from netdsl.training.run.callbacks import format_epoch

    with follow_run(recorders or {}, display.print) as update:

        def on_epoch(metrics: dict[str, Any]) -> None:
            if not is_quiet:
                display.print(format_epoch(metrics, trainer.recipe))
            update()

        return trainer.run(out, display.on_step, on_epoch, should_stop, watch, display.print)
