"""Phases: what a run does when it does not train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A phase, such as `reading data`; if `total` is not 0, it has done `done` of so many images or
    other units. `epoch` names the epoch that it is part of, if any."""

    name: str
    done: int = 0
    total: int = 0
    epoch: str = ""
    unit: str = "images"

    @property
    def description(self) -> str:
        """The phase without its epoch."""
        done = min(self.done, self.total)  # the last batch is padded
        return f"{self.name}, {done:,} of {self.total:,} {self.unit}" if self.total else self.name

    def __str__(self) -> str:
        return f"{self.epoch}: {self.description}" if self.epoch else self.description


OnPhase = Callable[[Phase], None]


def ignore_phase(phase: Phase) -> None:
    """An `OnPhase` that does nothing."""
