"""What a run keeps: its text, its metrics, its last, its best and every n-th epoch's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from netdsl.errors import NetError, fail
from netdsl.files import write_atomically
from netdsl.runtime.state import State
from netdsl.train import checkpoint
from netdsl.train.checkpoint import SUFFIX, Checkpoint, usable
from netdsl.train.job import Job
from netdsl.train.metrics import Record
from netdsl.train.pipeline import KEY as PIPELINE
from netdsl.train.pipeline import revisions
from netdsl.train.standing import Standing
from netdsl.train.step import SUMS
from netdsl.train.written import write_recipe
from netdsl.types import Array

KEPT = ("recipe.net", "metrics.jsonl", f"last{SUFFIX}", f"best{SUFFIX}")
"""The files of a run directory."""
LEFTOVERS = ".netdsl-*"
"""Files that were being written when a run was killed."""


class Keeper:
    """The directory of a run. What a run that was cut off had no time to keep is made up for;
    `before` is the text that it went by until then."""

    def __init__(
        self,
        out: Path,
        job: Job,
        state: State,
        standing: Standing,
        before: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.out, self.job, self.state = out, job, state
        self.revisions = revisions(job)
        for path in out.glob(LEFTOVERS):
            path.unlink(missing_ok=True)
        if before is not None:
            self._keep_edits((before, job.net_text), say)
        write_recipe(out / "recipe.net", job.name, job.net_text, standing.changes)
        self.record = Record.kept(out / "metrics.jsonl", standing.lines, standing.history)
        if self.record.set_aside is not None:
            say(f"{self.record.path} was damaged; as it was, it is {self.record.set_aside}")
        if standing.epoch:
            self._settle(standing)

    @property
    def last(self) -> Path:
        return self.out / f"last{SUFFIX}"

    @property
    def best(self) -> Path:
        return self.out / f"best{SUFFIX}"

    def _keep_edits(self, known: Sequence[str], say: Callable[[str], None]) -> None:
        """The text of a run that goes on is its checkpoint's: one that was edited is set aside."""
        path, beside = self.out / "recipe.net", self.out / "recipe.net.edited"
        content = path.read_bytes() if path.is_file() else known[0].encode()
        if _plain(content) not in [_plain(text.encode()) for text in known]:
            write_atomically(beside, content)
            say(
                f"{path} differs from what the run goes on with; as it was, it is {beside} "
                "(`--resume DIR --set KEY=VALUE` changes a run)"
            )

    def _settle(self, s: Standing) -> None:
        """Raises NetError where the best weights are lost."""
        whole = s.seen == 0
        try:
            best = checkpoint.load(self.best).progress
        except NetError:
            if s.best != s.epoch or not whole:
                raise
            best = {"epoch": 0, "history": []}
        there, history = best.get("epoch"), best.get("history")
        if not isinstance(there, int) or history != [dict(m) for m in s.history[:there]]:
            message = f"{self.best} is of another run than {self.last}"
            raise fail(message, help="put the right one back; every run has a directory of its own")
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

    def save_last(self, s: Standing, data: str | None = None) -> None:
        """All that a run needs to go on, on `data` that are known by another fingerprint where
        one is given."""
        states = {k: v for k, v in self.state.snapshot().items() if not k.endswith(SUMS)}
        self._save("last", s, states, data)

    def _save_for_good(self, s: Standing) -> None:
        every = self.job.recipe.keep_every
        if every and s.epoch % every == 0:
            self._save_usable(f"epoch-{s.epoch:04}", s)

    def _save_usable(self, name: str, s: Standing) -> None:
        """Only what evaluation needs; of averaged weights the average."""
        given = usable(self.state.snapshot())
        self._save(name, s, {n.name: given[n.name] for n in self.job.evaluation.states})

    def _save(
        self, name: str, s: Standing, states: Mapping[str, Array], data: str | None = None
    ) -> None:
        s = replace(s, lines=self.record.count)
        metrics: Mapping[str, Any] = s.history[-1] if s.history else {}
        job = self.job
        progress = {**s.as_json(), "data": data or job.data, PIPELINE: self.revisions}
        content = Checkpoint(states, job.net_text, job.dataset.classes, metrics, progress)
        checkpoint.save(self.out / f"{name}{SUFFIX}", content)


def _plain(text: bytes) -> list[bytes]:
    """The lines of a text below the notes that it begins with."""
    lines = text.strip().splitlines()
    return list(dropwhile(lambda line: line.startswith(b"#") or not line.strip(), lines))
