"""Writes the report on runs as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netdsl.backends import open_backend
from netdsl.file_io import write_atomically
from netdsl.insight.plots.figure import import_matplotlib
from netdsl.insight.report.page import import_jinja2, render_page
from netdsl.insight.report.run_report import ReportOptions, RunReport, make_run_reports
from netdsl.training.run.phase import OnPhase, Phase, ignore_phase
from netdsl.training.store.output_files import check_outputs, check_suffix
from netdsl.training.store.run_directory import RUN_FILES


def write_report(
    runs: Sequence[Path],
    out: Path,
    device: str,
    options: ReportOptions,
    on_phase: OnPhase = ignore_phase,
) -> list[RunReport]:
    """Writes the page on the runs in some directories, and returns what it shows. Raises NetError
    if there is no such run, if a package is missing, if the page cannot be written, or if it would
    overwrite what a command reads."""
    check_suffix(out, ".html", "a report is a page")
    check_outputs([out], [run / name for run in runs for name in RUN_FILES])
    import_jinja2()  # before what takes long
    import_matplotlib()
    reports = make_run_reports(runs, open_backend(device), options, on_phase)
    on_phase(Phase("drawing"))
    write_atomically(out, render_page(reports))
    return reports
