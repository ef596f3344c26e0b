"""A line now and then that says where long work is, for output that is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netdsl.training.run.callbacks import StepReport
    from netdsl.training.run.phase import Phase

INTERVAL = 60.0
"""Seconds without a line after which one is printed."""


class Heartbeat:
    """Prints where work is whenever nothing has been printed for `INTERVAL` seconds, by `show`,
    which is called from another thread. `title` starts each of these lines."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.title = ""
        self._show = show
        self._interval = INTERVAL
        self._tracker = WorkTracker()
        self._ended = Event()
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)
        self._postpone()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def on_phase(self, phase: Phase) -> None:
        self._tracker.on_phase(phase)

    def on_step(self, report: StepReport) -> None:
        self._tracker.on_step(report)

    def print(self, text: str) -> None:
        """Prints a line of the work itself."""
        self._postpone()
        self._show(text)

    def _postpone(self) -> None:
        self._next = time.monotonic() + self._interval

    def _beat(self) -> None:
        while not self._ended.wait(max(0.0, self._next - time.monotonic())):
            line = self._tracker.describe()
            if time.monotonic() >= self._next:
                self._postpone()
                if line:
                    self._show(self.title + line)


class WorkTracker:
    """Where work is: in a phase, or in a step of training."""

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.step: StepReport | None = None
        self._phase_start = self._pace_start = 0.0
        self._first_step = 0

    def on_phase(self, phase: Phase) -> None:
        if self.phase is None or self.phase.name != phase.name:  # not only more images
            self._phase_start = time.monotonic()
        self.phase = phase

    def on_step(self, report: StepReport) -> None:
        if self.step is None or report.completed_steps < self.step.completed_steps:  # a new run
            self._pace_start, self._first_step = time.monotonic(), report.completed_steps
        self.phase, self.step = None, report

    def describe(self) -> str:
        """What the work does now, as a line of text; empty before it has begun."""
        phase, step = self.phase, self.step
        if phase is not None:
            seconds = time.monotonic() - self._phase_start
            return f"{phase}, {format_duration(seconds)} so far" if seconds >= 2 else str(phase)
        if step is None:
            return ""
        loss = "" if step.loss is None else f", loss {step.loss:.4f}"
        left = self._seconds_left(step)
        return (
            f"epoch {step.epoch + 1}/{step.epochs}, step {step.step:,} of {step.steps:,}{loss}, "
            f"{step.images_per_second:,.0f} images/s"
            + (f", about {format_duration(left)} left" if left is not None else "")
        )

    def _seconds_left(self, step: StepReport) -> float | None:
        """From the mean time of a step since the first one, which includes validation."""
        steps = step.completed_steps - self._first_step
        if not steps:
            return None
        seconds = time.monotonic() - self._pace_start
        return (step.epochs * step.steps - step.completed_steps) * seconds / steps


def format_duration(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
