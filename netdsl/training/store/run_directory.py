"""The files of a run: its text, its metrics, and the last, best and every n-th epoch's weights."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from netdsl.errors import NetError, fail
from netdsl.file_io import write_atomically
from netdsl.runtime.state import State
from netdsl.training.job import Job
from netdsl.training.step.graphs import SUM_SUFFIX
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import SUFFIX, Checkpoint, inference_states
from netdsl.training.store.metrics_log import MetricsLog, MutedLog
from netdsl.training.store.pipeline_revisions import PIPELINE_KEY as PIPELINE
from netdsl.training.store.pipeline_revisions import pipeline_revisions
from netdsl.training.store.progress import Progress
from netdsl.training.store.recipe_file import write_recipe
from netdsl.types import Array

RUN_FILES = ("recipe.net", "metrics.jsonl", f"last{SUFFIX}", f"best{SUFFIX}")
"""The files of a run directory."""
TEMPORARY_FILES = ".netdsl-*"
"""Files that were being written when a run was killed."""


def create_run_directory(path: str, out: Path | None) -> Path:
    """The directory for a new run, created immediately so that no other run takes it.

    Raises NetError if the requested one already contains files of a run, or if one of its
    subdirectories does, which may have the name of a stage.
    """
    if out is not None:
        paths = [p for name in RUN_FILES for place in (name, f"*/{name}") for p in out.glob(place)]
        existing_files = [str(p.relative_to(out)) for p in paths]
        if existing_files:
            message = f"{out} already contains {', '.join(existing_files)}"
            help = "give another `--out`; no file is ever overwritten"
            if {"recipe.net", f"last{SUFFIX}"} <= {p.name for p in paths}:
                help = f"continue this run with `--resume {shlex.quote(str(out))}`, or {help}"
            raise fail(message, help=help)
        return _create(out, exist_ok=True)
    return create_numbered(Path("runs"), path)


def create_numbered(parent: Path, path: str) -> Path:
    """Creates and returns a new folder NAME-N in `parent` for a .net file (`-` for stdin), with the
    first number that is free."""
    stem = Path(path).stem if path != "-" else "stdin"
    parent, number = _create(parent, exist_ok=True), 1
    while True:
        try:
            return _create(parent / f"{stem}-{number}")
        except FileExistsError:
            number += 1


def _create(folder: Path, exist_ok: bool = False) -> Path:
    """Creates a folder, which may exist if `exist_ok`; else that is a FileExistsError."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise
        raise fail(f"cannot create {folder}: there is a file of that name") from None
    except (OSError, ValueError) as e:  # ValueError: a name with a zero byte
        raise fail(f"cannot create {folder}: {getattr(e, 'strerror', None) or e}") from None
    return folder


