"""Sweeps: the grid and the names of its runs, its statistics, and the command from end to end."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.cli import sweep_command
from netdsl.errors import NetError
from netdsl.language.override import parse_setting
from netdsl.training.run.sweep_grid import Grid, make_grid, name_runs, parse_axis, parse_seeds
from netdsl.training.run.sweep_table import estimate, estimate_difference
from netdsl.values import format_value

NET = """
net small(width=2) { input(8x8x1); conv(width, 3x3, stride=2) -> relu -> fc(10) }
data { source = digits, batch = 256 }
train { optimizer = adam(lr=0.01), epochs = 1 }
train other { optimizer = sgd(lr=0.01) }
"""
STAGED = 'train last { after = other, epochs = 2, freeze = "conv1.*" }\n'
REFERENCE = ("--device", "reference")

# ---- the grid -----------------------------------------------------------------------------------

names = st.from_regex(r"[a-z_][a-zA-Z0-9_]{0,30}", fullmatch=True)
keys = st.builds(".".join, st.lists(names, min_size=1, max_size=3)).filter(
    lambda key: key != "train.seed"
)
atoms = st.one_of(
    st.integers(-1000, 1000),
    st.floats(0, 1e6).map(lambda x: float(f"{x:.6g}")),
    st.booleans(),
    st.text(st.sampled_from('aB.*,= ~é/\\"'), max_size=60),
)
texts = st.recursive(atoms, lambda x: st.lists(x, max_size=3).map(tuple), max_leaves=4).map(
    format_value
)
axes = st.lists(
    st.tuples(keys, st.lists(texts, min_size=1, max_size=3, unique=True)),
    max_size=3,
    unique_by=lambda axis: axis[0],
)
recipes = st.one_of(st.just([None]), st.lists(names, min_size=1, max_size=3, unique=True))


def grid_of(recipes: list[str | None], axes: list[tuple[str, list[str]]], seeds: str) -> Grid:
    return make_grid(recipes, [f"{key}=[{', '.join(values)}]" for key, values in axes], seeds)


def name_all(grid: Grid) -> list[str]:
    return name_runs([*product(grid.combinations, grid.seeds)])


@settings(max_examples=25)
@given(recipes, axes)
def test_a_grid_is_every_combination_in_order(
    recipes: list[str | None], axes: list[tuple[str, list[str]]]
) -> None:
    grid = grid_of(recipes, axes, "3")
    wanted = [*product(recipes, *(values for _, values in axes))]
    assert [(c.recipe, *c.values) for c in grid.combinations] == wanted
    assert {tuple(x.key for x in c.settings) for c in grid.combinations} == {
        tuple(key for key, _ in axes)
    }
    assert grid.size == 3 * len(wanted)
    assert len({*grid.labels, "recipe", "seed"}) == len(axes) + 2 - sum(
        key in ("recipe", "seed") for key, _ in axes
    )


@settings(max_examples=25)
@given(recipes, axes)
def test_runs_have_names_of_their_own_that_stay(
    recipes: list[str | None], axes: list[tuple[str, list[str]]]
) -> None:
    few, many = grid_of(recipes, axes, "2"), grid_of(recipes, axes, "4")
    found = name_all(many)
    assert len({name.lower() for name in found}) == len(found)
    assert {*name_all(few)} <= {*found}
    assert all(re.fullmatch(r"[\w+-][\w.+=,~-]{0,200}", name, re.ASCII) for name in found)


@pytest.mark.parametrize(
    ("vary", "name"),
    [
        ([], "a,seed=1"),
        (["train.optimizer.lr=[0.1]"], "a,lr=0.1,seed=1"),
        (
            ["train.a.epochs=[5]", "train.b.epochs=[6]"],
            "a,train.a.epochs=5,train.b.epochs=6,seed=1",
        ),
        (['train.freeze=[["s1.*", "s2.*"]]'], "a,freeze=s1._s2,seed=1"),
        (["train.optimizer=[sgd(lr=1e-3)]"], "a,optimizer=sgd_lr_1e-3,seed=1"),
    ],
)
def test_a_name_can_be_read(vary: list[str], name: str) -> None:
    assert name_all(make_grid(["a"], vary, "1")) == [name]


def test_values_that_look_alike_have_different_names() -> None:
    found = name_all(make_grid([None], ['x=["a b", "a/b", "A_B", "c"]'], "1"))
    assert [name.partition("~")[0] for name in found] == [
        "x=a_b,seed=1",
        "x=a_b,seed=1",
        "x=A_B,seed=1",
        "x=c,seed=1",
    ]
    assert len(set(found)) == 4
    assert found[3] == "x=c,seed=1"


@given(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9, unique=True))
def test_seeds_are_a_number_or_a_list(seeds: list[int]) -> None:
    assert parse_seeds(", ".join(map(str, seeds))) == tuple(seeds)
    assert parse_seeds(str(len(seeds))) == tuple(range(1, len(seeds) + 1))


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "1.5", "1,", "1,1", "10001", "1,3000000000", "9" * 30, "١"]
)
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(NetError, match="seed"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["lr", "=[1]", "lr=0.1", "lr=[]", "lr=[1", "lr=width", "lr=[1]]"])
def test_an_axis_is_a_key_with_a_list(text: str) -> None:
    with pytest.raises(NetError):
        parse_axis(text)


@pytest.mark.parametrize(
    ("recipes", "vary", "seeds", "settings", "message"),
    [
        (["a", "a"], [], None, [], "the recipe `a` is given twice"),
        (["a"], ["x=[1]", "x=[2]"], None, [], "`x` is given twice"),
        (["a"], ["x=[1, 2, 1, 1]"], None, [], "`x=1` is given 3 times"),
        (["a"], ["x=[0.1, 0.10]"], None, [], "`x=0.1` and `x=0.10` are the same value"),
        (["a"], ["x=[sgd(lr=0.1), sgd(lr=1e-1)]"], None, [], "are the same value"),
        (["a"], ["x=[1]"], None, ["x=2"], "`x` is given twice"),
        (["a"], [], "2", ["train.seed=2"], "`train.seed` is given twice"),
        (["a"], ["train.seed=[1, 2]"], None, [], "`train.seed` cannot be varied"),
        (["a", "b"], ["x=[1, 2]"], "2501", [], "10,004 runs"),
    ],
)
def test_what_makes_no_grid(
    recipes: list[str | None],
    vary: list[str],
    seeds: str | None,
    settings: list[str],
    message: str,
) -> None:
    with pytest.raises(NetError, match=message):
        make_grid(recipes, vary, seeds, [*map(parse_setting, settings)])


# ---- statistics ---------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers, max_size=8))
def test_mean_and_deviation_are_numpy_s(values: list[float]) -> None:
    found = estimate(values)
    if not values:
        assert found is None
        return
    assert found is not None
    assert found.count == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    if len(values) == 1:
        assert (found.deviation, found.error) == (None, None)
    else:
        deviation = np.std(values, ddof=1)
        assert found.deviation == pytest.approx(deviation, abs=1e-6)
        assert found.error == pytest.approx(deviation / math.sqrt(len(values)), abs=1e-6)


seeded = st.dictionaries(st.integers(1, 6), numbers, max_size=6)


@given(seeded, seeded)
def test_a_difference_is_that_of_the_runs_with_the_same_seed(
    row: dict[int, float], base: dict[int, float]
) -> None:
    common = sorted({*row} & {*base})
    found = estimate_difference(row, base)
    wanted = np.array([row[n] for n in common]) - np.array([base[n] for n in common])
    if not common:
        assert found is None
        return
    assert found is not None
    assert found.count == len(common)
    assert found.mean == pytest.approx(wanted.mean(), abs=1e-6)
    if len(common) > 1:
        assert found.deviation == pytest.approx(wanted.std(ddof=1), abs=1e-6)


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def sweep(netdsl: Any, tmp_path: Path) -> Any:
    """Runs `netdsl sweep small.net...`, with `--json` unless it fails."""
    (tmp_path / "small.net").write_text(NET)
    return lambda place, *args: netdsl("sweep", f"small.net{place}", *args, *REFERENCE)


def read_weights(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("best.safetensors")}


def test_a_sweep_from_end_to_end(sweep: Any, netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "small.net").write_text(
        NET.replace("train {", "train { epochs = 1 }\ntrain base {", 1)
    )
    args = (":base,other", "--vary", "width=[2, 3]", "--seeds", "2", "-o", "out", "--json")
    code, out, err = sweep(*args, "--csv", "x.csv")
    assert code == 0
    found = json.loads(out)
    assert [(row["recipe"], row["set"]["width"]) for row in found["rows"]] == [
        *product(("base", "other"), "23")
    ]
    assert len(re.findall(r"^\[\d/8\] .*; \d left", err, re.M)) == 7
    for row in found["rows"]:
        runs = [r for r in found["runs"] if (r["recipe"], r["set"]) == (row["recipe"], row["set"])]
        assert [r["seed"] for r in runs] == [1, 2]
        assert {Path(r["directory"]) for r in runs} <= {*Path("out").iterdir()}
        for metric in ("val_accuracy", "test_accuracy"):
            values = [r["metrics"][metric] for r in runs]
            first = [r["metrics"][metric] for r in found["runs"][:2]]
            figures = row["metrics"][metric]
            assert figures["mean"] == pytest.approx(np.mean(values))
            assert figures["deviation"] == pytest.approx(np.std(values, ddof=1))
            difference = np.subtract(values, first).mean()
            assert figures["difference"]["mean"] == pytest.approx(difference)
    lines = [*csv.DictReader((tmp_path / "x.csv").read_text().splitlines())]
    assert [line["run"] for line in lines] == [r["name"] for r in found["runs"]]
    assert [float(line["val_loss"]) for line in lines] == [
        r["metrics"]["val_loss"] for r in found["runs"]
    ]
    assert (tmp_path / "out" / "sweep.csv").read_text() == (tmp_path / "x.csv").read_text()
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == found
    # a run is that of `train`, and the directory that other commands take
    settings = ("--set", "width=3", "--set", "train.seed=2")
    assert netdsl("train", "small.net:other", *settings, "-o", "alone", *REFERENCE)[0] == 0
    name = "other,width=3,seed=2"
    assert read_weights(tmp_path / "alone") == read_weights(tmp_path / "out" / name)
    code, out, _ = netdsl("eval", f"out/{name}", "--json", *REFERENCE)
    assert json.loads(out)["accuracy"] == found["runs"][-1]["metrics"]["test_accuracy"]
    # once more, with a seed more: finished runs are read
    before = read_weights(tmp_path / "out")
    code, out, err = sweep(*args[:3], "--seeds", "3", *args[5:])
    assert (code, err.count("finished before")) == (0, 8)
    again = json.loads(out)["runs"]
    assert [r for r in again if r["seed"] < 3] == found["runs"]
    assert before.items() <= read_weights(tmp_path / "out").items()
    # and for people
    code, out, _ = sweep(*args[:-1], "--metric", "train_loss")
    assert code == 0
    assert re.search(r"^recipe +width +train loss +difference +epochs +seconds *$", out, re.M)
    assert re.search(r"^other +3 +\d\.\d{4} ± \d\.\d{4} +[+-]\d\.\d{4} ± \d\.\d{4} +1 ", out, re.M)
    assert re.search(r"^base( +\d\.\d{4} ± \d\.\d{4}){2}$", out, re.M)


def stop_after(steps: int) -> Any:
    """A stand-in for `defer_interrupts`: asks to stop at the step of this number, of all runs."""
    count = iter(range(1000))

    @contextmanager
    def defer() -> Iterator[Any]:
        yield lambda: next(count) >= steps

    return defer


@pytest.mark.parametrize("steps", [3, 21])  # in the first stage, in the last test
def test_an_interrupted_sweep_continues(
    sweep: Any, netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    (tmp_path / "small.net").write_text(NET + STAGED)
    args = (":last", "--vary", "width=[2, 3]", "--json")
    code, out, err = sweep(*args, "-o", "whole")
    assert (code, "`train." in err) == (0, False)
    with monkeypatch.context() as patch:
        patch.setattr(sweep_command, "defer_interrupts", stop_after(steps))
        code, _, err = sweep(*args)
    assert code == 130
    command = re.findall(r"^continue it with `(.*)`$", err, re.M)
    code, again, _ = netdsl(*shlex.split(*command)[1:])
    assert code == 0
    assert read_weights(tmp_path / "sweeps" / "small-1") == read_weights(tmp_path / "whole")
    for a, b in zip(json.loads(out)["rows"], json.loads(again)["rows"], strict=True):
        assert a == b
    assert [r["epochs"] for r in json.loads(again)["runs"]] == [3, 3]


def test_a_run_that_diverges_is_a_row(sweep: Any, tmp_path: Path) -> None:
    args = ("", "--vary", "train.optimizer.lr=[1e30, 0.01]", "--seeds", "2", "-o", "out")
    code, out, err = sweep(*args)
    assert code == 1
    assert err.count(": failed: ") == 2
    assert re.search(r"^1e30 +0 of 2 +- +- +- +- +-$", out, re.M)
    assert re.search(r"^0.01 +2 of 2 +\d+\.\d\d% ± ", out, re.M)
    code, out, _ = sweep(*args, "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    assert [(row["finished"], row["failed"]) for row in found["rows"]] == [(0, 2), (2, 0)]
    assert [r["status"] for r in found["runs"]] == ["failed", "failed", "finished", "finished"]
    assert "step" in found["runs"][0]["reason"]


@pytest.mark.parametrize(("bound", "code"), [(0, 0), (2, 1)])
def test_the_expectations_of_every_run_are_judged(
    sweep: Any, tmp_path: Path, bound: int, code: int
) -> None:
    text = NET.replace("epochs = 1", f"epochs = 1, expect val_accuracy >= {bound}", 1)
    (tmp_path / "small.net").write_text(text)
    found, _, err = sweep("", "--seeds", "2")
    assert found == code
    assert ("holds in 0 of 2 runs" in err) is (code == 1)


def test_a_metric_is_measured_where_it_is_asked_for(sweep: Any, tmp_path: Path) -> None:
    """It is no part of the recipe: a finished run is not trained again for another metric."""
    names = ("val_roc_auc", 'test_recall("3")', 'val_f1("8")')
    args = ("-o", "out", "--csv", "x.csv")
    code, out, err = sweep("", *args, *(x for name in names for x in ("--metric", name)))
    assert (code, "was not measured" in out) == (0, False)
    assert err.endswith("sweep.json and sweep.csv in out; a line for each run in x.csv\n")
    (row,) = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [row["metrics"][name]["count"] for name in names] == [1, 1, 1]
    assert "expect" not in (tmp_path / "out" / "seed=1" / "recipe.net").read_text()
    code, out, err = sweep("", *args, "--metric", "test_roc_auc")
    assert "`test_roc_auc` was not measured when these runs were trained" in out
    assert (code, err.count("finished before")) == (0, 1)


def test_a_table_has_the_metrics_that_choose_or_are_chosen(sweep: Any, tmp_path: Path) -> None:
    text = NET.replace("epochs = 1", 'epochs = 1, best = max(val_recall("3"))', 1)
    (tmp_path / "small.net").write_text(text)
    code, _, err = sweep(":other", "-o", "out")
    assert code == 0
    figures = r"val recall of 3 \d+\.\d\d%, test recall of 3 \d+\.\d\d%"
    assert re.search(rf"seed=1: {figures}, [\d.]+ s$", err, re.M)
    (row,) = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert row["metrics"]['test_recall("3")']["count"] == 1
    args = (":other", "-o", "out", "--metric", "test_f1", "--metric", "val_loss", "--json")
    (row,) = json.loads(sweep(*args)[1])["rows"]
    assert [*row["metrics"]] == ["test_f1", "val_loss"]
    assert all(m["count"] == 1 for m in row["metrics"].values())


REFUSED = [
    (("", "--vary", "train.epoch=[1, 2]"), "epoch"),
    (("", "--vary", "train.epochs=[1, 0]"), "must be an integer from 1 to"),
    (("", "--vary", "width=[1, none]"), "width=none"),
    (("", "--vary", "data.batch=[256, 2000]"), "larger than the"),
    (
        ("", "--vary", "width=[1, 2]", "--vary", "train.other.epochs=[1, 2]"),
        "help: `train.other.epochs` changes nothing in this recipe",
    ),
    (("", "--vary", 'train.init=[none, weights("x")]'), "there is no checkpoint x"),
    ((":none",), "no `train` section called `none`"),
    ((":other,",), "no `train` section called ``"),
    (("", "--metric", "accuracy"), "there is no metric `accuracy`"),
    (("", "--metric", 'test_recall("three")'), "the data set has no class `three`"),
    (("", "--metric", "val_f1 +"), "--metric val_f1 +"),
    (("", "--csv", "none/x.csv"), "there is no folder"),
    (("", "--csv", "small.net"), "is a file that this command reads"),
]


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_is_wrong_is_said_before_anything_runs(
    sweep: Any, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    code, out, err = sweep(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["small.net"]


def test_a_run_of_another_recipe_is_refused(sweep: Any, tmp_path: Path) -> None:
    assert sweep("", "-o", "out")[0] == 0
    before = read_weights(tmp_path)
    code, _, err = sweep("", "-o", "out", "--set", "train.epochs=2")
    assert code == 2
    assert "error: out/seed=1 contains a run of another recipe: `train.epochs` is 1 there" in err
    code, _, err = sweep("", "-o", "out/seed=1")
    assert code == 2
    assert "the directory of a run" in err
    (tmp_path / "out" / "seed=1" / "last.safetensors").unlink()
    code, _, err = sweep("", "-o", "out")
    assert code == 1
    assert "last.safetensors is missing" in err
    assert read_weights(tmp_path) == before
    # comments and layout are no part of a recipe
    (tmp_path / "small.net").write_text(NET.replace("train {", "# all\ntrain {\n", 1))
    assert sweep("", "-o", "two")[0] == 0
    (tmp_path / "small.net").write_text(NET)
    code, _, err = sweep("", "-o", "two")
    assert (code, err.count("finished before")) == (0, 1)


def test_other_data_are_not_compared(sweep: Any, tmp_path: Path) -> None:
    rng, text = np.random.default_rng(1), NET.replace("source = digits", 'source = arrays("x.npz")')
    for _ in range(2):
        images = rng.integers(0, 256, (600, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "x.npz", images=images, labels=np.arange(600) % 10)
        (tmp_path / "small.net").write_text(text)
        code, out, err = sweep("", "-o", "out", "--json")
        if code == 0:
            assert "test_accuracy" not in json.loads(out)["runs"][0]["metrics"]
            _, table, again = sweep("", "-o", "out")
            assert "finished before" in again
            assert "was not measured" not in table  # nobody asked for a test accuracy
    assert code == 1
    assert "the data set is not the one" in err


def test_keys_that_several_stages_have_are_noted(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "small.net").write_text(NET + STAGED)
    args = (":last", "--vary", "train.epochs=[1]", "--vary", "train.last.clip=[1]", "-o", "out")
    code, _, err = sweep(*args)
    assert code == 0
    noted = "`train.epochs` is set in the stages other and last; `train.last.epochs` only in last"
    assert [line for line in err.splitlines() if "stages" in line] == [noted]
    recipe = (tmp_path / "out" / "last,epochs=1,clip=1,seed=1" / "recipe.net").read_text()
    assert recipe.count("epochs = 1") == 2
    assert (recipe.count("clip = 1"), recipe.count("clip = none")) == (1, 1)
