"""What is measured: sums over batches, and the record of a run."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from netdsl.backends.base import UNDER_WAY, Backend, Reading
from netdsl.data.prefetch import prefetched
from netdsl.data.samples import Batch
from netdsl.errors import fail
from netdsl.files import append, finite, write_atomically
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.schema import Invalid, Object, Tree, Whole, read_json
from netdsl.types import Array


@dataclass(frozen=True)
class Score:
    """Means over the images of a set."""

    loss: float
    accuracy: float
    top5: float
    images: int


OnBatch = Callable[[Batch, Mapping[str, Array]], None]
Part = TypeVar("Part")


def evaluate(
    executor: FoldedExecutor,
    image_input: str,
    batches: Iterator[Batch],
    on_batch: OnBatch | None = None,
) -> Score:
    """Loss and accuracy over all samples, every one counted once; `on_batch` is shown every batch.
    The batches are made ready in the background."""
    executor.refresh()

    def run_batch(batch: Batch) -> Mapping[str, Array]:
        out = executor.run({image_input: batch.images, **_targets(batch)})
        if on_batch is not None:
            on_batch(batch, out)
        return out

    return _sum_scores(executor.backend, batches, run_batch)


def evaluate_views(
    executor: FoldedExecutor,
    scoring: Executor,
    average_scores: Callable[[Sequence[Array]], Array],
    image_input: str,
    views: Sequence[Iterator[Batch]],
    on_batch: OnBatch,
) -> Score:
    """The same by the mean of the scores that several views of each image get: `views` give the
    same images, each prepared in its way, and `scoring` judges scores as `executor` judges its
    own."""
    executor.refresh()
    backend = executor.backend

    def run_batch(parts: tuple[Batch, ...]) -> Mapping[str, Array]:
        targets = _targets(parts[0])
        found = [
            backend.download(executor.run({image_input: part.images, **targets})["scores"])
            for part in parts
        ]
        out = scoring.run({"scores": average_scores(found), **targets})
        on_batch(parts[0], out)
        return out

    return _sum_scores(backend, zip(*views, strict=True), run_batch)


def _targets(batch: Batch) -> dict[str, Array]:
    return {"labels": batch.labels, "weights": batch.weights}


def _sum_scores(
    backend: Backend, parts: Iterator[Part], run_batch: Callable[[Part], Mapping[str, Array]]
) -> Score:
    """The sums that `run_batch` gives of each part, added up while the next ones are under way.
    Raises NetError where every image was skipped."""
    sums = dict.fromkeys(("loss", "top1", "top5", "count"), 0.0)
    pending: deque[Reading] = deque()

    def collect(most: int) -> None:
        while len(pending) > most:
            for key, number in pending.popleft().numbers().items():
                sums[key] += number

    with closing(prefetched(parts)) as prefetched_parts:
        for part in prefetched_parts:
            out = run_batch(part)
            pending.append(backend.reading({key: out[key] for key in sums}))
            collect(UNDER_WAY)
    collect(0)
    n = sums["count"]
    if not n:
        raise fail("none of the images to evaluate on can be used")
    return Score(sums["loss"] / n, sums["top1"] / n, sums["top5"] / n, int(sums["count"]))


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
        append(self.path, f"{_format_line(values)}\n".encode())
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


_COUNT = Whole(0, 2**60)
_LINE_SCHEMA = Object({}, dict.fromkeys(("epoch", "step", "watched_at"), _COUNT), others=Tree(4))


def _parse_line(line: bytes) -> Mapping[str, Any] | None:
    try:
        value: Mapping[str, Any] = read_json(line, nan_is_null=True)
        _LINE_SCHEMA.check(value, "line")
    except Invalid:
        return None
    return value


def _format_line(values: Mapping[str, Any]) -> str:
    return json.dumps(finite(dict(values)), allow_nan=False)


def _sort_key(values: Mapping[str, Any]) -> tuple[int, bool]:
    """What lines are in order of: updates; the end of an epoch comes before the next update."""
    return values.get("step", values.get("watched_at", 0)), "watched_at" in values


def _back_up(path: Path) -> Path | None:
    if not path.is_file():
        return None
    beside = path.with_name(f"{path.name}.damaged")
    write_atomically(beside, path.read_bytes())
    return beside
