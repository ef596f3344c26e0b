"""The compute that runs and recipes need for an accuracy, as rows and as a chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from netdsl.insight.charts.ball_chart import FEW_DECADES
from netdsl.insight.charts.label_placement import PointLabel, add_labels
from netdsl.insight.charts.points import (
    ACCURACY_COLUMNS,
    IMAGENET_CLASSES,
    count_classes,
    find_published_nets,
    no_accuracy_error,
    run_program,
)
from netdsl.insight.charts.training_compute import (
    PUBLISHED_COMPUTE,
    PUBLISHED_TOP5,
    TERAFLOPS_DAY,
    training_operations,
)
from netdsl.insight.plots.axes import set_log_ticks
from netdsl.insight.plots.figure import COLOURS, MUTED, figure_style, make_figure
from netdsl.insight.plots.history import RunHistory
from netdsl.language.elaborate import elaborate
from netdsl.language.program import Program
from netdsl.training.recipe.recipe import Recipe, resolve_recipe, stage_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet's 1,000 classes (Russakovsky et al. 2015, table 2)."""


@dataclass(frozen=True)
class ComputeCurve:
    """The accuracy (0 to 1) of a net by the operations of training so far, in rising order. That
    of a recipe has one point: its published accuracy at its end."""

    name: str
    is_run: bool
    operations: tuple[int, ...]
    accuracies: tuple[float, ...]

    def find_operations(self, target: float) -> int | None:
        """The operations at the first point with at least that accuracy; None if there is none."""
        pairs = zip(self.operations, self.accuracies, strict=True)
        return next((n for n, accuracy in pairs if accuracy >= target), None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_curve(run: RunHistory, metric: str) -> ComputeCurve:
    """The validation accuracy of a run after each epoch; the compute of the stages before it
    counts too."""
    spent, operations, accuracies = 0, [], []
    for part in run.parts:
        program, recipe = run_program(part)
        macs = _training_macs(program, recipe)
        batch = recipe.data.batch * recipe.accumulate
        total = 0
        for epoch in part.epochs:
            total = training_operations(macs, int(epoch.get("step", 0)) * batch)
            value = epoch.get(ACCURACY_COLUMNS[metric])
            if value is not None and total:
                operations.append(spent + total)
                accuracies.append(float(value))
        spent += total
    if not accuracies:
        raise no_accuracy_error(run, metric)
    return ComputeCurve(run.name, True, tuple(operations), tuple(accuracies))


def _training_macs(program: Program, recipe: Recipe) -> int:
    """Multiply-accumulates per image of the forward pass in training, with side outputs."""
    network = elaborate(program, recipe.net, recipe.settings(training=True))
    return network.macs + network.side_macs


def recipe_curves(program: Program, metric: str, images: int) -> Iterator[ComputeCurve]:
    """A point for each net of a file with 1,000 classes and a published accuracy: the first recipe
    that trains it; `images` is the size of the training set."""
    published = {found.net: found for found in find_published_nets(program, metric, None)}
    for section in program.sections("train"):
        recipe = resolve_recipe(program, section.name)
        found = published.pop(recipe.net, None)
        if found is None:
            continue
        network = elaborate(program, recipe.net, recipe.settings(training=True))
        if count_classes(network) == IMAGENET_CLASSES:
            operations = _count_operations(program, section.name, images)
            accuracy = found.accuracies[0].shares[metric]
            yield ComputeCurve(recipe.net, False, (operations,), (accuracy,))


def _count_operations(program: Program, name: str | None, images: int) -> int:
    """The operations of a recipe and of the stages before it."""
    recipes = (resolve_recipe(program, stage) for stage in stage_names(program, name))
    return sum(training_operations(_training_macs(program, r), images * r.epochs) for r in recipes)


def common_target(curves: Sequence[ComputeCurve]) -> float | None:
    """The best accuracy that all runs reach; None if there is no run."""
    best = [max(c.accuracies) for c in curves if c.is_run and c.accuracies]
    return min(best, default=None)


def plot_compute(
    curves: Sequence[ComputeCurve],
    target: float | None,
    accuracy_label: str,
    size: tuple[int, int],
) -> Figure:
    """A figure of two parts: the published compute to AlexNet's level by year, and beside it the
    accuracy of `curves` by compute, with a line at `target`. `size` is in pixels. Raises
    NetError if matplotlib is missing."""
    with figure_style():
        return _plot_compute(curves, target, accuracy_label, size)


def _plot_compute(
    curves: Sequence[ComputeCurve],
    target: float | None,
    accuracy_label: str,
    size: tuple[int, int],
) -> Figure:
    figure = make_figure(*size, f"compute of training, published and of {len(curves)} nets")
    left, right = figure.subplots(1, 2)
    _plot_published(left)
    spent = [n / TERAFLOPS_DAY for curve in curves for n in curve.operations]
    if spent:
        right.set_xscale("log")
        set_log_ticks(right.xaxis, (min(spent), max(spent)), FEW_DECADES)
    right.set_xlabel("teraflop/s-days of training")
    right.set_ylabel(accuracy_label)
    right.set_title("accuracy by compute")
    right.margins(0.12)
    for i, curve in enumerate(curves):
        days = [n / TERAFLOPS_DAY for n in curve.operations]
        values = [100 * a for a in curve.accuracies]
        right.plot(
            days, values, marker="." if curve.is_run else "o", color=COLOURS[i % len(COLOURS)]
        )
    if target is not None:
        right.axhline(100 * target, color=MUTED, lw=0.8, ls="--")
        right.annotate(
            f"target {100 * target:.2f}%",
            (0, 100 * target),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=MUTED,
        )
    ends = [
        PointLabel(c.name, c.operations[-1] / TERAFLOPS_DAY, 100 * c.accuracies[-1]) for c in curves
    ]
    add_labels(figure, right, ends)
    return figure


def _plot_published(axes: Any) -> None:
    axes.set_ylabel(f"teraflop/s-days to {PUBLISHED_TOP5:.1%} top-5 (AlexNet's level)")
    axes.set_title("published: Hernandez, Brown 2020")
    years = [p.published.year + p.published.timetuple().tm_yday / 365 for p in PUBLISHED_COMPUTE]
    days = [p.operations / TERAFLOPS_DAY for p in PUBLISHED_COMPUTE]
    axes.set_yscale("log")
    set_log_ticks(axes.yaxis, (min(days), max(days)), FEW_DECADES)
    axes.plot(years, days, "o-", color=COLOURS[0])
    for published, year, value in zip(PUBLISHED_COMPUTE, years, days, strict=True):
        axes.annotate(published.net, (year, value), (5, 5), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2)
