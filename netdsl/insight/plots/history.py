"""What runs have measured so far, read from their directories: finished, resumed or still going."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.errors import NetError, fail
from netdsl.file_io import read_regular_file
from netdsl.json_schema import JsonArray, JsonObject, JsonString, SchemaError, read_json
from netdsl.language import syntax as s
from netdsl.language.format import format_file
from netdsl.language.override import override
from netdsl.language.program import Program, build_program, reject_read
from netdsl.language.upgrade import parse_any_format, read_heading
from netdsl.limits import MAX_FILE_BYTES, MAX_METRICS_BYTES, MAX_SWEEP_RUNS
from netdsl.training.recipe.recipe import Recipe, resolve_recipe, stage_names
from netdsl.training.step.watch import WATCHABLE
from netdsl.training.store.metrics_log import is_number, read_metrics, select_numbers
from netdsl.training.store.progress import find_candidates, quality
from netdsl.training.store.run_directory import RUN_FILES
from netdsl.types import Array

RECIPE_FILE, METRICS_FILE = RUN_FILES[:2]
_UNNAMED = "section"
"""What the heading of a recipe.net calls a recipe without a name."""


@dataclass(frozen=True)
class RunFacts:
    """What a run's recipe.net says: the name of the recipe (None for the unnamed one), the recipe
    with every default, the names of the stages before it, and the whole text."""

    recipe_name: str | None
    recipe: Recipe
    stages: tuple[str, ...]
    text: str
    kind: str
    """The text without the seed: equal for runs of one recipe that differ only in their seeds."""

    @property
    def seed(self) -> int:
        return self.recipe.seed


@dataclass(frozen=True)
class WatchTable:
    """Norms by layer and step: `values` is [layers, steps], NaN where nothing was measured."""

    layers: tuple[str, ...]
    steps: Array
    values: Array


@dataclass(frozen=True)
class RunHistory:
    """What a run has measured: a row for each finished epoch (the columns are those of
    metrics.jsonl, without those that are undefined), a row for each watched step, and the metrics
    of the test set, if the run came to that. `stages` are the runs before it that its recipe comes
    after, first to last. `facts` is None if its recipe.net is missing or invalid."""

    name: str
    directory: Path
    epochs: tuple[Mapping[str, float], ...]
    watches: tuple[Mapping[str, Any], ...]
    test: Mapping[str, float]
    facts: RunFacts | None
    stages: tuple[RunHistory, ...] = ()

    @property
    def parts(self) -> tuple[RunHistory, ...]:
        """The stages, and then the run itself."""
        return (*self.stages, self)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was read from."""
        return tuple(part.directory / name for part in self.parts for name in RUN_FILES[:2])

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns with a number in some epoch, of the stages too."""
        rows = chain.from_iterable(part.epochs for part in self.parts)
        names = dict.fromkeys(k for row in rows for k in row)
        return tuple(name for name in names if name not in _COUNTERS)

    @cached_property
    def best_epoch(self) -> int | None:
        """The number of the best epoch so far by the recipe's `best`; None before the first. The
        epochs of earlier stages do not count."""
        known = [row for row in self.epochs if row.get("train_loss") is not None]
        if not known:
            return None
        best = self.facts.recipe.best if self.facts is not None else None
        candidates = [known[i] for i in find_candidates(known)]
        return int(max(candidates, key=lambda row: quality(row, best))["epoch"])

    def column(self, name: str) -> Array:
        """The values of a column, [epochs of all stages]; NaN where there is none."""
        rows = chain.from_iterable(part.epochs for part in self.parts)
        return np.array([_to_float(row.get(name)) for row in rows], np.float64)

    def position(self, by: str) -> Array:
        """Where each epoch ends, [epochs of all stages]: in epochs, in steps (updates), or in
        seconds of training, counted from the start of the first stage."""
        return np.concatenate(
            [offset + part._own_position(by) for offset, part in self._placed_parts(by)]
        )

    def stage_starts(self, by: str) -> tuple[tuple[str, float], ...]:
        """The name of each stage, and where it starts; empty for a run without stages."""
        if not self.stages:
            return ()
        last = self.facts.recipe_name if self.facts is not None else None
        names = (*(stage.name for stage in self.stages), last or self.name)
        starts = (offset for offset, _ in self._placed_parts(by))
        return tuple(zip(names, starts, strict=True))

    def watch_table(self, quantity: str) -> WatchTable:
        """The norms of `gradients` or `activations` by layer and step. The gradients of the weights
        of a layer are one vector, so that their norm is the root of the sum of the squares."""
        squares: dict[str, dict[int, float]] = {}
        steps: list[int] = []
        for offset, part in self._placed_parts("step"):
            for row in part.watches:
                entries = row.get(quantity)
                if not isinstance(entries, dict):
                    continue
                at = len(steps)
                steps.append(int(offset) + row["watched_at"])
                for path, entry in entries.items():
                    layer = path.rpartition(".")[0] if quantity == "gradients" else path
                    norm = _to_float(entry.get("norm")) if isinstance(entry, dict) else math.nan
                    of_layer = squares.setdefault(layer or path, {})
                    of_layer[at] = of_layer.get(at, 0.0) + norm * norm
        values = np.full((len(squares), len(steps)), np.nan)
        for i, of_layer in enumerate(squares.values()):
            values[i, list(of_layer)] = np.sqrt(np.array([*of_layer.values()]))
        return WatchTable(tuple(squares), np.array(steps, np.int64), values)

    @property
    def watched(self) -> tuple[str, ...]:
        """Which quantities were watched."""
        rows = [row for part in self.parts for row in part.watches]
        return tuple(name for name in WATCHABLE if any(name in row for row in rows))

    def _own_position(self, by: str) -> Array:
        if by == "seconds":
            seconds = (_to_float(row.get("seconds")) for row in self.epochs)
            spent = [x if math.isfinite(x) else 0.0 for x in seconds]
            return np.array([*accumulate(spent)], np.float64)
        return np.array([_to_float(row.get(by)) for row in self.epochs], np.float64)

    def _placed_parts(self, by: str) -> Iterator[tuple[float, RunHistory]]:
        """The stages and the run, each with the position where it starts."""
        offset = 0.0
        for part in self.parts:
            yield offset, part
            own = part._own_position(by)
            offset += float(own[-1]) if len(own) else 0.0


_COUNTERS = ("epoch", "step")
"""Columns that are positions."""


def read_histories(paths: Sequence[Path]) -> tuple[RunHistory, ...]:
    """The histories of runs, each of which is named by its directory or a file in it; the directory
    of a sweep stands for all its runs. Their names are as short as possible, and all different.
    Raises NetError if there is no run, or one is given twice."""
    folders = [folder for path in paths for folder in _find_runs(path)]
    seen: dict[Path, Path] = {}
    for folder in folders:
        same = folder.resolve()
        if same in seen:
            raise fail(f"the run {folder} is given twice")
        seen[same] = folder
    names = _shorten([*seen])
    return tuple(
        replace(read_history(folder), name=name)
        for folder, name in zip(folders, names, strict=True)
    )


def read_history(folder: Path) -> RunHistory:
    """The history of the run in a directory. Raises NetError if it contains none."""
    if not is_run(folder):
        reason = "there is no metrics.jsonl" if folder.exists() else "there is no such directory"
        help = "a run is the directory that `netdsl train` prints, such as runs/digits-1"
        raise fail(f"{folder} does not contain a run: {reason}", help=help)
    facts = _read_facts(folder / RECIPE_FILE)
    names = facts.stages if facts is not None else ()
    stages = (folder / name for name in names)
    return replace(
        _read_own_history(folder, facts),
        stages=tuple(
            _read_own_history(stage, _read_facts(stage / RECIPE_FILE))
            for stage in stages
            if is_run(stage)
        ),
    )


def is_run(folder: Path) -> bool:
    """Whether a directory contains a run: its recipe or its metrics."""
    return any((folder / name).is_file() for name in (RECIPE_FILE, METRICS_FILE))


def _find_runs(path: Path) -> list[Path]:
    """The run of a path, or those of a sweep's directory, in the order of its table and then of
    their names."""
    folder = path.parent if path.is_file() and path.name in RUN_FILES else path
    if is_run(folder) or not folder.is_dir():
        return [folder]
    rows = _read_sweep_order(folder / SWEEP_FILE)
    order = lambda run: (rows.get(run.name, len(rows)), _natural_order(run))
    found = sorted((p.parent for p in folder.glob(f"*/{RECIPE_FILE}")), key=order)
    if len(found) > MAX_SWEEP_RUNS:
        raise fail(f"{folder} contains {len(found):,} runs, over {MAX_SWEEP_RUNS:,}")
    return found or [folder]


def _read_sweep_order(path: Path) -> dict[str, int]:
    """The number of each run of a sweep by its name; empty if its file is missing or damaged."""
    try:
        content = read_json(read_regular_file(path, _MAX_SWEEP_BYTES))
        _SWEEP_SCHEMA.check(content, "sweep")
    except (NetError, SchemaError):
        return {}
    return {run["name"]: i for i, run in enumerate(content["runs"])}


SWEEP_FILE = "sweep.json"
_MAX_SWEEP_BYTES = 2**26
_SWEEP_SCHEMA = JsonObject(
    {"runs": JsonArray(JsonObject({"name": JsonString(1000)}), MAX_SWEEP_RUNS)}
)


def _natural_order(path: Path) -> list[tuple[float, str]]:
    """A sort key by which `lr=0.01` comes after `lr=0.003`, and `seed=10` after `seed=9`."""
    pieces = _NUMBER.split(path.name)
    return [(float(piece), "") if i % 2 else (0.0, piece) for i, piece in enumerate(pieces)]


_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,15})?(?:e-?\d{1,2})?)", re.ASCII)


def _read_own_history(folder: Path, facts: RunFacts | None) -> RunHistory:
    epochs: dict[int, Mapping[str, float]] = {}
    watches: dict[int, Mapping[str, Any]] = {}
    test: Mapping[str, float] = {}
    path = folder / METRICS_FILE
    if path.exists() and path.stat().st_size > MAX_METRICS_BYTES:
        raise fail(f"{path} has more than {MAX_METRICS_BYTES:,} bytes")
    for row in read_metrics(path):
        if "watched_at" in row:
            watches[row["watched_at"]] = row
        elif "test_images" in row:
            test = select_numbers(row)
        elif "epoch" in row:
            epochs[row["epoch"]] = select_numbers(row)
    in_order = tuple(epochs[k] for k in sorted(epochs)), tuple(watches[k] for k in sorted(watches))
    return RunHistory(folder.resolve().name, folder, *in_order, test, facts)


def _read_facts(path: Path) -> RunFacts | None:
    try:
        text = read_regular_file(path, MAX_FILE_BYTES).decode()
        file = parse_any_format(text, str(path))
        program = build_program(file, reject_read)
        recipe, stages = resolve_recipe(program), stage_names(program, None)[:-1]
    except (
        NetError,
        UnicodeDecodeError,
    ):  # an edited file: what was measured is there all the same
        return None
    heading = read_heading(text)
    name = heading.recipe if heading is not None and heading.recipe != _UNNAMED else None
    kind = f"{name} {_drop_seed(file, program)}"
    return RunFacts(name, recipe, tuple(map(str, stages)), text, kind)


def _drop_seed(file: s.File, program: Program) -> str:
    return format_file(override(file, ["train.seed=0"]))


def _shorten(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many of those before it as tell them apart."""
    for depth in range(1, max((len(p.parts) for p in folders), default=1) + 1):
        names = ["/".join(p.parts[-depth:]) for p in folders]
        if len({*names}) == len(names):
            break
    return names


def _to_float(value: Any) -> float:
    return float(value) if is_number(value) else math.nan
