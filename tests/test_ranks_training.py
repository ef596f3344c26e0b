"""Data-parallel training: any number of ranks makes the weights that one makes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.runtime.state import State
from netdsl.training.job import prepare_job
from netdsl.training.run.stepper import Stepper
from netdsl.training.store.progress import Progress
from netdsl.types import Array
from tests.thread_ranks import run_ranks

TEXT = """
net small {{
  input(8x8x1) -> conv(8, 3x3, pad=1){norm} -> relu -> maxpool(2x2)
  -> conv(12, 3x3, pad=1) -> relu{drop} -> fc(10)
}}
data {{ source = digits, batch = 32, limit = {limit} }}
train {{ optimizer = sgd(lr=0.05, momentum=0.9, weight_decay=1e-4), epochs = 40{keys} }}
"""
VARIANTS = {
    "plain": {},
    "dropout": {"drop": " -> dropout(0.3)"},
    "accumulate": {"keys": ", accumulate = 2"},
    "clip": {"keys": ", clip = 0.5"},
    "ema": {"keys": ", ema = 0.9"},
    "sync": {"norm": " -> batchnorm(sync=yes)"},
    "classes": {"keys": ", loss = cross_entropy(class_weights=[1, 2, 3, 1, 2, 3, 1, 2, 3, 1])"},
}
EXACT = {"norm": "", "drop": "", "keys": "", "limit": "none"}


def train_steps(
    text: str, communicator: Communicator, updates: int, device: str = "cpu"
) -> Stepper:
    """The stepper of a rank after so many updates."""
    program = build_program(parse(text))
    job = prepare_job(program, None, communicator=communicator)
    backend = open_backend(device).with_communicator(communicator)
    state = State(backend)
    state.initialise(job.step_graph.states, job.recipe.seed)
    stepper = Stepper(job, state, Progress())
    left = updates
    while left:
        groups = stepper.batch_groups()
        for group in islice(groups, left):
            stepper.update(group)
            left -= 1
        groups.close()
        if left:
            stepper.finish_epoch({"epoch": stepper.progress.epoch + 1, "train_loss": 1.0})
    stepper.synchronize()
    return stepper


def find_states(text: str, ranks: int, updates: int, device: str = "cpu") -> list[dict[str, Array]]:
    """The states of each rank after so many updates."""
    if ranks == 1:
        return [train_steps(text, ONE_RANK, updates, device).state.snapshot()]
    work = lambda c: train_steps(text, c, updates, device).state.snapshot()
    return run_ranks(ranks, work)


def largest_difference(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    return max(float(np.abs(a[k].astype(np.float64) - b[k]).max()) for k in a)


@pytest.mark.parametrize("name", VARIANTS)
def test_ranks_make_the_weights_of_one(name: str) -> None:
    text = TEXT.format(**EXACT | VARIANTS[name])
    for updates, most in ((10, 1e-5), (60, 1e-4)):
        (alone,) = find_states(text, 1, updates)
        for ranks in (2, 4):
            found = find_states(text, ranks, updates)
            assert largest_difference(alone, found[0]) <= most
            for other in found[1:]:
                assert all(np.array_equal(found[0][k], other[k]) for k in other)
