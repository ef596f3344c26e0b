"""What differs between several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.insight.report.run_report import RunReport

ABSENT = "–"
"""Shown for a setting that a run does not have."""


@dataclass(frozen=True)
class Comparison:
    """The settings in which runs differ, by name, each with a value for every run."""

    settings: dict[str, tuple[str, ...]]


def compare_runs(reports: Sequence[RunReport]) -> Comparison:
    """The settings in which the runs differ, in the order in which they first occur. Nets whose
    definitions differ under the same name are numbered."""
    found = [dict(_list_all(report, reports)) for report in reports]
    keys = dict.fromkeys(key for settings in found for key in settings)
    rows = {key: tuple(settings.get(key, ABSENT) for settings in found) for key in keys}
    return Comparison({key: row for key, row in rows.items() if len(set(row)) > 1})


def _list_all(report: RunReport, reports: Sequence[RunReport]) -> dict[str, str]:
    run = report.run
    definitions = [r.run.definitions for r in reports]
    number = definitions.index(run.definitions) + 1
    return {"definition of the net": f"number {number}", **run.settings}
