"""The table of a sweep: means and deviations over seeds, differences to the first row, files."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netdsl.file_io import replace_non_finite, write_atomically
from netdsl.language.evaluate import Scope, evaluate
from netdsl.language.parse import parse_expression
from netdsl.training.metrics.table import METRIC_NAMES, MetricName
from netdsl.training.recipe.best import read_metric
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.run.sweep import RunOutcome
from netdsl.training.run.sweep_grid import Combination, Grid

_ACCURACIES = (METRIC_NAMES["val_accuracy"], METRIC_NAMES["test_accuracy"])


def parse_metrics(texts: Sequence[str]) -> tuple[MetricName, ...]:
    """The metrics that the command line names: `val_f1`, `val_recall("ants")`. Raises NetError if
    one does not exist."""
    values = (evaluate(parse_expression(text, "--metric "), Scope()) for text in texts)
    return tuple(dict.fromkeys(map(read_metric, values)))


def default_metrics(recipes: Sequence[Recipe]) -> tuple[MetricName, ...]:
    """The metric that chooses the best epoch in all the recipes, on the validation and on the test
    images; accuracy unless they have another one in common."""
    first = recipes[0].best
    if first is None or any(recipe.best != first for recipe in recipes):
        return _ACCURACIES
    return first.metric, replace(first.metric, part="test")


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation (divided by count - 1; None for a single value)."""

    mean: float
    deviation: float | None
    count: int

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)


def estimate(values: Iterable[float]) -> Estimate | None:
    """None if there are no values."""
    found = [*values]
    if not found:
        return None
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return Estimate(statistics.fmean(found), deviation, len(found))


def estimate_difference(values: Mapping[int, float], base: Mapping[int, float]) -> Estimate | None:
    """The differences of values to those of `base` with the same seeds: a paired comparison."""
    return estimate(values[seed] - base[seed] for seed in values if seed in base)


@dataclass(frozen=True)
class Row:
    """The runs of a combination so far."""

    combination: Combination
    outcomes: tuple[RunOutcome, ...]

    def values(self, metric: MetricName) -> dict[int, float]:
        """A metric by seed, of the runs that have measured it."""
        known = {x.run.seed: x.metrics.get(str(metric)) for x in self.outcomes}
        return {
            seed: float(v)
            for seed, v in known.items()
            if isinstance(v, int | float) and math.isfinite(v)
        }

    def estimate(self, metric: MetricName) -> Estimate | None:
        return estimate(self.values(metric).values())

    @property
    def epochs(self) -> Estimate | None:
        return estimate(x.found.epochs for x in self.outcomes if x.found)

    @property
    def seconds(self) -> Estimate | None:
        return estimate(x.found.seconds for x in self.outcomes if x.found)

    @property
    def finished(self) -> int:
        """The number of runs that did not fail."""
        return sum(x.found is not None for x in self.outcomes)


@dataclass(frozen=True)
class SweepTable:
    """The outcomes of a sweep so far, as rows."""

    grid: Grid
    metrics: tuple[MetricName, ...]
    rows: tuple[Row, ...]

    @staticmethod
    def of(
        grid: Grid, metrics: tuple[MetricName, ...], outcomes: Sequence[RunOutcome]
    ) -> SweepTable:
        rows: list[list[RunOutcome]] = [[] for _ in grid.combinations]
        for x in outcomes:
            rows[x.run.row].append(x)
        return SweepTable(grid, metrics, tuple(map(Row, grid.combinations, map(tuple, rows))))

    @property
    def outcomes(self) -> tuple[RunOutcome, ...]:
        return tuple(x for row in self.rows for x in row.outcomes)

    @property
    def ok(self) -> bool:
        """Whether all runs are finished, and all expectations of their recipes hold."""
        return all(x.ok for x in self.outcomes)

    def difference(self, row: Row, metric: MetricName) -> Estimate | None:
        """How a row differs from the first one, paired by seed."""
        return estimate_difference(row.values(metric), self.rows[0].values(metric))

    def is_measured(self, metric: MetricName) -> bool:
        """Whether at least one run has measured a metric."""
        return any(row.values(metric) for row in self.rows)

    def as_json(self, out: Path) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "directory": str(out),
            "axes": {axis.key: axis.texts for axis in self.grid.axes},
            "rows": [self._row_as_json(row) for row in self.rows],
            "runs": [_run_as_json(x, out) for x in self.outcomes],
        }

    def _row_as_json(self, row: Row) -> dict[str, Any]:
        figures = {}
        for metric in self.metrics:
            found, difference = row.estimate(metric), self.difference(row, metric)
            figures[str(metric)] = {
                **_estimate_as_json(found),
                "difference": {
                    **_estimate_as_json(difference),
                    "error": difference.error if difference else None,
                },
            }
        return {
            **_settings_as_json(row.combination),
            "finished": row.finished,
            "failed": len(row.outcomes) - row.finished,
            "metrics": figures,
        }

    def as_csv(self) -> str:
        """A line for each run: its settings, its end, and all the numbers that it has measured."""
        columns = dict.fromkeys(
            name for x in self.outcomes for name, v in x.metrics.items() if _is_number(v)
        )
        keys = [axis.key for axis in self.grid.axes]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", "recipe", *keys, "seed", *_RUN_COLUMNS, *columns, "reason"])
        for x in self.outcomes:
            run, found = x.run, x.found
            figures = (found.epochs, found.seconds) if found else ("", "")
            metrics = (x.metrics.get(name) for name in columns)
            settings = (run.recipe, *run.combination.values, run.seed)
            writer.writerow([run.name, *settings, x.status, *figures, *metrics, x.reason])
        return text.getvalue()

    def write(self, out: Path) -> None:
        """Writes sweep.json and sweep.csv to the directory of the sweep."""
        text = json.dumps(replace_non_finite(self.as_json(out)), allow_nan=False, indent=1)
        write_atomically(out / "sweep.json", text.encode())
        write_atomically(out / "sweep.csv", self.as_csv().encode())


_RUN_COLUMNS = ("status", "epochs", "seconds")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settings_as_json(combination: Combination) -> dict[str, Any]:
    keys = (x.key for x in combination.settings)
    return {
        "recipe": combination.recipe,
        "set": dict(zip(keys, combination.values, strict=True)),
    }


def _estimate_as_json(found: Estimate | None) -> dict[str, Any]:
    if found is None:
        return {"mean": None, "deviation": None, "count": 0}
    return {"mean": found.mean, "deviation": found.deviation, "count": found.count}


def _run_as_json(x: RunOutcome, out: Path) -> dict[str, Any]:
    expected = [{"text": m.text, "ok": m.ok, "found": m.figures} for m in x.expectations]
    return {
        "name": x.run.name,
        "directory": str(out / x.run.name),
        **_settings_as_json(x.run.combination),
        "seed": x.run.seed,
        "status": x.status,
        "reason": x.reason,
        "epochs": x.found.epochs if x.found else None,
        "seconds": x.found.seconds if x.found else None,
        "metrics": dict(x.metrics),
        "expectations": expected,
    }
