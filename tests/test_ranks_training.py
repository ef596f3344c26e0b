"""Data-parallel training: any number of ranks makes the weights that one makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.job import prepare_job
from netdsl.training.recipe.recipe import default_recipe
from netdsl.training.run.stepper import Stepper
from netdsl.training.step.compile import compile_step
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
    text: str, communicator: Communicator, updates: Sequence[int], device: str = "cpu"
) -> list[dict[str, Array]]:
    """The states of a rank after each of these numbers of updates."""
    program = build_program(parse(text))
    job = prepare_job(program, None, communicator=communicator)
    backend = open_backend(device).with_communicator(communicator)
    state = State(backend)
    state.initialise(job.step_graph.states, job.recipe.seed)
    stepper = Stepper(job, state, Progress())
    found = []
    while len(found) < len(updates):
        groups = stepper.batch_groups()
        for group in groups:
            stepper.update(group)
            if stepper.progress.update == updates[len(found)]:
                stepper.synchronize()
                found.append(state.snapshot())
            if len(found) == len(updates):
                break
        groups.close()
        stepper.finish_epoch({"epoch": stepper.progress.epoch + 1, "train_loss": 1.0})
    return found


def find_states(text: str, ranks: int, *updates: int) -> list[list[dict[str, Array]]]:
    """For each rank its states after so many updates."""
    if ranks == 1:
        return [train_steps(text, ONE_RANK, updates)]
    return run_ranks(ranks, lambda c: train_steps(text, c, updates))


def largest_difference(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    return max(float(np.abs(a[k].astype(np.float64) - b[k]).max()) for k in a)


@pytest.mark.parametrize("name", VARIANTS)
def test_ranks_make_the_weights_of_one(name: str) -> None:
    text = TEXT.format(**EXACT | VARIANTS[name])
    (alone,) = find_states(text, 1, 10, 60)
    for ranks in (2, 4):
        first, *others = find_states(text, ranks, 10, 60)
        for own, found, most in zip(alone, first, (1e-5, 1e-4), strict=True):
            assert largest_difference(own, found) <= most
        for other in others:
            for found, same in zip(first, other, strict=True):
                assert all(np.array_equal(found[k], same[k]) for k in found)


def test_sixteen_bits_round_alike_on_ranks() -> None:
    keys = {"keys": ", precision = mixed(float16)"}
    text = TEXT.format(**EXACT | keys).replace("lr=0.05", "lr=0.02")
    ((alone,),) = find_states(text, 1, 10)
    learnt = {k: v for k, v in alone.items() if k.endswith(("weight", "bias"))}
    for ranks in (2, 4):
        found = [states for (states,) in find_states(text, ranks, 10)]
        assert largest_difference(learnt, found[0]) <= 1e-3
        assert all(np.array_equal(found[0][k], other[k]) for other in found for k in other)


def test_two_runs_on_as_many_ranks_have_the_same_bits() -> None:
    text = TEXT.format(**EXACT | VARIANTS["dropout"] | VARIANTS["sync"])
    (first,), (again,) = (find_states(text, 4, 12)[0] for _ in range(2))
    assert all(np.array_equal(first[k], again[k]) for k in first)


def test_mixed_images_are_those_of_one_rank() -> None:
    text = TEXT.format(**EXACT).replace("limit = none", "augment = [mixup(0.4), cutmix(1)]")
    ((alone,),) = find_states(text, 1, 10)
    for ranks in (2, 4):
        assert largest_difference(alone, find_states(text, ranks, 10)[0][0]) <= 1e-5


NORM = """
net one { input(4x4x2) -> batchnorm -> fc(3) }
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_batch_norm_of_each_rank_is_that_of_numpy(ranks: int) -> None:
    """One update by plain gradient descent, whose only weights that move are those behind it."""
    rng = np.random.default_rng(5)
    images = rng.normal(3, 2, (ranks, 6, 4, 4, 2)).astype(np.float32)
    labels = rng.integers(0, 3, (ranks, 6)).astype(np.int32)

    def step(communicator: Communicator) -> dict[str, Array]:
        settings = Settings(batch=6, training=True, ranks=ranks)
        network = elaborate(build_program(parse(NORM)), "one", settings)
        graph = compile_step(network, default_recipe("one"))
        backend = open_backend("cpu").with_communicator(communicator)
        state = State(backend)
        state.initialise(graph.states, seed=1)
        given = {
            "input": images[communicator.rank],
            "labels": labels[communicator.rank],
            "weights": np.ones(6, np.float32),
            "lr": np.float32(0.5),
            "signals": np.zeros(2, np.float32),
        }
        before = state.snapshot()
        Executor(graph, backend, state).run(given)
        return before | {f"new {k}": v for k, v in state.snapshot().items()}

    found = run_ranks(ranks, step)[0]
    means = images.mean(axis=(1, 2, 3), dtype=np.float64)
    count = images[0, ..., 0].size
    variances = images.var(axis=(1, 2, 3), dtype=np.float64)
    running = 0.1 * means.mean(axis=0)
    np.testing.assert_allclose(found["new batchnorm1.running_mean"], running, rtol=1e-5)
    unbiased = 0.9 + 0.1 * (variances * count / (count - 1)).mean(axis=0)
    np.testing.assert_allclose(found["new batchnorm1.running_var"], unbiased, rtol=1e-5)
    weight, bias = found["fc1.weight"].astype(np.float64), found["fc1.bias"]
    gradient = np.zeros_like(weight)
    for x, y, m, v in zip(images, labels, means, variances, strict=True):
        rows = ((x - m) / np.sqrt(v + 1e-5)).reshape(6, -1)
        scores = np.exp(rows @ weight.T + bias)
        shares = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[y]
        gradient += shares.T @ rows / 6 / ranks
    moved = (found["fc1.weight"] - found["new fc1.weight"]) / 0.5
    np.testing.assert_allclose(moved, gradient, atol=2e-5)
