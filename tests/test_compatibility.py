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
from netdsl.language.program import load_program
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import FORMAT
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "compatibility"
NET = FOLDER / "tiny.net"
RUNS = sorted(p for p in FOLDER.iterdir() if p.is_dir())
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


def fields(value: Any, path: str = "") -> Iterator[str]:
    """The paths of a JSON value's fields; of a list the first entry's, of a table by name `*`."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield f"{path}.{key}".lstrip(".")
            yield from fields(entry, f"{path}.{key}")
    elif isinstance(value, list) and value:
        yield from fields(value[0], f"{path}[]")


RUN = str(RUNS[0])
COMMANDS: dict[str, tuple[str, ...]] = {
    "check": ("check", str(NET)),
    "compile": ("compile", str(NET)),
    "diff": ("diff", str(NET), f"{ROOT / 'models' / 'digits.net'}"),
    "dry_run": ("train", str(NET), "--dry-run"),
    "eval": ("eval", RUN, "--device", "reference"),
    "explain": ("explain", str(NET)),
    "gradcheck": ("gradcheck", str(NET)),
    "overfit": ("train", str(NET), "--overfit", "--device", "reference"),
    "summary": ("summary", str(NET)),
    "test": ("test", str(NET)),
    "time": ("time", str(NET), "--device", "reference", "--rounds", "1"),
    "train": ("train", str(NET), "--device", "reference", "--out", "run"),
    "zoo": ("summary", str(ROOT / "models" / "lecture")),
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
