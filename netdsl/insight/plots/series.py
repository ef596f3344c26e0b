"""The lines of a plot of runs: which metrics share a panel, what is a mean over seeds, which scale.

Nothing is drawn here; `Chart.as_json` is what `netdsl plot --json` prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from netdsl.errors import fail, suggest_name
from netdsl.insight.plots.history import RunHistory, WatchTable
from netdsl.training.metrics.table import METRICS
from netdsl.types import Array

AXIS_TITLES = {"epoch": "epoch", "step": "step (update)", "seconds": "seconds of training"}
"""What an axis can count."""
_PARTS = ("train", "val")
_DECADE = 10.0


@dataclass(frozen=True)
class PlotOptions:
    """What to plot: columns of metrics.jsonl, or what they have in common (`loss`); without any,
    losses and accuracies. `watch` plots the norms of gradients or activations. `by` is what the
    axis counts (default: epochs, but steps for norms), `is_log` the scale of all values (default:
    what shows more), `each` a line for each run instead of a mean over seeds."""

    metrics: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    by: str | None = None
    is_log: bool | None = None
    each: bool = False


@dataclass(frozen=True)
class Series:
    """A line: the values `y` of a metric at `x`, of one run, or as the mean of several runs with
    `deviation`, their sample standard deviation. `group` is None for a line that all groups share.
    `part` is what the metric was measured on, `train`
    or `val`, if it says; `best` is the index of the best epoch."""

    label: str
    group: int | None
    metric: str
    part: str | None
    runs: tuple[str, ...]
    x: Array
    y: Array
    deviation: Array | None = None
    best: int | None = None

    def as_json(self) -> dict[str, Any]:
        best = None
        if self.best is not None:
            best = {"at": float(self.x[self.best]), "value": float(self.y[self.best])}
        return {
            "label": self.label,
            "metric": self.metric,
            "runs": [*self.runs],
            "x": self.x.tolist(),
            "y": self.y.tolist(),
            "deviation": None if self.deviation is None else self.deviation.tolist(),
            "best": best,
        }


@dataclass(frozen=True)
class CurvePanel:
    """A panel of lines; `is_stepwise` if the values stay the same for several epochs."""

    title: str
    by: str
    is_share: bool
    is_log: bool
    is_stepwise: bool
    series: tuple[Series, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "by": self.by,
            "scale": "log" if self.is_log else "linear",
            "series": [series.as_json() for series in self.series],
        }


@dataclass(frozen=True)
class NormPanel:
    """A panel of norms by layer, of one run."""

    run: str
    quantity: str
    by: str
    is_log: bool
    x: Array
    table: WatchTable

    @property
    def title(self) -> str:
        return f"norm of {self.quantity}"

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "run": self.run,
            "by": self.by,
            "scale": "log" if self.is_log else "linear",
            "x": self.x.tolist(),
            "layers": [*self.table.layers],
            "values": self.table.values.tolist(),
        }


@dataclass(frozen=True)
class Stage:
    """Where a stage of the runs of a group starts."""

    name: str
    group: int
    start: float


@dataclass(frozen=True)
class Chart:
    """All that a plot shows. `labels` are those of the groups: of runs, or of runs of one recipe
    that differ in their seeds."""

    title: str
    labels: tuple[str, ...]
    curves: tuple[CurvePanel, ...]
    norms: tuple[NormPanel, ...]
    stages: tuple[Stage, ...]

    @property
    def panels(self) -> tuple[CurvePanel | NormPanel, ...]:
        return (*self.curves, *self.norms)

    @property
    def by(self) -> str:
        """What the axes of the first panel, and of all its kind, count."""
        return self.panels[0].by

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "panels": [panel.as_json() for panel in self.panels],
            "stages": [
                {"name": x.name, "run": self.labels[x.group], "start": x.start} for x in self.stages
            ],
        }


@dataclass(frozen=True)
class RunGroup:
    """Runs that share a line: of one recipe, with several seeds."""

    label: str
    histories: tuple[RunHistory, ...]


MAX_NORM_PANELS = 12


def make_chart(histories: Sequence[RunHistory], options: PlotOptions) -> Chart:
    """The chart of runs. Raises NetError if nothing was measured yet, if no run has a metric or
    watched a quantity, if there is no such axis, or if a logarithmic one is asked for where nothing
    is positive."""
    if options.by is not None and options.by not in AXIS_TITLES:
        help = suggest_name(options.by, AXIS_TITLES, "axes are")
        raise fail(f"`{options.by}` is not an axis", help=help)
    groups = group_runs(histories, options.each)
    for quantity in options.watch:
        _check_watched(histories, quantity)
    has_curves = bool(options.metrics) or not options.watch
    by = options.by or "epoch"
    curves = tuple(_make_curves(groups, options, by)) if has_curves else ()
    norms = tuple(_make_norms(histories, options)) if options.watch else ()
    if len(norms) > MAX_NORM_PANELS:
        message = f"{len(norms)} plots of norms are over the limit of {MAX_NORM_PANELS} per picture"
        raise fail(message, help="plot fewer runs, or gradients and activations separately")
    panels: tuple[CurvePanel | NormPanel, ...] = (*curves, *norms)
    names = ", ".join(dict.fromkeys(panel.title for panel in panels))
    labels = tuple(group.label for group in groups)
    shown = labels[:3] if len(labels) <= 3 else (*labels[:2], f"{len(labels) - 2} more")
    return Chart(f"{names} of {', '.join(shown)}", labels, curves, norms, _stages(groups, by))


def group_runs(histories: Sequence[RunHistory], each: bool = False) -> tuple[RunGroup, ...]:
    """The runs of one recipe as groups, in the order of their first ones; with `each`, every run by
    itself."""
    groups: dict[str, list[RunHistory]] = {}
    for i, history in enumerate(histories):
        is_alone = each or history.facts is None
        key = str(i) if is_alone or history.facts is None else history.facts.kind
        groups.setdefault(key, []).append(history)
    labels = [_label_group(members) for members in groups.values()]
    if len({*labels}) < len(labels):
        labels = [", ".join(h.name for h in members) for members in groups.values()]
    return tuple(
        RunGroup(label, tuple(x)) for label, x in zip(labels, groups.values(), strict=True)
    )


def _label_group(members: Sequence[RunHistory]) -> str:
    """The name of a run, or what the names of several have in common besides the seed: if that is
    nothing, as in a sweep over seeds alone, the name of their recipe or of their folder."""
    if len(members) == 1:
        return members[0].name
    common = {_SEED.sub("", member.name).strip(",") for member in members}
    name = common.pop() if len(common) == 1 else None
    if name:
        return name.replace(",", ", ")
    facts = members[0].facts
    if facts is not None and facts.recipe_name:
        return facts.recipe_name
    folders = {member.directory.resolve().parent for member in members}
    if name is not None and len(folders) == 1:
        return folders.pop().name
    return f"{members[0].name} to {members[-1].name}"


_SEED = re.compile(r",?\bseed=\d+")


def list_columns(histories: Iterable[RunHistory]) -> tuple[str, ...]:
    """The columns that some of the runs have."""
    return tuple(dict.fromkeys(name for history in histories for name in history.columns))


def split_column(column: str) -> tuple[str | None, str]:
    """What a column was measured on, `train` or `val`, if it says, and the rest of its name."""
    part, _, rest = column.partition("_")
    return (part, rest) if part in _PARTS else (None, column)


def _choose_columns(
    histories: Sequence[RunHistory], asked: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The columns of each panel, by what they have in common."""
    known = list_columns(histories)
    if not known:
        waiting = ", ".join(str(h.directory) for h in histories[:3])
        raise fail(f"no epoch is finished yet in {waiting}", help="plot it again later")
    by_panel: dict[str, list[str]] = {}
    for column in known:
        by_panel.setdefault(split_column(column)[1], []).append(column)
    if not asked:
        return {name: tuple(by_panel[name]) for name in _default_panels(histories, by_panel)}
    chosen: dict[str, list[str]] = {}
    for name in asked:
        if name in by_panel:
            chosen.setdefault(name, []).extend(by_panel[name])
        elif name in known:
            chosen.setdefault(split_column(name)[1], []).append(name)
        else:
            raise fail(f"no run has measured `{name}`", help=_advise_metric(name, histories))
    return {name: tuple(dict.fromkeys(columns)) for name, columns in chosen.items()}


