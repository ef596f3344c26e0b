"""The metrics of a run: the lines of metrics.jsonl, restored when a run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.file_io import append_to_file, replace_non_finite, write_atomically
from netdsl.json_schema import JsonInteger, JsonObject, JsonValue, SchemaError, read_json


@dataclass
class MetricsLog:
    """The lines of metrics.jsonl. One that was being written when a run was killed is no part of
    what a checkpoint counts, so that it is cut off when the run goes on."""

    path: Path
    count: int = 0
    damaged_copy: Path | None = None
    """Where the file lies as it was when it was found damaged."""

    @staticmethod
    def restore(path: Path, count: int, history: Sequence[Mapping[str, Any]] = ()) -> MetricsLog:
        """The record of a run that goes on: what stands in the file, cut back to `count` lines.
        Where it is damaged, the good lines are kept, epochs are made up for from `history`, and
        the file as it was is set aside."""
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
            write_atomically(path, text)  # every line that follows is put at its end
        return MetricsLog(path, len(good), set_aside)

    def add(self, values: Mapping[str, Any]) -> None:
        append_to_file(self.path, f"{_format_line(values)}\n".encode())
        self.count += 1


def last_epoch(path: Path) -> int:
    """The last epoch that a file of metrics speaks of; 0 where it speaks of none."""
    return max((x.get("epoch", 0) for x in _read_lines(path) if x is not None), default=0)


def has_test_metrics(path: Path) -> bool:
    """Whether a file of metrics ends with those of the test."""
    lines = _read_lines(path)
    return bool(lines) and "test_images" in (lines[-1] or {})


def _read_lines(path: Path) -> list[Mapping[str, Any] | None]:
    """The lines of a file of metrics; None for what is none."""
    return [_parse_line(x) for x in path.read_bytes().splitlines()] if path.is_file() else []


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
    """What lines are in order of: updates; the end of an epoch comes before the next update."""
    return values.get("step", values.get("watched_at", 0)), "watched_at" in values


def _back_up(path: Path) -> Path | None:
    if not path.is_file():
        return None
    beside = path.with_name(f"{path.name}.damaged")
    write_atomically(beside, path.read_bytes())
    return beside