class RunDirectory:
    """The directory of a run. Opening it writes the files that an interrupted run had no time to
    write. `previous_text` is the text that the run used so far."""

    def __init__(
        self,
        folder: Path,
        job: Job,
        state: State,
        progress: Progress,
        previous_text: str | None,
        log: Callable[[str], None],
    ) -> None:
        self.folder, self.job, self.state = folder, job, state
        self.revisions = pipeline_revisions(job)
        self.metrics_log = self._open(progress, previous_text, log)

    def _open(
        self, progress: Progress, previous_text: str | None, log: Callable[[str], None]
    ) -> MetricsLog:
        """Brings the files up to date, and returns the log of metrics."""
        folder, job = self.folder, self.job
        for path in folder.glob(TEMPORARY_FILES):
            path.unlink(missing_ok=True)
        if previous_text is not None:
            self._back_up_edits((previous_text, job.net_text), log)
        write_recipe(folder / "recipe.net", job.name, job.net_text, progress.changes)
        found = MetricsLog.restore(folder / "metrics.jsonl", progress.lines, progress.history)
        self.metrics_log = found  # whose length the checkpoints hold that are saved now
        if found.damaged_copy is not None:
            log(f"{found.path} was damaged; the damaged file was kept as {found.damaged_copy}")
        if progress.epoch:
            self._check_best(progress)
        return found

    @property
    def last(self) -> Path:
        return self.folder / f"last{SUFFIX}"

    @property
    def best(self) -> Path:
        return self.folder / f"best{SUFFIX}"

    def _back_up_edits(self, known_texts: Sequence[str], log: Callable[[str], None]) -> None:
        """A resumed run uses the text of its checkpoint: backs up a recipe.net that was edited."""
        path, beside = self.folder / "recipe.net", self.folder / "recipe.net.edited"
        content = path.read_bytes() if path.is_file() else known_texts[0].encode()
        if _body_lines(content) not in [_body_lines(text.encode()) for text in known_texts]:
            write_atomically(beside, content)
            log(
                f"{path} differs from what the run resumes with; it was kept as {beside} "
                "(`--resume DIR --set KEY=VALUE` changes a run)"
            )

    def _check_best(self, s: Progress) -> None:
        """Raises NetError if the best weights are missing or belong to another run; writes what an
        interrupted run has not saved."""
        whole = s.seen == 0
        try:
            best = checkpoint.load(self.best).progress
        except NetError:
            if not (whole and self._is_best(s)):
                raise
            best = {"epoch": 0, "history": []}
        there, history = best.get("epoch"), best.get("history")
        if not isinstance(there, int) or history != [dict(m) for m in s.history[:there]]:
            message = f"{self.best} belongs to a different run than {self.last}"
            raise fail(message, help="restore the right file; every run needs its own directory")
        if whole and self._is_best(s) and s.epoch != there:
            self._save_for_inference("best", s)
        if whole:
            self._save_periodic(s)

    def save_epoch(self, s: Progress, is_due: bool = True) -> bool:
        """Saves a finished epoch; the last checkpoint only if it is due, if the run is finished, or
        before the best one, so that if the run stops in between, the best one can be restored from
        it. Returns whether it was saved."""
        is_saved = self._saves_last(s, is_due)
        if is_saved:
            self.save_last(s)
        if self._is_best(s):
            self._save_for_inference("best", s)
        self._save_periodic(s)
        return is_saved

    def _saves_last(self, s: Progress, is_due: bool) -> bool:
        return is_due or self._is_best(s) or s.is_finished(self.job.recipe)

    def _is_best(self, s: Progress) -> bool:
        """Whether the last finished epoch is the best one so far."""
        return s.best_epoch(self.job.recipe.best) == s.epoch

    def save_last(self, s: Progress, data: str | None = None) -> None:
        """Saves everything that is needed to resume the run. `data`, if given, is stored instead of
        the data's fingerprint."""
        states = {k: v for k, v in self.state.snapshot().items() if not k.endswith(SUM_SUFFIX)}
        self._save("last", s, states, data)

    def _save_periodic(self, s: Progress) -> None:
        every = self.job.recipe.keep_every
        if every and s.epoch % every == 0:
            self._save_for_inference(f"epoch-{s.epoch:04}", s)

    def _save_for_inference(self, name: str, s: Progress) -> None:
        """Saves only what evaluation needs; the averages instead of averaged weights."""
        given = inference_states(self.state.snapshot())
        self._save(name, s, {n.name: given[n.name] for n in self.job.evaluation_graph.states})

    def _save(
        self, name: str, s: Progress, states: Mapping[str, Array], data: str | None = None
    ) -> None:
        s = replace(s, lines=self.metrics_log.count)
        metrics: Mapping[str, Any] = s.history[-1] if s.history else {}
        job = self.job
        progress = {**s.as_json(), "data": data or job.saved_fingerprint, PIPELINE: self.revisions}
        content = Checkpoint(states, job.net_text, job.dataset.classes, metrics, progress)
        checkpoint.save(self.folder / f"{name}{SUFFIX}", content)


class ReplicaDirectory(RunDirectory):
    """The directory of a run for the ranks other than 0, which write nothing."""

    def _open(
        self, progress: Progress, previous_text: str | None, log: Callable[[str], None]
    ) -> MetricsLog:
        return MutedLog(self.folder / "metrics.jsonl", progress.lines)

    def save_epoch(self, s: Progress, is_due: bool = True) -> bool:
        """Rank 0 saves it."""
        return self._saves_last(s, is_due)

    def save_last(self, s: Progress, data: str | None = None) -> None:
        """Rank 0 saves it."""


def _body_lines(text: bytes) -> list[bytes]:
    """The lines of a text without its leading comments."""
    lines = text.strip().splitlines()
    return list(dropwhile(lambda line: line.startswith(b"#") or not line.strip(), lines))