def _advise_metric(name: str, histories: Sequence[RunHistory]) -> str | None:
    if any(name in history.test for history in histories):
        return f"`{name}` is measured once, after training: `netdsl eval` prints it"
    columns = list_columns(histories)
    return suggest_name(name, (*columns, *(split_column(x)[1] for x in columns)), "columns are")


def _default_panels(histories: Sequence[RunHistory], known: Iterable[str]) -> Iterator[str]:
    """Losses and accuracies, the metric that chooses the best epoch, and the learning rate if it
    changes."""
    recipes = [h.facts.recipe for h in histories if h.facts is not None]
    chosen = [split_column(str(r.best.metric))[1] for r in recipes if r.best is not None]
    for name in dict.fromkeys(["loss", "accuracy", *chosen]):
        if name in known:
            yield name
    rates = [h.column("lr") for h in histories]
    if "lr" in known and any(np.ptp(x[np.isfinite(x)]) > 0 for x in rates if np.isfinite(x).any()):
        yield "lr"


_TITLES = {
    "lr": "learning rate",
    "images_per_second": "images/s",
    "seconds": "seconds per epoch",
    "loss_scale": "loss scale",
    "skipped": "steps skipped",
}


def _make_curves(groups: Sequence[RunGroup], options: PlotOptions, by: str) -> Iterator[CurvePanel]:
    histories = [h for group in groups for h in group.histories]
    for name, columns in _choose_columns(histories, options.metrics).items():
        metric = METRICS.get(name.partition("(")[0])
        lines = [
            _make_series(group, i, column, by)
            for i, group in enumerate(groups)
            for column in columns
            if any(column in h.columns for h in group.histories)
        ]
        title = _TITLES.get(name) or (metric.title if metric and name in METRICS else name)
        is_share = metric is not None and metric.is_share
        values = np.concatenate([line.y for line in lines])
        can_be_log = not is_share and name not in ("seconds", "images_per_second", "skipped")
        if name == "lr":
            can_be_log = _is_mostly_small(values)
        is_log = _choose_scale(values, options.is_log, can_be_log, title)
        is_stepwise = name == "lr" and all(_is_stepwise(line.y) for line in lines)
        yield CurvePanel(title, by, is_share, is_log, is_stepwise, _merge_equal(lines, groups))


