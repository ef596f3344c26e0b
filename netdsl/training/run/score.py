"""Scores: what is measured on a set of images, with one view of each image or several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

from netdsl.backends.base import MAX_STEPS_IN_FLIGHT, Backend, Readback
from netdsl.data.prefetch import prefetch
from netdsl.data.samples import Batch
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.training.metrics.table import Score
from netdsl.training.run.tally import Tally, merge_tallies
from netdsl.training.step.targets import target_inputs
from netdsl.types import Array

Views = tuple[Batch, ...]
"""Batches of the same images, each with its own preprocessing."""


def evaluate(
    executor: FoldedExecutor,
    image_input: str,
    batches: Iterator[Batch],
    tally: Tally,
    on_images: Callable[[int], None] = lambda done: None,
) -> Score:
    """Adds all samples to the tally, each counted once, and returns its score; calls `on_images`
    after every batch with the number of images so far, padding included. Batches are prefetched in
    the background. Of several ranks, each adds its own and all return the score of all images."""
    executor.refresh()

    def run(views: Views) -> Mapping[str, Array]:
        return executor.run({image_input: views[0].images, **target_inputs(views[0])})

    return _add_batches(executor.backend, ((batch,) for batch in batches), run, tally, on_images)


def evaluate_views(
    executor: FoldedExecutor,
    scoring: Executor,
    average_scores: Callable[[Sequence[Array]], Array],
    image_input: str,
    views: Iterator[Views],
    tally: Tally,
    on_images: Callable[[int], None] = lambda done: None,
) -> Score:
    """Like `evaluate`, but averages the scores of several views of each image. `scoring` computes
    from scores what `executor` computes from its own."""
    executor.refresh()
    backend = executor.backend

    def run(views: Views) -> Mapping[str, Array]:
        targets = target_inputs(views[0])
        found = [
            backend.download(executor.run({image_input: view.images, **targets})["scores"])
            for view in views
        ]
        return scoring.run({"scores": average_scores(found), **targets})

    return _add_batches(backend, views, run, tally, on_images)


def _add_batches(
    backend: Backend,
    views: Iterator[Views],
    run: Callable[[Views], Mapping[str, Array]],
    tally: Tally,
    on_images: Callable[[int], None],
) -> Score:
    """Adds the results of `run`, read back asynchronously, for all batches. Raises NetError if
    every image was skipped."""
    pending: deque[tuple[Array, Array, Readback]] = deque()

    def collect(most: int) -> None:
        while len(pending) > most:
            labels, weights, outputs = pending.popleft()
            tally.add(labels, weights, outputs.result())

    done = 0
    with closing(prefetch(views)) as prefetched:
        for batches in prefetched:
            out = run(batches)
            reading = backend.start_readback({key: out[key] for key in tally.output_names})
            pending.append((batches[0].labels, batches[0].weights, reading))
            done += len(batches[0].weights)
            on_images(done)
            collect(MAX_STEPS_IN_FLIGHT)
    collect(0)
    return merge_tallies(backend.communicator, tally).score()
