"""The metrics of a run: the lines of metrics.jsonl, restored when a run is resumed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.file_io import append_to_file, open_regular_file, replace_non_finite, write_atomically
from netdsl.json_schema import JsonInteger, JsonObject, JsonValue, SchemaError, read_json


@dataclass
class MetricsLog:
    """The lines of metrics.jsonl. A checkpoint does not count a line that was being written when
    the run was killed, so it is cut off when the run is resumed."""

    path: Path
    count: int = 0
    damaged_copy: Path | None = None
    """The backup of the file, if it was damaged."""

    @staticmethod
    def restore(path: Path, count: int, history: Sequence[Mapping[str, Any]] = ()) -> MetricsLog:
        """Opens the log of a resumed run, truncated to `count` lines. If the file is damaged, keeps
        the valid lines, recovers missing epochs from `history` and backs up the damaged file."""
        there = _read_lines(path)[:count] if count else []
        good = [x for x in there if x is not None]
        set_aside = None
        if len(good) < count:
            known = {x.get("epoch") for x in good}
            good = sorted(
                [*good, *(h for h in history if h.get("epoch") not in known)], key=_sort_key
            )
            set_aside = _back_up(path)
        text = "".join(f"{_format_line(x)}\n" for x in good).encode()
        if text or path.is_file():
            write_atomically(path, text)  # later lines are appended
        return MetricsLog(path, len(good), set_aside)

    def add(self, values: Mapping[str, Any]) -> None:
        append_to_file(self.path, f"{_format_line(values)}\n".encode())
        self.count += 1


class MutedLog(MetricsLog):
    """A log of metrics that another rank writes."""

    def add(self, values: Mapping[str, Any]) -> None:
        self.count += 1


def read_metrics(path: Path) -> Iterator[Mapping[str, Any]]:
    """The valid lines of a metrics file, one by one: of a run that was killed, or that is writing
    now, the last one may be torn. Nothing if there is no file. Raises NetError if it cannot be
    read."""
    return MetricsReader(path).read()


@dataclass
class MetricsReader:
    """Reads a metrics file while a run writes it: `read` yields the valid lines that are new."""

    path: Path
    offset: int = 0
    """Bytes of the lines that were read."""

    def read(self) -> Iterator[Mapping[str, Any]]:
        if not self.path.exists():
            return
        with open_regular_file(self.path) as file:
            file.seek(self.offset)
            while line := file.readline(_MAX_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
                    return  # it is still being written
                self.offset += len(line)
                values = _parse_line(line)
                if values is not None:
                    yield values


def select_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line that are numbers, whatever program wrote it: without those that are
    undefined, and without integers that no float can hold."""
    return {k: v for k, v in values.items() if is_number(v)}


def is_number(value: object) -> bool:
    """Whether a value of a line can be plotted. In Python, a truth value is an integer too."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < _MAX_FLOAT
    return isinstance(value, float)


_MAX_FLOAT = sys.float_info.max


def last_epoch(path: Path) -> int:
    """The last epoch in a metrics file; 0 if there is none."""
    return max((x.get("epoch", 0) for x in _read_lines(path) if x is not None), default=0)


def read_test_metrics(path: Path) -> Mapping[str, Any]:
    """The test metrics that a metrics file ends with; empty if it does not."""
    last = (_read_lines(path) or [None])[-1] or {}
    return last if "test_images" in last else {}


def sum_seconds(path: Path) -> float:
    """The seconds that the epochs in a metrics file took to train."""
    found = [x.get("seconds") for x in _read_lines(path) if x is not None]
    return math.fsum(x for x in found if isinstance(x, int | float))


def _read_lines(path: Path) -> list[Mapping[str, Any] | None]:
    """The lines of a metrics file; None for an invalid one."""
    return [_parse_line(x) for x in path.read_bytes().splitlines()] if path.is_file() else []


_MAX_LINE_BYTES = 2**26
"""More than the moments of every layer of any net."""
_COUNT = JsonInteger(0, 2**60)
_LINE_SCHEMA = JsonObject(
    {}, dict.fromkeys(("epoch", "step", "watched_at"), _COUNT), additional=JsonValue(4)
)


def _parse_line(line: bytes) -> Mapping[str, Any] | None:
    try:
        value: Mapping[str, Any] = read_json(line, is_nan_null=True)
        _LINE_SCHEMA.check(value, "line")
    except SchemaError:
        return None
    return value


def _format_line(values: Mapping[str, Any]) -> str:
    return json.dumps(replace_non_finite(dict(values)), allow_nan=False)


def _sort_key(values: Mapping[str, Any]) -> tuple[int, bool]:
    """The order of lines: by update; the end of an epoch comes before the next update."""
    return values.get("step", values.get("watched_at", 0)), "watched_at" in values


def _back_up(path: Path) -> Path | None:
    if not path.is_file():
        return None
    beside = path.with_name(f"{path.name}.damaged")
    write_atomically(beside, path.read_bytes())
    return beside