def _is_stepwise(values: Array) -> bool:
    """Whether most values equal the one before."""
    return len(values) > 1 and bool(np.mean(np.diff(values) == 0) >= 0.5)


def _is_mostly_small(rates: Array) -> bool:
    """Whether half of the values are a decade or more below the largest, as those of a rate that is
    divided by 10 from time to time; a cosine is plainer on a linear axis."""
    found = rates[np.isfinite(rates)]
    return bool(len(found) and found.max() >= _DECADE * np.median(found))


def _merge_equal(lines: Sequence[Series], groups: Sequence[RunGroup]) -> tuple[Series, ...]:
    """One line for all groups if theirs are the same, such as that of the learning rate."""
    first = lines[0]
    is_same = all(
        np.array_equal(x.x, first.x) and np.array_equal(x.y, first.y, equal_nan=True)
        for x in lines[1:]
    )
    if not is_same or len({x.metric for x in lines}) > 1 or len(lines) < len(groups):
        return tuple(lines)
    runs = tuple(h.name for group in groups for h in group.histories)
    return (replace(first, label="all runs", group=None if len(groups) > 1 else 0, runs=runs),)


def _choose_scale(values: Array, asked: bool | None, can_be_log: bool, title: str) -> bool:
    """Whether an axis is logarithmic: as asked for, else if all values are positive and span a
    decade."""
    found = values[np.isfinite(values)]
    if asked is not None:
        if asked and not (found > 0).any():
            help = "leave out `--log`, or plot other metrics"
            raise fail(f"{title} has no positive value for a logarithmic axis", help=help)
        return asked
    if not can_be_log or not len(found) or found.min() <= 0:
        return False
    return bool(found.max() >= _DECADE * found.min())


