"""The tables of a sweep for people: a row for each combination, and a grid of two axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from netdsl.cli.app import echo, echo_stderr
from netdsl.cli.tables import Column, TextTable, figures
from netdsl.training.metrics.table import MetricName, format_metric
from netdsl.training.run.heartbeat import format_duration
from netdsl.training.run.sweep import RunOutcome
from netdsl.training.run.sweep_table import Estimate, Row, SweepTable

_ABSENT = "-"
_MAX_LINES = 10


def format_outcome(
    outcome: RunOutcome, metrics: Sequence[MetricName], left: int, pace: float | None
) -> str:
    """The line of a run that has ended; `pace` is the time that a run takes, in seconds."""
    if outcome.found is None:
        end = f"failed: {outcome.reason}"
    else:
        known = [(name, outcome.metrics.get(str(name))) for name in metrics]
        figures = [f"{m.title} {format_metric(v, m.metric)}" for m, v in known if v is not None]
        seconds = "finished before" if outcome.is_old else f"{outcome.found.seconds:.1f} s"
        end = ", ".join([*figures, seconds])
    time_left = f", about {format_duration(left * pace)}" if pace is not None else ""
    return f"{outcome.run}: {end}" + (f"; {left:,} left{time_left}" if left else "")


def show_sweep(table: SweepTable, asked: Sequence[MetricName]) -> None:
    """Prints the table, which of the metrics that were `asked` for are missing, and the first
    metric again as a grid if exactly two axes vary. On a narrow terminal, the table is without
    epochs and seconds."""
    metrics = [m for m in table.metrics if table.is_measured(m)]
    has_seeds = any(len(row.outcomes) > 1 for row in table.rows)
    has_difference = bool(metrics) and len(table.rows) > 1
    shown = _make_table(table, metrics, has_difference, has_cost=True)
    if not shown.fits():
        shown = _make_table(table, metrics, has_difference, has_cost=False)
    shown.show()
    for metric in asked:
        if metric not in metrics:
            is_old = any(x.is_old for x in table.outcomes)
            why = " when these runs were trained" if is_old else ""
            echo(f"`{metric}` was not measured{why}")
    if has_seeds:
        echo("\nmean ± standard deviation over the seeds")
    if has_difference:
        paired = ", paired by seed: mean ± standard error" if has_seeds else ""
        echo(f"difference: of {metrics[0].title} to the first row{paired}")
    if metrics:
        _show_grid(table, metrics[0])


def _make_table(
    table: SweepTable, metrics: Sequence[MetricName], has_difference: bool, has_cost: bool
) -> TextTable:
    has_recipes = any(row.combination.recipe for row in table.rows)
    columns = [Column(heading) for heading in (*["recipe"] * has_recipes, *table.grid.labels)]
    is_incomplete = any(row.finished < len(row.outcomes) for row in table.rows)
    headings = ["runs"] * is_incomplete
    for i, metric in enumerate(metrics):
        headings += [metric.title, *["difference"] * (has_difference and i == 0)]
    columns += map(figures, (*headings, *["epochs", "seconds"] * has_cost))
    rows = []
    for row in table.rows:
        cells = [row.combination.recipe or _ABSENT] * has_recipes + [*row.combination.values]
        cells += [f"{row.finished} of {len(row.outcomes)}"] * is_incomplete
        for i, metric in enumerate(metrics):
            cells.append(_format_estimate(metric, row.estimate(metric)))
            if has_difference and i == 0:
                cells.append(_format_difference(table, row, metric))
        if has_cost:
            cells += [_format_plain(row.epochs, ".4g"), _format_plain(row.seconds, ",.1f")]
        rows.append(cells)
    return TextTable(columns, rows)


def _show_grid(table: SweepTable, metric: MetricName) -> None:
    grid = table.grid
    recipes = tuple(name or _ABSENT for name in grid.recipes)
    values = (axis.texts for axis in grid.axes)
    axes = [*zip(("recipe", *grid.labels), (recipes, *values), strict=True)]
    varied = [axis for axis in axes if len(axis[1]) > 1]
    if len(varied) != 2:
        return
    (down, heads), (across, columns) = varied
    echo(f"\n{metric.title} by {down} (down) and {across} (across)")
    lines = []
    for i, head in enumerate(heads):
        rows = table.rows[i * len(columns) : (i + 1) * len(columns)]
        lines.append((head, *(_format_estimate(metric, r.estimate(metric)) for r in rows)))
    TextTable([Column(""), *map(figures, columns)], lines).show()


def show_failures(table: SweepTable, out: Path, csv: Path | None) -> None:
    """Prints why runs failed, which expectations do not hold, and where the files are; `csv` is the
    file of `--csv`."""
    failed = [x for x in table.outcomes if x.found is None]
    _echo_first([f"{x.run} failed: {x.reason}" for x in failed])
    _echo_first([*_list_failed_expectations(table)])
    lines = f"; a line for each run in {csv}" if csv is not None else ""
    echo_stderr(f"runs, sweep.json and sweep.csv in {out}{lines}")


def _echo_first(lines: Sequence[str]) -> None:
    for line in lines[:_MAX_LINES]:
        echo_stderr(line)
    if lines[_MAX_LINES:]:
        echo_stderr(f"and {len(lines) - _MAX_LINES:,} more, which are in sweep.json")


def _list_failed_expectations(table: SweepTable) -> Iterator[str]:
    for row in table.rows:
        judged = [m for x in row.outcomes for m in x.expectations]
        for text in dict.fromkeys(m.text for m in judged):
            oks = [m.ok for m in judged if m.text == text]
            if not all(oks):
                where = row.combination.describe()
                runs = f"{len(oks)} run{'s' * (len(oks) != 1)}"
                held = f"holds in {sum(oks)} of {runs}" + (f" of {where}" if where else "")
                yield f"expected {text}: {held}, so this FAILED"


def _format_spread(metric: MetricName, value: float | None) -> str:
    """A deviation or an error, in percentage points for a share; nothing if there is none."""
    if value is None:
        return ""
    return f" ± {100 * value:.2f}" if metric.metric.is_share else f" ± {value:.4f}"


def _format_estimate(metric: MetricName, found: Estimate | None) -> str:
    if found is None:
        return _ABSENT
    return format_metric(found.mean, metric.metric) + _format_spread(metric, found.deviation)


def _format_difference(table: SweepTable, row: Row, metric: MetricName) -> str:
    found = table.difference(row, metric)
    if row is table.rows[0] or found is None:
        return _ABSENT
    number = f"{100 * found.mean:+.2f}" if metric.metric.is_share else f"{found.mean:+.4f}"
    return number + _format_spread(metric, found.error)


def _format_plain(found: Estimate | None, form: str) -> str:
    return format(found.mean, form) if found is not None else _ABSENT
