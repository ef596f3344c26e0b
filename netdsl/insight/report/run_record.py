"""What the directory of a run says by itself: its recipe, its settings and its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.errors import fail
from netdsl.file_io import read_regular_file
from netdsl.language import syntax as s
from netdsl.language.program import Program, build_program, decode_text, reject_read
from netdsl.language.unparse import expression_text
from netdsl.language.upgrade import parse_any_format
from netdsl.limits import MAX_FILE_BYTES
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.store.finished_run import METRICS_FILE
from netdsl.training.store.metrics_log import list_epochs, read_test_metrics
from netdsl.training.store.progress import quality
from netdsl.training.store.resume import list_runs

RECIPE_FILE = "recipe.net"


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory describes it. `epochs` holds the metrics of each finished epoch,
    `test` those of the test set, empty if there are none."""

    name: str
    folder: Path
    text: str
    program: Program
    recipe: Recipe
    epochs: tuple[Mapping[str, float], ...]
    test: Mapping[str, float]

    @property
    def best(self) -> Mapping[str, float]:
        """The metrics of the best epoch; empty before the first."""
        ranked = [m for m in self.epochs if "train_loss" in m]
        return max(ranked, key=lambda m: quality(m, self.recipe.best), default={})

    @property
    def seconds(self) -> float:
        """The time that training took, without evaluation."""
        return math.fsum(m.get("seconds", 0.0) for m in self.epochs)

    @property
    def source(self) -> str:
        """The data source, as the recipe names it."""
        return str(self.recipe.data.source.drop_defaults())

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


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The runs in some directories. Each is named after its directory, or by its whole path if two
    of them have the same name. Raises NetError if one does not contain a run."""
    names = [folder.resolve().name for folder in folders]
    return [
        read_run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def read_run(folder: Path, name: str) -> RunRecord:
    """The run in a directory. Raises NetError if there is none."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise fail(f"{folder} is not the directory of a run", help=_suggest_run(folder))
    text = decode_text(read_regular_file(path, MAX_FILE_BYTES), str(path))
    program = build_program(parse_any_format(text, str(path)), reject_read)
    log = folder / METRICS_FILE
    epochs = tuple(map(_keep_numbers, list_epochs(log)))
    test = _keep_numbers(read_test_metrics(log))
    return RunRecord(name, folder, text, program, resolve_recipe(program), epochs, test)


def _keep_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics, which may be of any program."""
    return {
        k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }


def _suggest_run(folder: Path) -> str:
    if folder.is_file() and (folder.parent / RECIPE_FILE).is_file():
        return f"give the directory itself: {folder.parent}"
    runs = list_runs(folder) or list_runs(folder.parent)
    if runs:
        return f"runs are {', '.join(map(str, runs))}"
    return "`netdsl train FILE` starts a run, and prints its directory"
