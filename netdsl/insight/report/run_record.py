"""What the directory of a run says by itself: its recipe, its settings and its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.data.sources import NO_SOURCE
from netdsl.errors import fail
from netdsl.file_io import read_regular_file
from netdsl.insight.plots.history import RECIPE_FILE, RunHistory, read_histories
from netdsl.language import syntax as s
from netdsl.language.program import Program, build_program, decode_text, reject_read
from netdsl.language.unparse import expression_text
from netdsl.language.upgrade import parse_any_format
from netdsl.limits import MAX_FILE_BYTES
from netdsl.training.recipe.recipe import Recipe, resolve_recipe


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory describes it, with the text and the program of its recipe."""

    history: RunHistory
    text: str
    program: Program
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.history.name

    @property
    def folder(self) -> Path:
        return self.history.directory

    @property
    def epochs(self) -> tuple[Mapping[str, Any], ...]:
        """The metrics of each finished epoch, without those of earlier stages."""
        return self.history.epochs

    @property
    def test(self) -> Mapping[str, Any]:
        """The metrics of the test set; empty if there are none."""
        return self.history.test

    @property
    def best(self) -> Mapping[str, Any]:
        """The metrics of the best epoch; empty before the first."""
        best = self.history.best_epoch
        return next((m for m in self.epochs if m["epoch"] == best), {})

    @property
    def seconds(self) -> float:
        """The time that training took with its stages, without evaluation."""
        rows = (m for part in self.history.parts for m in part.epochs)
        return math.fsum(m.get("seconds", 0.0) for m in rows)

    @property
    def source(self) -> str:
        """The data source, as the recipe names it."""
        return str(self.recipe.data.source.drop_defaults())

    @property
    def data_name(self) -> str:
        """The data set in a few words: the source, with the last part of its path."""
        source = self.recipe.data.source
        if source.record is NO_SOURCE:
            return "data given in Python"
        path = source.arguments.get("path")
        return f"{source.name} {Path(path).name}" if isinstance(path, str) else source.name

    @property
    def settings(self) -> dict[str, str]:
        """Every setting of the run's recipe by its name for `--set`, such as `train.optimizer.lr`,
        and the constants of its file."""
        train = self.program.find_section("train")
        data = self.program.find_section(
            "data", self.program.reference_name(train, "data") if train else None
        )
        lets = {
            x.name: expression_text(x.value)
            for x in self.program.items
            if isinstance(x, s.Let) and x.params is None
        }
        sections = [x for x in (train, data) if x is not None]
        return lets | dict(pair for x in sections for pair in _list_settings(x))

    @property
    def definitions(self) -> tuple[s.Item, ...]:
        """What defines the net; equal for two runs of the same net."""
        kinds = s.Net | s.Instance | s.Block
        return tuple(x for x in self.program.items if isinstance(x, kinds))


def _list_settings(section: s.Section) -> Iterator[tuple[str, str]]:
    for entry in section.entries:
        if not isinstance(entry, s.SectionEntry):
            continue
        key, value = f"{section.kind}.{entry.name}", entry.value
        if isinstance(value, s.CallExpr):
            yield key, value.name
            for i, arg in enumerate(value.args, 1):
                yield f"{key}.{arg.name or i}", expression_text(arg.value)
        else:
            yield key, expression_text(value)


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs in some directories; that of a sweep stands for all its runs. Raises NetError if one
    does not contain a run, or if its recipe is missing or damaged."""
    return [_read_run(history) for history in read_histories(paths)]


def _read_run(history: RunHistory) -> RunRecord:
    path = history.directory / RECIPE_FILE
    if not path.is_file():
        raise fail(
            f"{history.directory} has no {RECIPE_FILE}, which contains its recipe",
            help="`netdsl plot` draws the curves of such a run",
        )
    text = decode_text(read_regular_file(path, MAX_FILE_BYTES), str(path))
    program = build_program(parse_any_format(text, str(path)), reject_read)
    return RunRecord(history, text, program, resolve_recipe(program))
