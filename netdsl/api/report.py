"""`netdsl.report`: the page of `netdsl report` from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netdsl.api.arguments import read_path, require_device
from netdsl.errors import fail
from netdsl.insight.report.report_file import write_report
from netdsl.insight.report.run_report import ReportOptions

_RUNS_HELP = (
    'give the directory of a run, or a list of several: netdsl.report("runs/digits-1", ...)'
)


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    mistakes: int = 20,
    time: bool = True,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Writes a self-contained page (.html) on a run or several, and returns what it contains in
    numbers, for each run as `netdsl report --json` prints it. `data` is the folder of the data set;
    up to `mistakes` misclassified images are shown; with `time`, a training step is timed. Raises
    NetError as `netdsl report` reports errors."""
    given = [runs] if isinstance(runs, str | os.PathLike) else runs
    if not isinstance(given, Sequence) or not given:
        raise fail("`runs` names no run", help=_RUNS_HELP)
    if isinstance(mistakes, bool) or not isinstance(mistakes, int) or mistakes < 0:
        raise fail(f"`mistakes` is {mistakes!r}, which is not a number of images")
    require_device(device)
    folder = None if data is None else read_path(data, "data")
    found = write_report(
        [Path(read_path(run, "runs", _RUNS_HELP)) for run in given],
        Path(read_path(out, "out")),
        device,
        ReportOptions(folder, mistakes, time),
    )
    return [one.as_json() for one in found]
