"""Timing of a step and of each of its kernels."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from netdsl.runtime.executor import Executor

_WARMUP_STEPS = 2
"""Untimed steps before the first timed one: a backend may capture the second step."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a whole step and of each kernel, in the plan's order."""

    step: float
    kernels: tuple[float, ...]


def measure_times(executor: Executor, rounds: int) -> StepTimes:
    """Returns medians over rounds; each round runs the step as usual, then kernel by kernel, on the
    current inputs."""
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
