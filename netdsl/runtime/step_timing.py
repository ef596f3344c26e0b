"""How long a step takes, and each kernel of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from netdsl.runtime.executor import Executor

_WARMUP_STEPS = 2
"""Steps before the first that counts: a backend may capture the second one."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a whole step and of each kernel, in the plan's order."""

    step: float
    kernels: tuple[float, ...]


def measure_times(executor: Executor, rounds: int) -> StepTimes:
    """Medians over rounds; in each the step runs as it always does, then kernel by kernel. The
    inputs are those that are there."""
    seconds = executor.backend.measure_seconds
    steps, kernels = [], []
    for _ in range(_WARMUP_STEPS):
        executor.launch()
    with np.errstate(all="ignore"):
        for _ in range(rounds):
            steps += seconds([executor.launch])
            kernels.append(seconds(executor.kernels))
    each = tuple(statistics.median(found) for found in zip(*kernels, strict=True))
    return StepTimes(statistics.median(steps), each)
