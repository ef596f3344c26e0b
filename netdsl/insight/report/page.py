"""A report as one self-contained page that requests nothing, with every name escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from netdsl.data.pictures import encode_png
from netdsl.insight.draw.page import make_fragment_style, read_fragment_script
from netdsl.insight.report import confusion, wording
from netdsl.insight.report.comparison import compare_runs
from netdsl.insight.report.figures import (
    draw_common_figures,
    draw_graphs,
    draw_run_figures,
)
from netdsl.insight.report.highlight import split_text
from netdsl.insight.report.run_report import RunReport
from netdsl.insight.report.versions import describe_machine, list_versions
from netdsl.optional_imports import import_optional
from netdsl.text_escaping import escape_text
from netdsl.training.metrics.table import METRIC_NAMES, METRICS, format_metric
from netdsl.types import Array, format_bytes

_MAX_EPOCH_ROWS = 200
_ENCODING = "utf-8"


def render_page(reports: Sequence[RunReport]) -> bytes:
    """The page of one run, or of several that it compares, in UTF-8. Raises NetError if Jinja is
    not installed."""
    style, is_comparison = _read_template("page.css"), len(reports) > 1
    histories = [report.run.history for report in reports]
    text = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            reports=reports,
            graphs=draw_graphs(reports),
            style=style,
            policy=_content_policy(style),
            comparison=compare_runs(reports) if is_comparison else None,
            common_figures=draw_common_figures(histories) if is_comparison else [],
            machine=describe_machine(),
            versions=list_versions(),
        )
    )
    return text.encode(_ENCODING)


def _content_policy(style: str) -> str:
    """A Content-Security-Policy that allows nothing but the style of the page, that and the script
    of graphs, attributes of style, which figures have, and embedded pictures."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src-elem {_hash(read_fragment_script())}",
            f"style-src-elem {_hash(style)} {_hash(make_fragment_style())}",
            "style-src-attr 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(content: str) -> str:
    """What allows an element with this content, and no other."""
    digest = base64.b64encode(hashlib.sha256(content.encode(_ENCODING)).digest()).decode()
    return f"'sha256-{digest}'"


def _read_template(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(_ENCODING)


def import_jinja2() -> Any:
    """Raises NetError if Jinja is not installed."""
    help = "install it with `pip install 'netdsl[report]'`"
    return import_optional("jinja2", "a report needs jinja2", help)


@cache
def _environment() -> Any:
    """Jinja's environment with autoescape; text is also rid of characters that hide or reorder
    others."""
    jinja2 = import_jinja2()
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "data_uri": _data_uri,
        "percent": wording.format_percent,
        "pieces": split_text,
        "seconds": wording.format_seconds,
    }
    environment.globals |= {
        "answer": wording.answer,
        "cells": confusion.make_cells,
        "class_metrics": [m for m in METRICS.values() if m.measure_classes is not None],
        "classes": confusion.list_classes,
        "epoch_rows": _epoch_rows,
        "run_figures": draw_run_figures,
        "format_metric": format_metric,
        "headline": wording.headline,
        "metric_names": METRIC_NAMES,
        "pairs": confusion.find_pairs,
    }
    return environment


def _clean_text(value: Any) -> Any:
    """What an expression of a template prints. Markup is a subclass of str, and stays as it is."""
    return escape_text(value) if type(value) is str else value


def _data_uri(picture: Array) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode()}"


def _epoch_rows(epochs: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """All epochs; of many, evenly spaced ones with the last."""
    step = -(-len(epochs) // _MAX_EPOCH_ROWS)
    return [m for i, m in enumerate(epochs, 1) if i % step == 0 or i == len(epochs)] if step else []
