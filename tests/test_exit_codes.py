"""What a command ends with where something is wrong: 1 where one of several expectations fails, 2
for bad input; and what it prints then."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netdsl.cli.app import print_json
from netdsl.file_io import split_file_and_name
from netdsl.ops import OPS
from tests.conftest import ROOT
from tests.test_visualization import kept

SMALL = """
net n { input(8x8x1); fc(10) }
data { source = digits, batch = 256 }
train { epochs = 1, optimizer = sgd(lr=0.01)%s }
"""


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        ("", 0),
        (", expect train_loss < 100", 0),
        (", expect train_loss < 100, expect val_loss < 100", 0),
        (", expect train_loss < 0", 1),
        (", expect train_loss < 100, expect train_loss < 0", 1),
        (", expect train_loss < 0, expect train_loss < 100", 1),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_train_ends_with_1_where_one_expectation_fails(
    netdsl: Any, tmp_path: Path, expected: str, code: int, as_json: bool
) -> None:
    (tmp_path / "a.net").write_text(SMALL % expected)
    found, out, err = netdsl("train", "a.net", "--device", "reference", *["--json"] * as_json)
    assert found == code
    assert err.count("FAILED") == code
    assert err.count("expected ") == expected.count("expect ")
    if as_json:
        answers = [x["ok"] for x in json.loads(out)["expectations"]]
        assert answers.count(False) == code


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("test n { params == 650 }", 0),
        ("test n { params == 651 }", 1),
        ("test n { params == 650, params == 651 }", 1),
        ("test n { params == 651, params == 650 }", 1),
        ("test n { params == 651 }\ntest n { params == 650 }", 1),
        ("test n { parms == 650 }", 2),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_test_ends_with_1_where_one_expectation_fails(
    netdsl: Any, tmp_path: Path, tests: str, code: int, as_json: bool
) -> None:
    (tmp_path / "a.net").write_text(f"net n {{ input(8x8x1); fc(10) }}\n{tests}")
    assert netdsl("test", "a.net", *["--json"] * as_json)[0] == code


def test_gradcheck_ends_with_1_where_one_layer_fails(
    netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.net").write_text("net n { input(4); fc(3) -> tanh -> fc(2) }")
    assert netdsl("gradcheck", "a.net")[0] == 0
    wrong = replace(OPS["tanh"], vjp=(lambda b, g, y, x: b.mul(g, b.const(0.5)),))
    monkeypatch.setitem(OPS, "tanh", wrong)
    code, out, _ = netdsl("gradcheck", "a.net")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == [
        "ok",
        "FAIL",
        "ok",
        "FAIL",
    ]
    code, out, _ = netdsl("gradcheck", "a.net", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_overfit_ends_with_1_where_nothing_is_learnt(netdsl: Any, tmp_path: Path) -> None:
    text = SMALL.replace("lr=0.01", "lr=0").replace("256", "4") % ""
    (tmp_path / "a.net").write_text(text)
    code, out, _ = netdsl("train", "a.net", "--overfit", "--device", "reference")
    assert code == 1
    assert "a working net can memorise one batch" in out
    code, out, _ = netdsl("train", "a.net", "--overfit", "--device", "reference", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


@pytest.mark.parametrize(("text", "code"), [("net n { input(4); fc(2) }", 0), ("net n { fc }", 2)])
def test_check_ends_with_2_with_and_without_json(
    netdsl: Any, tmp_path: Path, text: str, code: int
) -> None:
    (tmp_path / "a.net").write_text(text)
    assert netdsl("check", "a.net")[0] == code
    found, out, _ = netdsl("check", "a.net", "--json")
    assert (found, json.loads(out)["ok"]) == (code, code == 0)


def test_a_colon_in_a_name_that_is_there_parts_nothing(
    netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").write_text("net n { input(4); fc(2) }\nnet m { input(4); fc(3) }")
    (tmp_path / "c.net").write_text("net n { input(4); fc(2) }")
    assert split_file_and_name("a:b") == ("a:b", None)
    assert split_file_and_name("a:b:m") == ("a:b", "m")
    assert split_file_and_name("c.net:n") == ("c.net", "n")
    assert split_file_and_name("c.net:") == ("c.net", "")
    assert split_file_and_name("d:e/c.net") == ("d:e/c.net", None)
    code, out, _ = netdsl("summary", "a:b", "--json")
    assert (code, json.loads(out)["params"]) == (0, 10)
    code, out, _ = netdsl("summary", "a:b:m", "--json")
    assert (code, json.loads(out)["params"]) == (0, 15)


def test_json_holds_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (float("-inf"),)})
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5], "c": [null]}\n'


@pytest.mark.parametrize("channel", ["-1", "2", "1.0", "x", "+1", ""])
def test_a_channel_is_one_that_is_there(netdsl: Any, tmp_path: Path, channel: str) -> None:
    weights = str(kept(tmp_path))
    code, _, err = netdsl("visualize", weights, f"c.conv1:{channel}", "-o", "x.png", "--steps", "1")
    assert code == 2
    assert "channel" in err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--emit", "plan", "--json"), "give only one of them"),
        (("--emit", "plans"), "there is no `--emit plans`"),
        (("--lower", "winograd"), "there is no `--lower winograd`"),
        (("--lower", ""), "there is no `--lower "),
    ],
)
def test_compile_refuses_what_it_does_not_know(
    netdsl: Any, tmp_path: Path, args: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "a.net").write_text("net n { input(4); fc(2) }")
    code, out, err = netdsl("compile", "a.net", *args)
    assert (code, out) == (2, "")
    assert complaint in err


@pytest.mark.parametrize("full", [True, False])
def test_shares_of_the_time_add_up_with_what_is_not_shown(netdsl: Any, full: bool) -> None:
    net = f"{ROOT / 'models' / 'digits.net'}"
    args = ("--train", "--device", "reference", "--rounds", "1", *["--full"] * full)
    code, out, _ = netdsl("time", net, *args)
    assert code == 0
    tables = re.split(r"^(?:kernel|layer) ", out, flags=re.MULTILINE)[1:]
    assert len(tables) == 2
    assert ("more with --full" in tables[0]) is not full
    for table in tables:
        *rows, total = re.findall(r" (\d+\.\d)%", table)
        assert total == "100.0"
        assert sum(map(float, rows)) == pytest.approx(100, abs=0.06 * len(rows))
