"""What was measured for a row of the lecture: docs/lecture/NN-slug.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from docs.tools.lecture_rows import LectureRow
from netdsl.errors import fail
from netdsl.file_io import write_atomically


@dataclass(frozen=True)
class LectureMeasurement:
    """`seconds` by command, `figures` by name."""

    date: str
    machine: str
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    figures: Mapping[str, float]

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def read_measurement(row: LectureRow) -> LectureMeasurement:
    """Raises NetError if the row was not measured."""
    try:
        return LectureMeasurement(**json.loads(row.record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise fail(
            f"{row.record.name}: {e}",
            help=f"`python -m docs.tools.lecture measure docs/lecture/{row.path.name}` writes it",
        ) from None


def write_measurement(row: LectureRow, measurement: LectureMeasurement) -> None:
    text = json.dumps(asdict(measurement), indent=2, ensure_ascii=False)
    write_atomically(row.record, f"{text}\n".encode())


def check_measurement(row: LectureRow, measurement: LectureMeasurement) -> list[str]:
    """What is wrong with it: commands and figures that are missing or no longer of the row, and
    figures outside their bounds."""
    problems = []
    for kind, wanted, found in (
        ("command", [c.text for c in row.commands], measurement.seconds),
        ("figure", list(row.figures), measurement.figures),
    ):
        problems += [f"{kind} `{x}` is not measured" for x in wanted if x not in found]
        problems += [f"{kind} `{x}` is not of the row" for x in found if x not in wanted]
    for name, figure in row.figures.items():
        if name in measurement.figures:
            wrong = figure.check(measurement.figures[name])
            problems += [f"figure `{name}`: {wrong} (`{figure.command}`)"] if wrong else []
    return [f"{row.name}: {x}" for x in problems]
