"""The nets of models/: all check, their tests hold, their paths are what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from netdsl.backends import open_backend
from netdsl.insight.gradcheck import gradcheck
from netdsl.insight.net_tests import run_test
from netdsl.insight.program_check import check_program
from netdsl.ir.printer import to_text
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.training.job import prepare_job
from netdsl.training.recipe.expectations import judge_expectations
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.graphs import training_graph
from tests.conftest import ROOT
from tests.golden import assert_matches_golden

MODELS = sorted((ROOT / "models").rglob("*.net"))


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_a_model_checks_and_its_tests_hold(path: object) -> None:
    p = load_program(str(path))
    assert check_program(p)[1] == []
    assert p.tests or not p.nets
    for section in p.tests:
        result = run_test(p, section)
        assert result.ok, result


RECIPES = [
    (path, section.name) for path in MODELS for section in load_program(str(path)).sections("train")
]


@pytest.mark.parametrize(("path", "name"), RECIPES, ids=lambda x: getattr(x, "stem", str(x)))
def test_a_recipe_is_ready_to_run(
    path: Path, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path))
    job = prepare_job(load_program(str(path)), name, allow_missing=True)
    assert job.steps_per_epoch > 0 or job.missing_data
    again = resolve_recipe(build_program(parse(job.net_text)))
    assert again.data == job.recipe.data
    assert (again.optimizer, again.schedule) == (job.recipe.optimizer, job.recipe.schedule)


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_a_small_recipe_meets_its_expectations(path: Path, data_dir: Path, tmp_path: Path) -> None:
    p = load_program(str(path))
    name = next((s.name for s in p.sections("train") if s.name in (None, "small")), None)
    missing = prepare_job(p, name, str(data_dir), allow_missing=True).missing_data
    if missing:
        pytest.skip(missing)
    trainer = Trainer(p, name, open_backend("auto"), str(data_dir))
    result = trainer.run(tmp_path / "run", lambda p: None, lambda m: None)
    assert all(m.ok for m in judge_expectations(trainer.recipe.expectations, result.metrics))


def test_parameter_paths_of_resnet50() -> None:
    network = elaborate(load_program(str(ROOT / "models" / "resnet.net")), "resnet50")
    assert_matches_golden(
        "resnet50_paths.txt", "".join(f"{n.name}\n" for n in network.graph.states)
    )


def test_a_small_net_and_its_training_step_as_text() -> None:
    text = """
net tiny { input(6x6x1); c: conv(2, 3x3) -> batchnorm -> relu; fc(3) }
data { source = digits, batch = 4 }
train { optimizer = sgd(lr=0.1, momentum=0.9) }
"""
    p = build_program(parse(text))
    recipe = resolve_recipe(p)
    network = elaborate(p, None, recipe.settings(training=False))
    assert_matches_golden("tiny_eval.txt", to_text(network.graph))
    network = elaborate(p, None, recipe.settings(training=True))
    assert_matches_golden("tiny_train.txt", to_text(training_graph(network, recipe)))


def test_gradcheck_finds_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from netdsl.ops import OPS

    wrong = replace(OPS["tanh"], vjp=(lambda b, g, y, x: b.mul(g, b.const(1.001)),))
    monkeypatch.setitem(OPS, "tanh", wrong)
    rows = {
        r.name: r.ok for r in gradcheck(load_program(str(ROOT / "models" / "lenet.net")), "lenet5")
    }
    assert {name for name, ok in rows.items() if not ok} == {
        "c1.tanh1",
        "c3.tanh1",
        "c5.tanh1",
        "f6.tanh1",
        "the whole net",
    }


def test_large_nets_allocate_no_weight() -> None:
    import tracemalloc

    tracemalloc.start()
    elaborate(load_program(str(ROOT / "models" / "mlp.net")), "dense", Settings(batch=256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
