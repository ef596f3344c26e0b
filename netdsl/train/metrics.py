"""What is measured: sums over batches, and the record of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netdsl.data.samples import Batch, Samples, evaluation_batches
from netdsl.files import finite, write_atomically
from netdsl.runtime.executor import FoldedExecutor
from netdsl.types import Array


@dataclass(frozen=True)
class Score:
    """Means over the images of a set."""

    loss: float
    accuracy: float
    top5: float
    images: int


Seen = Callable[[Batch, Mapping[str, Array]], None]


def evaluate(
    executor: FoldedExecutor,
    image_input: str,
    samples: Samples,
    batch: int,
    seen: Seen | None = None,
) -> Score:
    """Loss and accuracy over all samples, every one counted once; `seen` is shown every batch."""
    executor.refresh()
    sums = dict.fromkeys(("loss", "top1", "top5", "count"), 0.0)
    for part in evaluation_batches(samples, batch):
        out = executor.run(
            {image_input: part.images, "labels": part.labels, "weights": part.weights}
        )
        for key in sums:
            sums[key] += float(out[key])
        if seen is not None:
            seen(part, out)
    n = max(sums["count"], 1.0)
    return Score(sums["loss"] / n, sums["top1"] / n, sums["top5"] / n, int(sums["count"]))


@dataclass
class Record:
    """The lines of metrics.jsonl; the file is whole after every line."""

    path: Path
    lines: list[str] = field(default_factory=list)

    @staticmethod
    def kept(path: Path, count: int, history: Sequence[Mapping[str, Any]] = ()) -> Record:
        """The record of a run that goes on: what stands in the file, cut back to `count` lines;
        what can be known from `history` where the file is damaged."""
        there = path.read_bytes().splitlines()[:count] if count and path.is_file() else []
        try:
            lines = [json.dumps(_object(line)) for line in there]
        except ValueError:
            lines = []
        if len(lines) < count:
            lines = [json.dumps(finite(dict(h))) for h in history]
        return Record(path, lines)

    @property
    def count(self) -> int:
        return len(self.lines)

    def add(self, values: Mapping[str, Any]) -> None:
        self.lines.append(json.dumps(finite(dict(values)), allow_nan=False))
        write_atomically(self.path, ("\n".join(self.lines) + "\n").encode())


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line of metrics is no object")
    return value
