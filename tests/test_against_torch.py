"""Formulas and their constants against numbers that PyTorch gave once, in float64: every layer,
optimizer, schedule and loss, with arguments away from their defaults too."""

from __future__ import annotations

from typing import Any

import pytest

from netdsl.layers import LAYERS
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.schedules import SCHEDULES
from netdsl.training.store.progress import Progress
from tests import torch_cases as cases
from tests.torch_values import load_stored

NO_FORMULA = {
    *("flatten", "dropout", "drop_path", "add", "mul", "sub", "concat", "identity", "constant"),
    "slice",
}
"""Layers that PyTorch has nothing to say about; dropout and drop_path draw numbers of their own."""


def stored(kind: str, case: str) -> Any:
    """What PyTorch gave for a case."""
    values = load_stored(kind)
    assert case in values, f"no stored value for `{case}`: run `python -m tests.torch_values`"
    return values[case]


def compare(found: cases.Numbers, expected: cases.Numbers) -> None:
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers, rel=1e-9, abs=1e-11), name


@pytest.mark.parametrize("case", cases.LAYER_CASES, ids=lambda case: case.text)
def test_layers_and_their_gradients(case: cases.LayerCase) -> None:
    compare(cases.layer_numbers(case), stored("layers", case.text))


@pytest.mark.parametrize("case", cases.RECIPE_CASES, ids=lambda case: case.text)
def test_updates(case: cases.RecipeCase) -> None:
    compare(cases.recipe_numbers(case), stored("recipes", case.text))


@pytest.mark.parametrize("case", cases.SCHEDULE_CASES, ids=str)
@pytest.mark.parametrize("steps", [1, 5])
def test_schedules(case: cases.ScheduleCase, steps: int) -> None:
    found = cases.schedule_numbers(case, steps)
    assert found == pytest.approx(stored("schedules", str(case)), rel=1e-9, abs=1e-12)


def test_every_entry_of_the_tables_is_compared() -> None:
    """With each of its arguments away from the default at least once."""
    recipes = " ".join(case.text for case in cases.RECIPE_CASES)
    for name, optimizer in OPTIMIZERS.items():
        full = [case.text for case in cases.RECIPE_CASES if f"= {name}(" in case.text]
        for param in optimizer.signature.params:
            assert any(f"{param.name}=" in text for text in full) or param.name == "no_decay", name
    for name, loss in LOSSES.items():
        assert f"= {name}" in recipes
        full = [case.text for case in cases.RECIPE_CASES if f"= {name}(" in case.text]
        assert all(any(f"{p.name}=" in text for text in full) for p in loss.signature.params), name
    for name, schedule in SCHEDULES.items():
        given = {k for case in cases.SCHEDULE_CASES if case.name == name for k in case.given}
        assert given | {"warmup"} == {p.name for p in schedule.signature.params} | {"warmup"}
    assert sum("warmup" in case.given for case in cases.SCHEDULE_CASES) >= 3
    named = {case.text.partition("(")[0] for case in cases.LAYER_CASES}
    assert named | NO_FORMULA == set(LAYERS)


def test_the_average_of_weights_begins_fast() -> None:
    """How far it goes towards them after 0, 1, 2, 9, 90 and 10,000 updates, with a decay of 0.99;
    TensorFlow's ExponentialMovingAverage has decays of min(0.99, (1 + n) / (10 + n))."""
    expected = (1.0, 1 - 1 / 10, 1 - 2 / 11, 1 - 9 / 18, 1 - 90 / 99, 1 - 0.99)
    for update, rate in zip((0, 1, 2, 9, 90, 10_000), expected, strict=True):
        assert Progress(update=update).ema_rate(0.99) == pytest.approx(rate, rel=1e-12)
