"""One update of the weights after the other, each determined by where the run stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np

from netdsl.backends.base import UNDER_WAY, Reading
from netdsl.backends.picked import made
from netdsl.data.prefetch import prefetched
from netdsl.data.samples import Batch, grouped, on_device, training_batches
from netdsl.runtime.executor import Executor, Workspace
from netdsl.runtime.state import State
from netdsl.train.guard import Fault, Replayed, finite, first_fault, sound
from netdsl.train.job import Job
from netdsl.train.precision import LEFT_OUT, SCALE, STATES, scaled, told
from netdsl.train.standing import Standing
from netdsl.types import Array

TOLD = ("loss", "accuracy", LEFT_OUT, SCALE)
"""What is read of what a step gives out."""
GOOD_EVERY = 200
"""Updates after which the weights are held in memory, to find a fault from."""


class Unsound(Exception):
    """The loss, or a weight, is no finite number any more."""


class Stepper:
    """The executors of a step, and where the run stands. States change with every update."""

    def __init__(
        self, job: Job, state: State, standing: Standing, workspace: Workspace | None = None
    ) -> None:
        self.job, self.state, self.standing = job, state, standing
        self.good = standing, state.snapshot()
        self.step = Executor(job.step, state.backend, state, workspace=workspace)
        graph = job.accumulation
        self.accumulation = (
            Executor(graph, state.backend, state, workspace=workspace) if graph else None
        )
        self.train = job.train
        self._under_way: deque[tuple[Reading, ...]] = deque()

    def hold(self) -> None:
        """Puts the images on the device where there is room by now."""
        self.train = on_device(self.job.train, self.job.augment, self.state.backend)

    def let_go(self) -> None:
        """Gives that room back, and the copy of the states: every step was sound."""
        self.train = self.job.train
        self.good = self.standing, {}

    def groups(self) -> Generator[tuple[Batch, ...], None, None]:
        """The batches of the rest of this epoch, in groups that make one update; made ready in the
        background."""
        s, recipe = self.standing, self.job.recipe
        batches = training_batches(
            self.train, recipe.data.batch, recipe.seed, s.epoch, s.seen, self.job.augment
        )
        return prefetched(grouped(batches, recipe.accumulate))

    def sent(self) -> Generator[tuple[Batch, ...], None, None]:
        """The same groups, whose images set out for the device while the one before is trained
        on."""
        with closing(self.groups()) as groups:
            coming: tuple[Batch, ...] = ()
            for group in groups:
                before, coming = coming, tuple(self._sent(b) for b in group)
                if before:
                    yield before
            if coming:
                yield coming

    def _sent(self, batch: Batch) -> Batch:
        return replace(batch, images=self.state.backend.ahead(batch.images))

    def rate(self) -> Array:
        return np.asarray(self.standing.rate(self.job.recipe, self.job.steps), dtype=np.float32)

    def last_rate(self) -> Array:
        """The rate of the update that led here, which another process may have made."""
        s, recipe = self.standing, self.job.recipe
        before = replace(s, seen=max(0, s.seen - self.job.images))
        return np.asarray(before.rate(recipe, self.job.steps), dtype=np.float32)

    def inputs(self, batch: Batch, i: int = 0) -> dict[str, Array]:
        """What the graphs are given for the i-th batch of an update."""
        s, recipe = self.standing, self.job.recipe
        return {
            self.job.image: batch.images,
            "labels": batch.labels,
            "weights": batch.weights,
            "lr": self.rate(),
            "step": np.asarray(s.step + i, dtype=np.int32),
            "update": np.asarray(s.update, dtype=np.int32),
            "seed": np.asarray(recipe.seed, dtype=np.int32),
            "ema_rate": np.asarray(s.ema_rate(recipe.ema or 0.0), dtype=np.float32),
        }

    def update(self, group: tuple[Batch, ...]) -> None:
        """One update of the weights, which a device may still be at when this is over. Raises
        Unsound where a loss, of this one or one before, is no finite number, and where it is
        scaled, when no smaller scale would help."""
        self._under_way.append(tuple(self._begun(i, batch) for i, batch in enumerate(group)))
        self.standing = self.standing.after(self.job.images, len(group))
        while self._under_way and self._due():
            self._count()

    def _begun(self, i: int, batch: Batch) -> Reading:
        out = self._executor(i).run(self.inputs(batch, i))
        return self.state.backend.reading({k: out[k] for k in TOLD if k in out})

    def _due(self) -> bool:
        return len(self._under_way) > UNDER_WAY or all(r.ready() for r in self._under_way[0])

    def _count(self) -> None:
        """What the update gave out that has waited longest."""
        for found in self._under_way.popleft():
            numbers = found.numbers()
            if not sound(numbers):
                raise Unsound
            self.standing = self.standing.counted(numbers["loss"], numbers["accuracy"])

    def settle(self) -> None:
        """Waits for every update that is under way. Raises Unsound as `update` does."""
        while self._under_way:
            self._count()

    def _executor(self, i: int) -> Executor:
        last = i == self.job.recipe.accumulate - 1
        return self.step if last or self.accumulation is None else self.accumulation

    # ---- faults

    def mark(self) -> None:
        """Holds this place in memory, at the start of an epoch and every so many updates."""
        if self.standing.update % GOOD_EVERY == 0 or self.standing.seen == 0:
            self.settle()
            self.good = self.standing, {}  # one copy goes before the next one is made
            self.good = self.standing, self.state.snapshot()

    def check(self) -> None:
        """Raises Unsound where a weight is no finite number, and where no step of the epoch had a
        finite loss."""
        self.settle()
        if not self.standing.batches or not all(finite({k: v}) for k, v in self.state.each()):
            raise Unsound

    def scaling(self) -> dict[str, float]:
        """What the metrics say of a scaled loss, where there is one."""
        if not scaled(self.job.recipe.precision):
            return {}
        return told({name: self.state.backend.download(self.state.array(name)) for name in STATES})

    def fault(self) -> tuple[int, Fault] | None:
        """The number of the step in which the first fault lies, and what it is: the steps since
        the last sound place are done again, one by one."""
        found = first_fault(self._replay())
        return (self.good[0].step + found[0] + 1, found[1]) if found else None

    def _replay(self) -> Iterator[Replayed]:
        self._under_way.clear()
        self.standing, states = self.good
        self.state.load(states, self.job.step.states, "the last sound place")
        with closing(self.groups()) as groups:
            for group in groups:
                for i, batch in enumerate(_made(group)):
                    before, inputs, executor = (
                        self.state.snapshot(),
                        self.inputs(batch, i),
                        self._executor(i),
                    )
                    well = sound(executor.run(inputs))
                    yield Replayed(executor.graph, inputs, before, well, self.state.snapshot())
                self.standing = self.standing.after(self.job.images, len(group))


def _made(group: tuple[Batch, ...]) -> Iterator[Batch]:
    return (replace(batch, images=made(batch.images)) for batch in group)
