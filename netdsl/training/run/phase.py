"""Phases: what a run does when it does not train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A phase, such as `reading data`; if `total` is not 0, it has done `done` of so many
    images."""

    name: str
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        done = min(self.done, self.total)  # the last batch is padded
        return f"{self.name}, {done:,} of {self.total:,} images" if self.total else self.name


OnPhase = Callable[[Phase], None]


def ignore_phase(phase: Phase) -> None:
    """An `OnPhase` that does nothing."""
