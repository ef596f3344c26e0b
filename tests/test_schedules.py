"""Schedules over 50 steps against their published formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from netdsl.signature import BoundCall
from netdsl.training.recipe.schedules import SCHEDULES, Moment, rate_factor
from netdsl.values import Argument

STEPS = 50


def chosen(name: str, **arguments: Any) -> BoundCall:
    record = SCHEDULES[name]
    bound = record.signature.bind([Argument(k, v) for k, v in arguments.items()], None)
    return BoundCall(name, record, bound)


def factors(name: str, steps: int = 1, **arguments: Any) -> list[float]:
    """The factor at each of 50 steps, `steps` to an epoch."""
    schedule, epochs = chosen(name, **arguments), STEPS // steps
    return [rate_factor(schedule, Moment(t / steps, epochs, steps)) for t in range(STEPS)]


FORMULAS: list[tuple[str, dict[str, Any], Callable[[int], float]]] = [
    ("constant", {}, lambda t: 1.0),
    ("constant", {"warmup": 5}, lambda t: min(1.0, (t + 1) / 5)),
    ("step", {"at": (10, 30), "gamma": 0.2}, lambda t: 0.2 ** ((t >= 10) + (t >= 30))),
    ("cosine", {}, lambda t: (1 + math.cos(math.pi * t / 50)) / 2),
    (
        "cosine",
        {"end": 0.1, "warmup": 10},
        lambda t: (t + 1) / 10 if t < 10 else 0.55 + 0.45 * math.cos(math.pi * (t - 10) / 40),
    ),
    ("inverse", {"gamma": 0.01, "power": 0.75}, lambda t: (1 + 0.01 * t) ** -0.75),
    ("poly", {"power": 2}, lambda t: (1 - t / 50) ** 2),
]


@pytest.mark.parametrize(("name", "given", "formula"), FORMULAS)
def test_follows_its_formula(
    name: str, given: dict[str, Any], formula: Callable[[int], float]
) -> None:
    assert factors(name, **given) == pytest.approx([formula(t) for t in range(STEPS)], rel=1e-12)


def test_one_cycle_rises_to_the_rate_and_falls() -> None:
    found = factors("onecycle", steps=5)
    top = found.index(max(found))
    assert found[0] == pytest.approx(0.04)
    assert found[top] == pytest.approx(1.0)
    assert top == 14
    assert found[-1] == pytest.approx(4e-6)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


def test_one_cycle_of_very_few_steps_is_a_number() -> None:
    for epochs in (1, 2, 3):
        for t in range(epochs):
            assert 0 <= rate_factor(chosen("onecycle"), Moment(t, epochs, 1)) <= 1


def test_plateau_waits_and_then_falls() -> None:
    schedule = chosen("plateau", factor=0.5, patience=2)
    found = [
        rate_factor(schedule, Moment(t, 99, 1, judged))
        for t, judged in enumerate([[], [3.0], [3.0] * 3, [3.0] * 4, [3.0] * 7, [3.0] * 4 + [2.0]])
    ]
    assert found == [1, 1, 1, 0.5, 0.25, 0.5]