def _make_series(group: RunGroup, index: int, column: str, by: str) -> Series:
    """The line of a column. Epochs of several runs are aligned by their number; the mean of each is
    that of the runs that have it."""
    part, _ = split_column(column)
    names = tuple(h.name for h in group.histories)
    drawn = [(h.position(by), h.column(column)) for h in group.histories]
    if len(drawn) == 1:
        x, y = drawn[0]
        best = _find_best(group.histories[0])
        is_shown = best is not None and np.isfinite(y[best]) and part is not None
        return Series(
            group.label, index, column, part, names, x, y, best=best if is_shown else None
        )
    length = max(len(x) for x, _ in drawn)
    xs, ys = (np.full((len(drawn), length), np.nan) for _ in range(2))
    for i, (x, y) in enumerate(drawn):
        xs[i, : len(x)], ys[i, : len(y)] = x, y
    x, _ = _mean_and_deviation(xs)
    y, deviation = _mean_and_deviation(ys)
    return Series(group.label, index, column, part, names, x, y, deviation)


def _mean_and_deviation(values: Array) -> tuple[Array, Array]:
    """Of each column of [runs, epochs], without NaN; the deviation of a single value is 0."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    return mean, np.where(count > 0, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def _find_best(history: RunHistory) -> int | None:
    """The index of the best epoch among those of all stages."""
    if history.best_epoch is None:
        return None
    before = sum(len(stage.epochs) for stage in history.stages)
    return before + [row["epoch"] for row in history.epochs].index(history.best_epoch)


def _check_watched(histories: Sequence[RunHistory], quantity: str) -> None:
    if not any(quantity in history.watched for history in histories):
        help = f"`netdsl train FILE --watch {quantity}` records them"
        raise fail(f"no run has recorded the norms of its {quantity}", help=help)


def _make_norms(histories: Sequence[RunHistory], options: PlotOptions) -> Iterator[NormPanel]:
    for history in histories:
        for quantity in options.watch:
            if quantity in history.watched:
                table = history.watch_table(quantity)
                by = options.by or "step"
                x = _place_steps(history, table.steps, by)
                is_log = _choose_scale(
                    table.values[table.values != 0], options.is_log, True, f"norm of {quantity}"
                )
                yield NormPanel(history.name, quantity, by, is_log, x, table)


def _place_steps(history: RunHistory, steps: Array, by: str) -> Array:
    """Where steps are on an axis of epochs or seconds: between the ends of epochs, and behind the
    last one as in that. Raises NetError before the end of the first."""
    if by == "step":
        return steps.astype(np.float64)
    ends, places = history.position("step"), history.position(by)
    if not len(ends):
        help = "`--by step` needs no finished epoch"
        raise fail(f"no epoch is finished yet in {history.directory}", help=help)
    ends, places = np.concatenate([[0.0], ends]), np.concatenate([[0.0], places])
    inside = np.interp(steps, ends, places)
    rate = (places[-1] - places[-2]) / max(ends[-1] - ends[-2], 1)
    return inside + np.maximum(steps - ends[-1], 0) * rate


def _stages(groups: Sequence[RunGroup], by: str) -> tuple[Stage, ...]:
    """Where stages start, of the first run of each group."""
    return tuple(
        Stage(name, i, start)
        for i, group in enumerate(groups)
        for name, start in group.histories[0].stage_starts(by)
    )
