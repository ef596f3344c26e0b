"""The content of a report: what a run has learned, where it fails, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.backends.base import Backend
from netdsl.errors import NetError
from netdsl.inference import EvaluationReport, Predictor
from netdsl.insight.compile_target import CompileTarget, prepare_target
from netdsl.insight.features.filters import (
    compute_filters,
    find_page,
    list_filter_layers,
    render_filters,
)
from netdsl.insight.profiler import profile_step
from netdsl.insight.report.layer_costs import NetCosts, combine_costs
from netdsl.insight.report.mistakes import Mistake, MistakeCollector
from netdsl.insight.report.run_record import RunRecord, read_runs
from netdsl.insight.summary import summarise
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.training.run.phase import OnPhase, Phase, ignore_phase
from netdsl.training.store.checkpoint import SUFFIX
from netdsl.types import Array

_ROUNDS = 5
"""How often a step is timed; the times are medians."""


@dataclass(frozen=True)
class ReportOptions:
    """`data` is the folder of the data set, as `--data` names it. Up to `mistakes` images are
    shown. With `is_timed`, a training step is timed on the device."""

    data: str | None = None
    mistakes: int = 20
    is_timed: bool = True


@dataclass(frozen=True)
class FilterPicture:
    """The filters K x R x S x C of a layer as one picture of bytes [H,W,3]: the first `filters` of
    them, and of each the first `channels`."""

    layer: str
    shape: tuple[int, ...]
    filters: int
    channels: int
    picture: Array


@dataclass(frozen=True)
class RunReport:
    """A run, with what its best weights do. Without them or without the data there is no
    `evaluation`, and `problem` says why."""

    run: RunRecord
    network: Network
    costs: NetCosts
    filters: FilterPicture | None
    evaluation: EvaluationReport | None
    mistakes: tuple[Mistake, ...]
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        run, found = self.run, self.evaluation
        return {
            "name": run.name,
            "directory": str(run.folder),
            "net": run.recipe.net,
            "source": run.source,
            "epochs": len(run.epochs),
            "seconds": run.seconds,
            "best": dict(run.best),
            "test": dict(run.test),
            "evaluation": None if found is None else found.as_json(),
            "problem": self.problem or None,
            "mistakes": [m.as_json() for m in self.mistakes],
            "costs": self.costs.as_json(),
        }


def make_run_reports(
    folders: Sequence[Path],
    backend: Backend,
    options: ReportOptions,
    on_phase: OnPhase = ignore_phase,
) -> list[RunReport]:
    """The reports of the runs in some directories. Raises NetError if one does not contain a run,
    or if the data set that `options` names does not fit."""
    return [make_run_report(run, backend, options, on_phase) for run in read_runs(folders)]


def make_run_report(
    run: RunRecord, backend: Backend, options: ReportOptions, on_phase: OnPhase = ignore_phase
) -> RunReport:
    """Evaluates the best weights of a run, and times its training step."""
    network = elaborate(run.program, run.recipe.net, run.recipe.settings(training=True))
    costs = _measure_costs(run, network, backend, options, on_phase)
    filters, evaluation, collector, problem = None, None, None, ""
    try:
        on_phase(Phase("reading weights"))
        predictor = Predictor(run.folder / f"best{SUFFIX}", backend)
        filters = draw_first_filters(predictor)
        collector = MistakeCollector(predictor.classes, options.mistakes)
        evaluation = predictor.evaluate(
            options.data, on_predictions=collector.add, on_phase=on_phase
        )
    except NetError as e:
        if options.data is not None:
            raise
        problem = e.diagnostics[0].message
    mistakes = collector.mistakes() if collector is not None and evaluation is not None else ()
    return RunReport(run, network, costs, filters, evaluation, tuple(mistakes), problem)


def _measure_costs(
    run: RunRecord, network: Network, backend: Backend, options: ReportOptions, on_phase: OnPhase
) -> NetCosts:
    summary = summarise(network)
    if not options.is_timed:
        return combine_costs(summary, None)
    on_phase(Phase("compiling and timing a training step"))
    prepared = prepare_target(run.program, CompileTarget(training=True))
    return combine_costs(summary, profile_step(prepared, backend, _ROUNDS))


def draw_first_filters(predictor: Predictor) -> FilterPicture | None:
    """The filters of a net's first layer with weights, as many as fit one page; None if there is no
    such layer."""
    network = predictor.network(predictor.recipe.settings(training=False, batch=1))
    layers = list_filter_layers(network)
    if not layers:
        return None
    weights = compute_filters(network, layers[0], predictor.state.snapshot())
    page = find_page(weights, 1)
    picture = render_filters(weights, page, "filter")
    return FilterPicture(layers[0].path, weights.shape, page.filters[1], page.channels[1], picture)
