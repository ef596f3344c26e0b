"""The curves and graphs of runs as elements of a page; curves are one small figure per panel, so
that a phone can show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from netdsl.errors import NetError
from netdsl.insight.draw.drawing import html_fragment
from netdsl.insight.plots.curves import draw_chart
from netdsl.insight.plots.figure import svg_fragment
from netdsl.insight.plots.history import RunHistory
from netdsl.insight.plots.series import Chart, CurvePanel, PlotOptions, Series, make_chart
from netdsl.insight.report.run_report import RunReport

_SIZE, _WIDE_SIZE = (460, 320), (460, 400)
"""Width and height of a figure of curves, and of one of norms, in pixels."""
_MAX_DESCRIBED = 6
_PART_NAMES = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class PageFigure:
    """An `svg` element and what it shows."""

    caption: str
    svg: str


@dataclass(frozen=True)
class PageGraph:
    """The graph of a run's net as an element of a page; without one, the name of the run with the
    same net whose graph is on the page, or why it could not be drawn."""

    html: str = ""
    same_as: str = ""
    problem: str = ""


def draw_graphs(reports: Sequence[RunReport]) -> list[PageGraph]:
    """The graph of each run; that of a net is drawn only once."""
    graphs: list[PageGraph] = []
    for i, report in enumerate(reports):
        same = next((x for x in reports[:i] if _have_same_net(x, report)), None)
        graphs.append(PageGraph(same_as=same.run.name) if same else _draw_graph(report, i))
    return graphs


def _have_same_net(a: RunReport, b: RunReport) -> bool:
    return (a.run.recipe.net, a.run.definitions) == (b.run.recipe.net, b.run.definitions)


def _draw_graph(report: RunReport, number: int) -> PageGraph:
    try:
        return PageGraph(html_fragment(report.network, prefix=f"graph{number}"))
    except NetError as e:  # a graph so entangled that it needs a package
        return PageGraph(problem=e.diagnostics[0].message)


def draw_run_figures(history: RunHistory) -> list[PageFigure]:
    """The losses and accuracies of a run, and the norms that it watched; none before its first
    epoch. Raises NetError if matplotlib is missing."""
    if not history.columns:
        return []
    charts = [make_chart([history], PlotOptions())]
    charts += [make_chart([history], PlotOptions(watch=(name,))) for name in history.watched]
    return [figure for chart in charts for figure in _draw_panels(chart)]


def draw_common_figures(histories: Sequence[RunHistory]) -> list[PageFigure]:
    """The losses and accuracies of several runs in the same figures, a line for each run. Raises
    NetError if matplotlib is missing."""
    known = [history for history in histories if history.columns]
    return _draw_panels(make_chart(known, PlotOptions(each=True))) if known else []


def _draw_panels(chart: Chart) -> list[PageFigure]:
    runs = ", ".join(chart.labels)
    curves = (
        (replace(chart, curves=(x,), norms=()), _SIZE, x.title, _describe_curves(x, chart))
        for x in chart.curves
    )
    norms = (
        (replace(chart, curves=(), norms=(x,)), _WIDE_SIZE, x.title, f"The {x.title} by layer")
        for x in chart.norms
    )
    return [
        PageFigure(
            caption, svg_fragment(draw_chart(replace(one, title=f"{title} of {runs}"), size))
        )
        for one, size, title, caption in (*curves, *norms)
    ]


def _describe_curves(panel: CurvePanel, chart: Chart) -> str:
    """The ends of the lines in words; of many lines, none."""
    ends = [_describe_ends(x, panel, chart) for x in panel.series if np.isfinite(x.y).any()]
    title = f"{panel.title.capitalize()} by {chart.by}"
    return f"{title}: {'; '.join(ends)}" if 0 < len(ends) <= _MAX_DESCRIBED else title


def _describe_ends(line: Series, panel: CurvePanel, chart: Chart) -> str:
    part = _PART_NAMES.get(line.part or "", "")
    name = part if len(chart.labels) == 1 else f"{line.label} {part}".strip()
    known = line.y[np.isfinite(line.y)]
    first, last = (f"{y:.1%}" if panel.is_share else f"{y:.4g}" for y in known[[0, -1]])
    return f"{name} {f'from {first} to {last}' if len(known) > 1 else last}".strip()
