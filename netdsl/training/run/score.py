"""Scores: losses and accuracies summed over the batches of an evaluation."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from netdsl.backends.base import MAX_STEPS_IN_FLIGHT, Backend, Readback
from netdsl.data.prefetch import prefetch
from netdsl.data.samples import Batch
from netdsl.errors import fail
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.training.step.targets import target_inputs
from netdsl.types import Array


@dataclass(frozen=True)
class Score:
    """Means over the images of a set. The accuracy for several labels an image is the share of
    images all of whose labels are right; `top5` is then None."""

    loss: float
    accuracy: float
    top5: float | None
    images: int


_SUMS = ("loss", "top1", "top5", "count")
OnBatch = Callable[[Batch, Mapping[str, Array]], None]
Part = TypeVar("Part")


def evaluate(
    executor: FoldedExecutor,
    image_input: str,
    batches: Iterator[Batch],
    on_batch: OnBatch | None = None,
) -> Score:
    """Returns loss and accuracy over all samples, each counted once; calls `on_batch` for every
    batch. Batches are prefetched in the background."""
    executor.refresh()

    def run_batch(batch: Batch) -> Mapping[str, Array]:
        out = executor.run({image_input: batch.images, **target_inputs(batch)})
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
    """Like `evaluate`, but averages the scores of several views of each image. The iterators in
    `views` yield the same images, each with its own preprocessing; `scoring` computes loss and hits
    from scores as `executor` does from its own."""
    executor.refresh()
    backend = executor.backend

    def run_batch(parts: tuple[Batch, ...]) -> Mapping[str, Array]:
        targets = target_inputs(parts[0])
        found = [
            backend.download(executor.run({image_input: part.images, **targets})["scores"])
            for part in parts
        ]
        out = scoring.run({"scores": average_scores(found), **targets})
        on_batch(parts[0], out)
        return out

    return _sum_scores(backend, zip(*views, strict=True), run_batch)


def _sum_scores(
    backend: Backend, parts: Iterator[Part], run_batch: Callable[[Part], Mapping[str, Array]]
) -> Score:
    """Sums the results of `run_batch`, read back asynchronously, over all parts. Raises NetError if
    every image was skipped."""
    sums: defaultdict[str, float] = defaultdict(float)
    pending: deque[Readback] = deque()

    def collect(most: int) -> None:
        while len(pending) > most:
            for key, number in pending.popleft().result().items():
                sums[key] += number

    with closing(prefetch(parts)) as prefetched_parts:
        for part in prefetched_parts:
            out = run_batch(part)
            pending.append(backend.start_readback({k: out[k] for k in _SUMS if k in out}))
            collect(MAX_STEPS_IN_FLIGHT)
    collect(0)
    n = sums["count"]
    if not n:
        raise fail("none of the images to evaluate on can be used")
    top5 = sums["top5"] / n if "top5" in sums else None
    return Score(sums["loss"] / n, sums["top1"] / n, top5, int(n))
