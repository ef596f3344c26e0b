"""Runs the commands of a row of the lecture, as a reader would, and reads its figures.

Each command is a process of its own in one empty folder with a link to `models` and, where the row
needs it, `squeezenet1_0.onnx`. Data sets are read from the cache directory. Those that it lacks are
taken from the folder that NETDSL_DATA names: its subfolder `lecture` then is the cache directory,
with links to them.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer

from docs.tools.lecture_paths import read_figure
from docs.tools.lecture_records import LectureMeasurement
from docs.tools.lecture_rows import DATA, ROOT, LectureCommand, LectureRow
from netdsl.errors import NetError, fail
from netdsl.file_io import cache_directory
from netdsl.insight.report.versions import describe_machine, list_versions

WEIGHTS = "squeezenet1_0.onnx"
_FOLDERS = tuple(x for x in DATA if x != "squeezenet")
_REFUSED_EXIT_CODE = 2
_MAX_SHOWN = 2000
"""Characters of what a command printed that are shown if it fails."""


def find_missing_data(row: LectureRow) -> list[str]:
    """The data that the row needs and that this machine lacks."""
    return [name for name in row.needs if not _find_data(name)]


def measure(
    row: LectureRow, folder: Path | None = None, report: Callable[[str], None] = lambda _: None
) -> LectureMeasurement:
    """Runs the commands of a row in an empty folder, or in `folder`, which is kept, and returns
    what was found, within the bounds or not.

    Raises NetError if data is missing, a command ends with another exit code than expected, or a
    figure is not in its JSON.
    """
    missing = find_missing_data(row)
    if missing:
        raise fail(
            f"{row.name} needs {', '.join(missing)}",
            help=f"put it into {cache_directory()} or the folder that NETDSL_DATA names",
        )
    seconds, figures = {}, {}
    with _open_folder(folder) as place:
        environment = _prepare(row, place)
        for command in row.commands:
            wanted = row.figures_of(command)
            began = _clocks()
            text = run_command(command, place, environment, as_json=bool(wanted))
            lasted = (after - before for before, after in zip(began, _clocks(), strict=True))
            seconds[command.text] = round(min(lasted), 1)
            report(f"{seconds[command.text]:7.1f} s  {command.text}")
            printed = _parse(command, text) if wanted else None
            for name, figure in wanted.items():
                figures[name] = _read(name, printed, figure.at)
                report(f"           {name} = {figures[name]:.6g}")
    date = datetime.date.today().isoformat()
    return LectureMeasurement(date, describe_machine(), list_versions(), seconds, figures)


def _clocks() -> tuple[float, float]:
    """Elapsed seconds, and those of the processor in commands that have ended. The smaller
    difference is what a command takes, whatever else the machine is busy with."""
    times = os.times()
    return time.perf_counter(), times.children_user + times.children_system


def run_command(
    command: LectureCommand, folder: Path, environment: dict[str, str], as_json: bool = False
) -> str:
    """Returns what the command prints. Raises NetError if its exit code is not the expected one."""
    words = command.words
    if as_json and not _prints_json(words):
        if not has_json_option(words[0]):
            raise fail(f"`netdsl {words[0]}` has no option --json, so it prints no figures")
        words = [*words, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "netdsl", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    wanted = _REFUSED_EXIT_CODE if command.is_refused else 0
    if done.returncode != wanted:
        printed = (done.stdout + done.stderr)[-_MAX_SHOWN:]
        raise fail(f"`{command.text}` exits with {done.returncode}, not {wanted}\n{printed}")
    return done.stdout


def _prints_json(words: list[str]) -> bool:
    return "--json" in words or "--emit json" in " ".join(words)


def has_json_option(name: str) -> bool:
    from netdsl import cli

    app = typer.main.get_command(cli.app)
    with app.make_context("netdsl", [name]) as context:
        command = app.get_command(context, name)  # type: ignore[attr-defined]
    return command is not None and any("--json" in p.opts for p in command.params)


def _parse(command: LectureCommand, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise fail(f"`{command.text}` prints no JSON with --json: {text[:_MAX_SHOWN]}") from None


def _read(name: str, printed: Any, path: str) -> float:
    try:
        return read_figure(printed, path)
    except NetError as e:
        raise fail(f"figure `{name}`: {e.message}", help=e.diagnostics[0].help) from None


@contextmanager
def _open_folder(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with TemporaryDirectory(prefix="lecture-") as name:
            yield Path(name)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _prepare(row: LectureRow, folder: Path) -> dict[str, str]:
    """Links what the commands need into the folder, and returns their environment."""
    _link(folder / "models", ROOT / "models")
    weights = _find_data("squeezenet")
    if "squeezenet" in row.needs and weights:
        _link(folder / WEIGHTS, weights)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    cache = cache_directory()
    if not all((cache / name).exists() for name in row.needs if name in _FOLDERS):
        cache = cache / "lecture"
        cache.mkdir(parents=True, exist_ok=True)
        for name in _FOLDERS:
            found = _find_data(name)
            if found:
                _link(cache / name, found)
    return {**environment, "NETDSL_CACHE": str(cache)}


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and not path.exists():  # to data that has moved
        path.unlink(missing_ok=True)
    with suppress(FileExistsError):  # also by another process at the same time
        path.symlink_to(target.resolve())


def _find_data(name: str) -> Path | None:
    file = WEIGHTS if name == "squeezenet" else name
    folders = [cache_directory()]
    if os.environ.get("NETDSL_DATA"):
        folders.append(Path(os.environ["NETDSL_DATA"]))
    return next((f / file for f in folders if (f / file).exists()), None)
