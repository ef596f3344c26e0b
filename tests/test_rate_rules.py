"""Rules by which the learning rate grows with the batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.cli.display import show_dry_run
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.signature import BoundCall, CallOf
from netdsl.training.job import prepare_job
from netdsl.training.recipe.rate_rules import MAX_BATCH, RATE_RULES, full_scale, rate_scale
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.recipe.schedules import Moment
from netdsl.training.run.dry_run import dry_run
from netdsl.training.run.trainer import Trainer
from netdsl.training.store import checkpoint
from netdsl.training.store.progress import Progress
from netdsl.values import Argument, Call

NET = "net small { input(8x8x1); conv(4, 3x3, stride=2) -> relu -> fc(10) }\n"
DATA = "data { source = digits, batch = 64 }\n"
FORMULAS = {"linear": lambda ratio: ratio, "sqrt": math.sqrt}


def rule(name: str, batch: int, warmup: float = 0.0) -> BoundCall:
    given = (Argument(None, batch), Argument("warmup", warmup))
    return CallOf("rate rule", RATE_RULES).accept(Call(name, given))


def recipe(entries: str, data: str = DATA) -> Recipe:
    return resolve_recipe(build_program(parse(f"{NET}{data}train {{ {entries} }}")))


@st.composite
def rules(draw: st.DrawFn) -> BoundCall:
    batch = draw(st.one_of(st.integers(1, 1024), st.integers(1, MAX_BATCH)))
    warmup = draw(st.one_of(st.just(0.0), st.floats(0, 20), st.floats(0, 1e30)))
    return rule(draw(st.sampled_from(sorted(RATE_RULES))), batch, warmup)


IMAGES = st.one_of(st.integers(1, 65536), st.integers(1, 2**40))


def test_every_rule_has_a_formula() -> None:
    assert {*FORMULAS} == {*RATE_RULES}


@given(rules(), IMAGES, st.integers(1, 5005), st.integers(0, 10**7))
def test_a_rule_follows_its_formula(
    chosen: BoundCall, images: int, steps: int, update: int
) -> None:
    """From the rate itself at the first update, by the same amount at each, to its full value."""
    full = FORMULAS[chosen.name](images / chosen.arguments["batch"])
    updates = chosen.arguments["warmup"] * steps
    found = rate_scale(chosen, images, Moment(update / steps, 90, steps))
    assert full_scale(chosen, images) == full
    if full <= 1 or update >= updates * (1 + 1e-9):
        assert found == pytest.approx(full)
    elif update <= updates * (1 - 1e-9):
        assert found == pytest.approx(1 + (full - 1) * update / updates)
    assert min(1, full) <= found <= max(1, full)


@given(rules(), IMAGES, st.integers(1, 500))
def test_the_rate_never_falls_and_never_leaps(chosen: BoundCall, images: int, steps: int) -> None:
    assume(0 < chosen.arguments["warmup"] < 20 and full_scale(chosen, images) > 1)
    updates = int(chosen.arguments["warmup"] * steps) + 2
    found = [rate_scale(chosen, images, Moment(i / steps, 90, steps)) for i in range(updates)]
    assert found == sorted(found)
    assert found[0] == 1
    assert found[-1] == full_scale(chosen, images)


def test_without_a_rule_nothing_changes() -> None:
    assert rate_scale(None, 4096, Moment(0, 9, 10)) == 1


def test_the_rate_of_goyal() -> None:
    """0.1 for 256 images, 3.2 for 8,192 after five epochs, then divided by 10 after 30."""
    asked = recipe(
        "optimizer = sgd(lr=0.1), schedule = step(at=[30, 60, 80]), epochs = 90, accumulate = 128, "
        "lr_rule = linear(256, warmup=5)"
    )
    assert asked.images_per_update == 8192
    rates = [
        Progress(epoch=e, seen=s * 8192).learning_rate(asked, 156)
        for e, s in ((0, 0), (2, 78), (4, 155), (5, 0), (29, 155), (30, 0))
    ]
    step = 3.1 / (5 * 156)
    assert rates == pytest.approx([0.1, 1.65, 3.2 - step, 3.2, 3.2, 0.32])


@given(
    st.sampled_from(["constant", "cosine(warmup=2)", "step(at=[2, 4])", "onecycle", "inverse"]),
    st.sampled_from(sorted(RATE_RULES)),
    st.integers(1, 512),
    st.integers(0, 20 * 7 - 1),
)
def test_it_multiplies_the_schedule(schedule: str, name: str, batch: int, update: int) -> None:
    plain = recipe(f"schedule = {schedule}, epochs = 7")
    asked = replace(plain, lr_rule=rule(name, batch))
    at = Progress(epoch=update // 20, seen=update % 20 * 64)
    scale = FORMULAS[name](64 / batch)
    assert at.learning_rate(asked, 20) == pytest.approx(scale * at.learning_rate(plain, 20))


def train(entries: str, out: Path) -> dict[str, Any]:
    program = build_program(parse(f"{NET}{DATA}train {{ epochs = 2, {entries} }}"))
    Trainer(program, None, open_backend("reference")).run(out, lambda s: None, lambda m: None)
    states = checkpoint.load(out / "last.safetensors").states
    return {name: value.tobytes() for name, value in states.items()}


def test_a_run_learns_by_the_rule_and_records_the_rate(tmp_path: Path) -> None:
    scaled = train("optimizer = sgd(lr=0.01), lr_rule = linear(16)", tmp_path / "a")
    assert scaled == train("optimizer = sgd(lr=0.04)", tmp_path / "b")
    assert scaled != train("optimizer = sgd(lr=0.01), lr_rule = sqrt(16)", tmp_path / "c")
    train("optimizer = sgd(lr=0.01), lr_rule = linear(16, warmup=1)", tmp_path / "d")
    lines = (tmp_path / "d" / "metrics.jsonl").read_text().splitlines()
    rates = [x["lr"] for x in map(json.loads, lines) if "lr" in x]
    assert rates == pytest.approx([0.01 + 0.03 * 19 / 20, 0.04])


def test_the_dry_run_shows_the_rates(capsys: pytest.CaptureFixture[str]) -> None:
    text = "train { optimizer = sgd(lr=0.1), epochs = 7, lr_rule = linear(16, warmup=2) }"
    found = dry_run(prepare_job(build_program(parse(NET + DATA + text)), None))
    assert found.as_json()["lr"] == {
        "first": 0.1,
        "largest": pytest.approx(0.4),
        "last": pytest.approx(0.4),
        "scale": 4.0,
    }
    show_dry_run(found)
    line = "learning rate: 0.1 at first, at most 0.4, 0.4 at last (`lr_rule` multiplies it by 4)"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entries", "message", "help"),
    [
        (
            "schedule = cosine(warmup=5), lr_rule = linear(256, warmup=5)",
            "`cosine` and `linear` of `lr_rule` both warm up",
            "`lr_rule = linear(256)`",
        ),
        (
            "schedule = onecycle, lr_rule = sqrt(32, warmup=1)",
            "`onecycle` and `sqrt` of `lr_rule` both warm up",
            "`lr_rule = sqrt(32)`",
        ),
        ("lr_rule = linear", "`linear` needs `batch`", "linear"),
        ("lr_rule = cubic(3)", "unknown rate rule `cubic`", "linear, sqrt"),
        ("lr_rule = 256", "one of linear, sqrt", ""),
    ],
)
def test_what_is_refused(entries: str, message: str, help: str) -> None:
    with pytest.raises(NetError, match=message) as e:
        recipe(entries)
    assert help in (e.value.diagnostics[0].help or "")


@pytest.mark.parametrize(
    "entries",
    [
        "schedule = cosine(warmup=5), lr_rule = linear(256)",
        "schedule = onecycle, lr_rule = linear(256)",
        "schedule = cosine, lr_rule = linear(256, warmup=5)",
    ],
)
def test_one_warm_up_is_enough(entries: str) -> None:
    assert recipe(entries).lr_rule is not None
