"""What docs/compatibility.md promises: files that earlier versions wrote are read, and the fields
of `--json` stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netdsl.errors import NetError
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import load_program
from netdsl.language.upgrade import FORMAT, upgrade
from netdsl.training.store import checkpoint
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "compatibility"
NET = FOLDER / "tiny.net"
GELU = FOLDER / "format-1-gelu"
"""A run of format 1 whose net has `gelu`, which was the tanh form."""
RUNS = sorted(p for p in FOLDER.iterdir() if p.is_dir() and p != GELU)
"""A run directory of each format that there has been, trained from tiny.net."""


def last_line(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]))


def test_there_is_a_run_of_every_format() -> None:
    assert [p.name for p in RUNS] == [*(f"format-{i + 1}" for i in range(FORMAT)), "unnumbered"]


@pytest.mark.parametrize("run", RUNS, ids=lambda p: p.name)
def test_a_run_of_an_earlier_version_evaluates_as_it_did(run: Path, netdsl: Any) -> None:
    code, out, _ = netdsl("eval", str(run), "--device", "reference", "--json")
    found, before = json.loads(out), last_line(run)
    assert code == 0
    assert found["accuracy"] == before["test_accuracy"]
    assert found["loss"] == pytest.approx(before["test_loss"], rel=1e-5)


@pytest.mark.parametrize("run", RUNS, ids=lambda p: p.name)
def test_a_run_of_an_earlier_version_goes_on(run: Path, netdsl: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    settings = ("--set", "train.epochs=4", "--set", "train.schedule=constant")
    code, _, err = netdsl("train", "--resume", str(out), "--device", "reference", *settings)
    assert code == 0, err
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    losses = [x["train_loss"] for x in lines if "epoch" in x]
    assert losses[3] < losses[2]
    assert checkpoint.load(out / "last.safetensors").progress["epoch"] == 4


@pytest.mark.parametrize("run", RUNS, ids=lambda p: p.name)
def test_weights_of_an_earlier_version_fit_the_net_of_its_text(run: Path) -> None:
    """The names and shapes of states are what weights are found by."""
    network = elaborate(load_program(str(NET)), "tiny", Settings())
    best = checkpoint.load(run / "best.safetensors")
    wanted = {n.name: n.type.shape for n in network.graph.states}
    assert {name: v.shape for name, v in best.states.items()} == wanted


def rewritten(path: Path, tmp_path: Path, **content: Any) -> Path:
    """A copy of a checkpoint whose content says something else, sealed anew."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    about = json.loads(json.loads(header["__metadata__"]["netdsl"])["about"]) | content
    text = json.dumps(about)
    states = checkpoint.load(path).states
    seal = {"about": text, "sha256": checkpoint._checksum(text, states)}
    header["__metadata__"]["netdsl"] = json.dumps(seal)
    encoded = json.dumps(header).encode()
    copy = tmp_path / path.name
    copy.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[start:])
    return copy


def test_a_checkpoint_of_a_later_format_is_refused(netdsl: Any, tmp_path: Path) -> None:
    best = RUNS[0] / "best.safetensors"
    later = rewritten(best, tmp_path, format=FORMAT + 1, version="9.0", net={"not": "a text"})
    code, _, err = netdsl("eval", str(later))
    assert code == 2
    assert f"has checkpoint format {FORMAT + 1}; this netdsl reads formats up to {FORMAT}" in err
    assert "9.0 wrote it" in err


@pytest.mark.parametrize("number", [0, -1, "1", None, 1.5, True])
def test_a_format_that_is_no_number_of_one_is_damage(number: Any, tmp_path: Path) -> None:
    path = rewritten(RUNS[0] / "best.safetensors", tmp_path, format=number)
    with pytest.raises(NetError, match="damaged"):
        checkpoint.load(path)


def test_gelu_in_a_checkpoint_of_format_1_is_the_tanh_form(netdsl: Any, tmp_path: Path) -> None:
    best = GELU / "best.safetensors"
    found = {}
    for number in (1, 2):
        path = rewritten(best, tmp_path, format=number)
        code, out, err = netdsl("eval", str(path), "--device", "reference", "--json")
        assert code == 0, err
        found[number] = json.loads(out)["loss"]
    before = last_line(GELU)["test_loss"]
    assert found[1] == pytest.approx(before, rel=1e-6)
    assert found[2] != pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("command", ["train --resume", "train"])
