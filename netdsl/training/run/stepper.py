"""Updates of the weights, each fully determined by the progress of the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from netdsl.backends.base import MAX_STEPS_IN_FLIGHT, Readback
from netdsl.backends.lazy_batch import materialize
from netdsl.data.mixing import Mixer
from netdsl.data.prefetch import prefetch
from netdsl.data.samples import Batch, cache_on_device, group_batches, training_batches
from netdsl.runtime.executor import Executor, Workspace
from netdsl.runtime.state import State
from netdsl.training.job import Job
from netdsl.training.recipe.precision import has_loss_scale
from netdsl.training.run.nan_check import (
    Diverged,
    Fault,
    ReplayedBatch,
    can_continue,
    find_first_fault,
    is_finite,
)
from netdsl.training.run.rank_signals import RankSignals
from netdsl.training.step.loss_scale import SCALE, SCALE_STATES, SKIP_FLAG, scale_metrics
from netdsl.training.step.rank_reduction import SIGNAL_VALUES
from netdsl.training.step.targets import target_inputs
from netdsl.training.store.progress import Progress
from netdsl.types import Array

REPORTED_OUTPUTS = ("loss", "accuracy", SKIP_FLAG, SCALE, SIGNAL_VALUES)
"""The outputs of a step that are read back."""
SNAPSHOT_EVERY = 200
"""Updates between two snapshots of the weights, from which a fault can be located."""


class Stepper:
    """The executors of a step and the progress of the run. Every update changes the states."""

    def __init__(
        self, job: Job, state: State, progress: Progress, workspace: Workspace | None = None
    ) -> None:
        self.job, self.state, self.progress = job, state, progress
        self.last_good = progress, state.snapshot()
        self.step = Executor(job.step_graph, state.backend, state, workspace=workspace)
        graph = job.accumulation_graph
        self.accumulation = (
            Executor(graph, state.backend, state, workspace=workspace) if graph else None
        )
        self.train = job.train
        self._pending: deque[tuple[Readback, ...]] = deque()
        self.signals = RankSignals(state.backend.communicator)

    def upload_images(self) -> None:
        """Caches the training images on the device if they fit into the remaining memory; not those
        that are mixed, which the host does."""
        if self.job.recipe.data.mixings:
            return
        self.train = cache_on_device(self.job.train, self.job.augment, self.state.backend)

    def release_images(self) -> None:
        """Frees the cached images and the snapshot; every step succeeded."""
        self.train = self.job.train
        self.last_good = self.progress, {}

    def batch_groups(self) -> Generator[tuple[Batch, ...], None, None]:
        """The remaining batches of this epoch, in groups of one update each; prefetched in the
        background."""
        s, recipe, data = self.progress, self.job.recipe, self.job.recipe.data
        classes = len(self.job.dataset.classes)
        mixer = Mixer(data.mixings, classes, recipe.seed, s.epoch) if data.mixings else None
        batches = training_batches(
            self.train,
            data.batch,
            recipe.seed,
            s.epoch,
            s.seen,
            self.job.augment,
            data.sampling,
            mixer=mixer,
            shard=self.job.shard,
        )
        return prefetch(group_batches(batches, recipe.accumulate))

    def prefetch_groups(self) -> Generator[tuple[Batch, ...], None, None]:
        """The same groups, with the images of the next one uploaded while the current one is
        trained on."""
        with closing(self.batch_groups()) as groups:
            next_group: tuple[Batch, ...] = ()
            for group in groups:
                before, next_group = next_group, tuple(self._prefetch(b) for b in group)
                if before:
                    yield before
            if next_group:
                yield next_group

    def _prefetch(self, batch: Batch) -> Batch:
        return replace(batch, images=self.state.backend.start_upload(batch.images))

    def learning_rate(self) -> Array:
        return np.asarray(
            self.progress.learning_rate(self.job.recipe, self.job.steps_per_epoch), dtype=np.float32
        )

    def last_learning_rate(self) -> Array:
        """The learning rate of the previous update, which may have run in another process."""
        s, recipe = self.progress, self.job.recipe
        before = replace(s, seen=max(0, s.seen - self.job.images_per_update))
        return np.asarray(before.learning_rate(recipe, self.job.steps_per_epoch), dtype=np.float32)

    def inputs(self, batch: Batch, i: int = 0) -> dict[str, Array]:
        """The graph inputs for the i-th batch of an update."""
        s, recipe = self.progress, self.job.recipe
        return {
            self.job.image_input: batch.images,
            **target_inputs(batch),
            **self.job.class_weights,
            "lr": self.learning_rate(),
            "step": np.asarray(s.step + i, dtype=np.int32),
            "update": np.asarray(s.update, dtype=np.int32),
            "seed": np.asarray(recipe.seed, dtype=np.int32),
            "rank": np.asarray(self.job.shard.rank, dtype=np.int32),
            SIGNAL_VALUES: self.signals.sent,
            "ema_rate": np.asarray(s.ema_rate(recipe.ema or 0.0), dtype=np.float32),
        }

    def update(self, group: tuple[Batch, ...]) -> None:
        """Launches one update of the weights; the device may still be running it on return. Raises
        Diverged if the loss of this or an earlier update is not finite or, if it is scaled, if no
        smaller scale would help."""
        self._pending.append(tuple(self._launch(i, batch) for i, batch in enumerate(group)))
        self.progress = self.progress.advance(self.job.images_per_update, len(group))
        while self._pending and self._can_collect():
            self._collect()

    def _launch(self, i: int, batch: Batch) -> Readback:
        out = self._executor(i).run(self.inputs(batch, i))
        return self.state.backend.start_readback({k: out[k] for k in REPORTED_OUTPUTS if k in out})

    def _can_collect(self) -> bool:
        if not self.state.backend.communicator.is_alone:  # at the same update on all ranks
            return len(self._pending) > self.state.backend.steps_in_flight
        return len(self._pending) > MAX_STEPS_IN_FLIGHT or all(
            r.is_ready() for r in self._pending[0]
        )

    def _collect(self) -> None:
        """Collects the results of the oldest pending update."""
        for found in self._pending.popleft():
            with self.state.backend.communicator.activity.collective():  # in the step of a GPU
                outputs = dict(found.result())
            if SIGNAL_VALUES in outputs:
                self.signals.receive(outputs.pop(SIGNAL_VALUES))
            numbers = {name: float(value) for name, value in outputs.items()}
            if not can_continue(numbers):
                raise Diverged
            self.progress = self.progress.add_batch(numbers["loss"], numbers["accuracy"])

    def synchronize(self) -> None:
        """Waits for all pending updates. Raises Diverged as `update` does."""
        while self._pending:
            self._collect()

    def _executor(self, i: int) -> Executor:
        last = i == self.job.recipe.accumulate - 1
        return self.step if last or self.accumulation is None else self.accumulation

    def finish_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Starts the next epoch; `metrics` become part of the history."""
        self.progress = self.progress.finish_epoch(metrics)

    # ---- faults

    def take_snapshot(self) -> None:
        """Takes a snapshot at the start of an epoch and every SNAPSHOT_EVERY updates."""
        if self.progress.update % SNAPSHOT_EVERY == 0 or self.progress.seen == 0:
            self.synchronize()
            self.last_good = self.progress, {}  # frees the old snapshot before taking the next
            self.last_good = self.progress, self.state.snapshot()

    def check_finite(self) -> None:
        """Raises Diverged if a weight is not finite or no step of the epoch had a finite loss."""
        self.check_weights()
        if not self.progress.batches:
            raise Diverged

    def check_weights(self) -> None:
        """Raises Diverged if a weight is not finite."""
        self.synchronize()
        if not all(is_finite({k: v}) for k, v in self.state.items()):
            raise Diverged

    def scale_metrics(self) -> dict[str, float]:
        """The metrics of the loss scale, if the loss is scaled."""
        if not has_loss_scale(self.job.recipe.precision):
            return {}
        return scale_metrics(
            {name: self.state.backend.download(self.state.array(name)) for name in SCALE_STATES}
        )

    def find_fault(self) -> tuple[int, Fault | None] | None:
        """Replays the steps since the last good snapshot, one by one, and returns the number of the
        first faulty step and its fault, if it can be located."""
        found = find_first_fault(self._replay())
        return (self.last_good[0].step + found[0] + 1, found[1]) if found else None

    def _replay(self) -> Iterator[ReplayedBatch]:
        self._pending.clear()
        self.progress, states = self.last_good
        self.state.load(states, self.job.step_graph.states, "the last sound place")
        with closing(self.batch_groups()) as groups:
            for group in groups:
                for i, batch in enumerate(_decode_group(group)):
                    before, inputs, executor = (
                        self.state.snapshot(),
                        self.inputs(batch, i),
                        self._executor(i),
                    )
                    is_sound = can_continue(executor.run(inputs))
                    yield ReplayedBatch(
                        executor.graph, inputs, before, is_sound, self.state.snapshot()
                    )
                self.progress = self.progress.advance(self.job.images_per_update, len(group))


def _decode_group(group: tuple[Batch, ...]) -> Iterator[Batch]:
    return (replace(batch, images=materialize(batch.images)) for batch in group)
