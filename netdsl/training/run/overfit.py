"""The first test of any net: it must overfit a single batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from netdsl.backends.base import Backend
from netdsl.data.samples import training_batches
from netdsl.errors import fail
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.job import Job
from netdsl.training.recipe.losses import Objective
from netdsl.training.step.compile import compile_step
from netdsl.training.step.targets import target_inputs
from netdsl.training.store.warm_start import initialise_weights

MAX_STEPS = 500
TARGET_LOSS = 0.01
"""The loss at which a batch counts as overfit."""
MAX_DEVIATION = 0.5
"""The relative deviation allowed between the first loss and that of an untrained net."""


@dataclass(frozen=True)
class OverfitResult:
    """`expected` is the loss of an untrained net, ln(classes); None if the loss is not plain
    cross-entropy."""

    images: int
    steps: int
    first: float
    expected: float | None
    last: float
    accuracy: float

    @property
    def ok(self) -> bool:
        return self.last <= max(TARGET_LOSS, 0.02 * self.first)

    @property
    def is_start_odd(self) -> bool:
        """Whether the first loss is far from that of an untrained net: the initialisers or the
        number of classes are then wrong."""
        return (
            self.expected is not None
            and abs(self.first - self.expected) > MAX_DEVIATION * self.expected
        )


def overfit(job: Job, backend: Backend, max_steps: int = MAX_STEPS) -> OverfitResult:
    """Trains on the first batch only, at the optimizer's full rate. The dropout mask is fixed and
    labels are neither smoothed nor mixed, so that the loss can approach zero."""
    if job.recipe.after is not None:
        message = f"`{job.recipe.after}` must be trained first, but --overfit runs one recipe"
        raise fail(message, help="`--set train.after=none` starts from random weights")
    data = replace(job.recipe.data, augment=())
    objective = _without_smoothing(job.recipe.loss)
    recipe = replace(job.recipe, accumulate=1, ema=None, loss=objective, data=data)
    graph = compile_step(job.network, recipe, counter="update")
    state = State(backend)
    initialise_weights(state, job.network, recipe)
    state.initialise(graph.states, recipe.seed)
    executor = Executor(graph, backend, state)
    size, steady = recipe.data.batch, job.transform
    batch = next(
        training_batches(
            job.train, size, recipe.seed, 0, augment=steady, sampling=recipe.data.sampling
        )
    )
    given = {
        job.image_input: batch.images,
        **target_inputs(batch),
        **job.class_weights,
        "lr": np.asarray(recipe.optimizer.arguments["lr"], dtype=np.float32),
        "step": np.asarray(0, dtype=np.int32),
        "seed": np.asarray(recipe.seed, dtype=np.int32),
        "rank": np.asarray(0, dtype=np.int32),
    }
    first = math.nan
    for step in range(max_steps):
        out = executor.run({**given, "update": np.asarray(step, dtype=np.int32)})
        loss, accuracy = float(out["main_loss"]), float(out["accuracy"])
        first = loss if step == 0 else first
        if not loss > TARGET_LOSS:
            break
    plain = [chosen.name for chosen, _ in recipe.loss.terms] == ["cross_entropy"]
    expected = math.log(len(job.dataset.classes)) if plain else None
    return OverfitResult(len(batch.labels), step + 1, first, expected, loss, accuracy)


def _without_smoothing(loss: Objective) -> Objective:
    """The same losses without label smoothing."""
    plain = (
        (replace(c, arguments=_drop_smoothing(c.arguments)), weight) for c, weight in loss.terms
    )
    return Objective(tuple(plain))


def _drop_smoothing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {k: 0.0 if k == "smoothing" else v for k, v in arguments.items()}