def test_gelu_in_a_recipe_of_format_1_is_the_tanh_form(
    command: str, netdsl: Any, tmp_path: Path
) -> None:
    """Of a run that had saved no weights yet, and as a file; what is written has format 2."""
    begun, out = tmp_path / "begun", tmp_path / "out"
    begun.mkdir()
    shutil.copy(GELU / "recipe.net", begun)
    given = (begun,) if command == "train --resume" else (begun / "recipe.net", "--out", out)
    code, _, err = netdsl(*command.split(), *map(str, given), "--device", "reference")
    assert code == 0, err
    run = out if out.exists() else begun
    assert last_line(run)["test_loss"] == pytest.approx(last_line(GELU)["test_loss"], rel=1e-5)
    text = (run / "recipe.net").read_text()
    assert "format 2" in text.splitlines()[0]
    assert text.count("gelu(tanh)") == 2
    assert checkpoint.load(run / "last.safetensors").format == 2


def test_a_run_of_format_1_goes_on_in_format_2(netdsl: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(GELU, run)
    settings = ("--set", "train.epochs=4", "--device", "reference")
    code, _, err = netdsl("train", "--resume", str(run), *settings)
    assert code == 0, err
    assert not (run / "recipe.net.edited").exists()
    last = checkpoint.load(run / "last.safetensors")
    assert last.format == 2
    assert last.net_text.count("gelu(tanh)") == 2
    assert checkpoint.load(run / "best.safetensors").net_text.count("gelu") == 2


@pytest.mark.parametrize(
    "text",
    [
        "net n { @ -> @ }",
        "net n { a: add { @ | (relu -> @) * 2 } }",
        "net n { if 1 == 2 { @ } else { for c in [1] { @ } } }",
        "net n { output x: fc(2) -> @ }",
        "net n { gelu: fc(2) -> @; add { gelu | gelu } }",
        "block b { shared gelu = fc(2); gelu }\nnet n { @ -> b }",
        "block gelu(c=1) { relu }\nnet n { gelu }",
        'net n { gelu2 -> gelu(tanh) }\ntest n { shape("gelu") == 1 }',
    ],
)
def test_a_step_gelu_of_format_1_gets_its_argument(text: str) -> None:
    """Unless a block, a label above it or a shared chain has the name; `@` marks the steps."""
    before, now = (parse(text.replace("@", step)) for step in ("gelu", "gelu(tanh)"))
    assert upgrade(before, 1) == now
    assert upgrade(before, 2) == before


def test_a_recipe_of_a_later_format_is_refused(netdsl: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.net"
    text = (RUNS[0] / "recipe.net").read_text()
    path.write_text(text.replace(", train", f", format {FORMAT + 1}, train", 1))
    code, _, err = netdsl("check", str(path))
    assert code == 2
    assert f"has format {FORMAT + 1}; this netdsl reads formats up to {FORMAT}" in err


def fields(value: Any, path: str = "") -> Iterator[str]:
    """The paths of a JSON value's fields; of a list the first entry's, of a table by name `*`."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield f"{path}.{key}".lstrip(".")
            yield from fields(entry, f"{path}.{key}")
    elif isinstance(value, list) and value:
        yield from fields(value[0], f"{path}[]")


RUN, LECTURE = str(RUNS[0]), ROOT / "models" / "lecture"
COMMANDS: dict[str, tuple[str, ...]] = {
    "check": ("check", str(NET)),
    "compile": ("compile", str(NET)),
    "diff": ("diff", str(NET), f"{ROOT / 'models' / 'digits.net'}"),
    "dry_run": ("train", str(NET), "--dry-run"),
    "eval": ("eval", RUN, "--device", "reference"),
    "explain": ("explain", str(NET)),
    "gradcheck": ("gradcheck", str(NET)),
    "overfit": ("train", str(NET), "--overfit", "--device", "reference"),
    "run": (
        *("run", f"{LECTURE / 'pooling.net'}:slide", "--input", str(LECTURE / "table.csv")),
        *("--device", "reference"),
    ),
    "summary": ("summary", str(NET)),
    "test": ("test", str(NET)),
    "time": ("time", str(NET), "--device", "reference", "--rounds", "1"),
    "train": ("train", str(NET), "--device", "reference", "--out", "run"),
    "zoo": ("summary", str(LECTURE)),
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_fields_of_json_stay(
    name: str, netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New fields may be added to tests/compatibility/json_fields.json; none may go."""
    monkeypatch.chdir(tmp_path)
    code, out, err = netdsl(*COMMANDS[name], "--json")
    assert code in (0, 1), err
    known = json.loads((FOLDER / "json_fields.json").read_text())[name]
    assert set(known) <= set(fields(json.loads(out)))
