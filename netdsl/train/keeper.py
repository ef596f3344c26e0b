"""What a run keeps: its text, its metrics, its last, its best and every n-th epoch's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from netdsl.errors import NetError
from netdsl.files import write_atomically
from netdsl.runtime.state import State
from netdsl.train import checkpoint
from netdsl.train.checkpoint import SUFFIX, Checkpoint, usable
from netdsl.train.job import Job
from netdsl.train.metrics import Record
from netdsl.train.standing import Standing
from netdsl.train.step import SUMS
from netdsl.train.written import recipe_text
from netdsl.types import Array

KEPT = ("recipe.net", "metrics.jsonl", f"last{SUFFIX}", f"best{SUFFIX}")
"""The files of a run directory."""


class Keeper:
    """The directory of a run. What a run that was cut off had no time to keep is made up for."""

    def __init__(self, out: Path, job: Job, state: State, standing: Standing) -> None:
        self.out, self.job, self.state = out, job, state
        text = recipe_text(job.name, job.net_text, standing.changes)
        write_atomically(out / "recipe.net", text.encode())
        self.record = Record.kept(out / "metrics.jsonl", standing.lines, standing.history)
        if standing.epoch:
            self._settle(standing)

    @property
    def last(self) -> Path:
        return self.out / f"last{SUFFIX}"

    @property
    def best(self) -> Path:
        return self.out / f"best{SUFFIX}"

    def _settle(self, s: Standing) -> None:
        """Raises NetError where the best weights are lost."""
        whole = s.seen == 0
        try:
            there = checkpoint.load(self.best).progress.get("epoch")
        except NetError:
            if s.best != s.epoch or not whole:
                raise
            there = None
        if whole and s.best == s.epoch != there:
            self._save_usable("best", s)
        if whole:
            self._save_for_good(s)

    def epoch(self, s: Standing) -> None:
        """An epoch is over. The last checkpoint is written before the best, so that wherever a run
        is cut off, the last one can make up for what is missing."""
        self.save_last(s)
        if s.best == s.epoch:
            self._save_usable("best", s)
        self._save_for_good(s)

    def save_last(self, s: Standing) -> None:
        """All that a run needs to go on."""
        states = self.state.snapshot()
        self._save("last", s, {k: v for k, v in states.items() if not k.endswith(SUMS)})

    def _save_for_good(self, s: Standing) -> None:
        every = self.job.recipe.keep_every
        if every and s.epoch % every == 0:
            self._save_usable(f"epoch-{s.epoch:04}", s)

    def _save_usable(self, name: str, s: Standing) -> None:
        """Only what evaluation needs; of averaged weights the average."""
        given = usable(self.state.snapshot())
        self._save(name, s, {n.name: given[n.name] for n in self.job.evaluation.states})

    def _save(self, name: str, s: Standing, states: Mapping[str, Array]) -> None:
        s = replace(s, lines=self.record.count)
        metrics: Mapping[str, Any] = s.history[-1] if s.history else {}
        job = self.job
        content = Checkpoint(states, job.net_text, job.dataset.classes, metrics, s.as_json())
        checkpoint.save(self.out / f"{name}{SUFFIX}", content)
