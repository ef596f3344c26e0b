"""The tool behind docs/lecture.md: paths of figures, mistakes in rows, figures out of bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from docs.tools import lecture, lecture_runs
from docs.tools.lecture_page import format_seconds, write_page
from docs.tools.lecture_paths import read_figure
from docs.tools.lecture_records import LectureMeasurement, check_measurement, write_measurement
from docs.tools.lecture_rows import LectureRow, read_command, read_row
from docs.tools.lecture_runs import measure, run_command
from netdsl.errors import NetError

PRINTED = {
    "params": [110, 200],
    "ok": True,
    "rows": [
        {
            "recipe": "with",
            "set": {"data.limit": "10"},
            "metrics": {"test_accuracy": {"mean": 0.9}},
        },
        {
            "recipe": "with",
            "set": {"data.limit": "40"},
            "metrics": {"test_accuracy": {"mean": 0.7}},
        },
        {"recipe": "without", "set": {}, "metrics": {"test_accuracy": {"mean": 0.1}}},
    ],
    "tests": [{"name": "deep", "found": [{"text": 'gradient("a, b") < 1, or [2]', "value": 3}]}],
    "reason": "too long",
    "loss": None,
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("params.1", 200),
        ("ok", 1),
        ("rows.0.metrics.test_accuracy.mean", 0.9),
        ("rows[recipe=without].metrics.test_accuracy.mean", 0.1),
        ("rows[recipe=with, set.data.limit=40].metrics.test_accuracy.mean", 0.7),
        ("rows[set.data.limit='10'].metrics.test_accuracy.mean", 0.9),
        ("rows[recipe=with].metrics.test_accuracy.mean", 0.8),
        ("count rows[recipe=with]", 2),
        ("count rows[recipe=neither]", 0),
        ("rows.1.set.data.limit", None),
        ("""tests[name=deep].found[text='gradient("a, b") < 1, or [2]'].value""", 3),
    ],
)
def test_paths(path: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(NetError, match="no number at"):
            read_figure(PRINTED, path)
    else:
        assert read_figure(PRINTED, path) == pytest.approx(value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("param", "no `param`, so nothing at `param`"),
        ("rows.0.metrics.accuracy", "no `0.metrics.accuracy` in `rows`|no `rows.0.metrics.acc"),
        ("rows[recipe=neither].metrics", r"no `\[recipe=neither\]` in `rows`"),
        ("params.2", "nothing at `params.2`"),
        ("params[a=1]", r"no `\[a=1\]` in `params`"),
        ("reason", "no number at `reason`: it is 'too long'"),
        ("loss", "no number at `loss`: it is None"),
        ("params", "a list of 2"),
        ("", "`` is not a path"),
        (".params", "is not a path"),
        ("rows[recipe]", "is not a path"),
        ("rows[]", "is not a path"),
        ("count runs[recipe=with]", "no `runs`, so nothing at"),
        ("rows[recipe=with", "is not a path"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        read_figure(PRINTED, path)


def test_remarks_of_commands() -> None:
    assert read_command("netdsl train a.net  # refused").is_refused
    assert read_command("netdsl train a.net  # slow").is_slow
    command = read_command("netdsl sweep a.net --vary 'x=[1, 2]'  # slow")
    assert command.text == "netdsl sweep a.net --vary 'x=[1, 2]'"
    assert command.words == ["sweep", "a.net", "--vary", "x=[1, 2]"]


SUMMARY = "netdsl summary models/a.net"
ROW = """
title = "A net has weights"
claim = "It has."
status = "shown"
file = "models/a.net"
result = "It has {count:,.0f}."
change = "Add a layer."
answer = "More."

[figures.count]
command = "netdsl summary models/a.net"
at = "params"
at_least = 1
at_most = 5
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "docs" / "lecture").mkdir(parents=True)
    (tmp_path / "models" / "a.net").write_text(
        f"# A net.\n#   {SUMMARY}\n#   netdsl fmt x # refused\n"
    )
    return tmp_path


def row_of(root: Path, text: str = ROW, name: str = "03a-some-net") -> LectureRow:
    path = root / "docs" / "lecture" / f"{name}.toml"
    path.write_text(text)
    return read_row(path, root)


def test_a_row_is_read(root: Path) -> None:
    row = row_of(root)
    assert row.number == "3a"
    assert [c.text for c in row.commands] == [SUMMARY, "netdsl fmt x"]
    assert row.files == {"models/a.net"}
    assert row.format("result", {"count": 1234.0}) == "It has 1,234."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("claim", "claims", "unknown key `claims`; known are title, claim"),
        ('claim = "It has."', "", "`claim` is missing"),
        ('claim = "It has."', "claim = 3", "`claim` is not a text"),
        ('"shown"', '"seen"', "status `seen` is not one of shown, caveat, not here"),
        ('"shown"', '"caveat"', "`caveat` is for rows that are not `shown`, and they need it"),
        ("title", 'caveat = "But."\ntitle', "`caveat` is for rows that are not `shown`"),
        ("models/a.net", "models/b.net", "there is no file models/b.net"),
        ("title", "commands = 'netdsl fmt a'\ntitle", "`commands` is not a list of texts"),
        ("title", "commands = ['ls']\ntitle", "`ls` is not a netdsl command"),
        ("title", f"commands = ['{SUMMARY}']\ntitle", f"`{SUMMARY}` is listed twice"),
        ("title", "commands = ['netdsl fmt models/b.net']\ntitle", "there is no file models/b.net"),
        ("title", "needs = ['imagenet']\ntitle", "needs `imagenet`, which is not one of mnist"),
        ("title", "picture = 'a.svg'\ntitle", "`picture` and `alt` belong together"),
        ("title", "picture = 'a.svg'\nalt = 'A.'\ntitle", "there is no picture docs/a.svg"),
        ('answer = "More."', "", "`change` and `answer` belong together"),
        ("A net", "`A net`", "`title` holds Markdown"),
        ("{count:,.0f}", "{counts}", "`result` shows `counts`, which is no figure"),
        ("{count:,.0f}", "{count", "`result` cannot be formatted"),
        ("{count:,.0f}", "{}", "`result` cannot be formatted"),
        ('result = "It has {count:,.0f}."', "", "needs a command, a figure and `result`"),
        ("[figures.count]", "[figures.'a b']", "the name is not letters"),
        ("at_least", "at_best", "figure `count`: unknown key `at_best`"),
        ("at_least = 1\nat_most = 5", "", "figure `count`: it has no bound"),
        ("at_least = 1", "at_least = 6", "figure `count`: no value is 6 or more and 5 or less"),
        ("at_least = 1", "at_least = '1'", "figure `count`: a bound is not a number"),
        ('at = "params"', "", "figure `count`: `at` is missing"),
        ('at = "params"', 'at = "[params"', r"figure `count`: `\[params` is not a path"),
        (f'command = "{SUMMARY}"', 'command = "netdsl fmt a"', "is not a command of the row"),
        (f'command = "{SUMMARY}"', 'command = "netdsl fmt x"', "is refused, so it prints no"),
        ("[figures.count]", "[figures]\n[figures.count", "03a-some-net.toml: "),
    ],
)
def test_a_mistake_in_a_row_is_named(root: Path, old: str, new: str, message: str) -> None:
    assert old in ROW
    with pytest.raises(NetError, match=message):
        row_of(root, ROW.replace(old, new))


def test_a_name_without_a_number_is_refused(root: Path) -> None:
    with pytest.raises(NetError, match="the name is not NUMBER-WORDS"):
        row_of(root, name="pooling")


def test_a_row_that_is_not_shown_needs_no_command(root: Path) -> None:
    text = "title = 'A'\nclaim = 'B.'\nstatus = 'not here'\ncaveat = 'Needs ImageNet.'\n"
    page = write_page([row_of(root, text)])
    assert "> **Not shown here.** Needs ImageNet." in page
    assert "| 3a | [A](#3a-a) | not shown here |  |  |" in page


def prints(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Makes every command print the value."""
    monkeypatch.setattr(lecture_runs, "run_command", lambda *_, **__: json.dumps(value))


def test_figures_are_read_and_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of(root)
    prints(monkeypatch, {"params": 4})
    found = measure(row)
    assert found.figures == {"count": 4}
    assert list(found.seconds) == [SUMMARY, "netdsl fmt x"]
    assert check_measurement(row, found) == []
    write_measurement(row, found)
    page = write_page([row])
    assert "It has 4." in page
    assert f"{SUMMARY}  # 1 s\nnetdsl fmt x                 # 1 s, refused\n" in page


@pytest.mark.parametrize(("value", "message"), [(0, "0 is below 1"), (6, "6 is above 5")])
def test_a_figure_out_of_bounds_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, value: int, message: str
) -> None:
    prints(monkeypatch, {"params": value})
    row = row_of(root)
    assert check_measurement(row, measure(row)) == [
        f"03a-some-net: figure `count`: {message} (`{SUMMARY}`)"
    ]


def test_not_a_number_is_out_of_bounds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints(monkeypatch, {"params": float("nan")})
    row = row_of(root)
    assert len(check_measurement(row, measure(row))) == 1


def test_a_figure_that_is_not_printed_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints(monkeypatch, {"parameters": 4})
    with pytest.raises(NetError, match=r"figure `count`: no `params`.*\n.*keys parameters"):
        measure(row_of(root))


def test_missing_measurements_are_named(root: Path) -> None:
    row = row_of(root)
    with pytest.raises(NetError, match=r"measure docs/lecture/03a-some-net\.toml"):
        write_page([row])
    old = LectureMeasurement(
        "2026-01-01", "a machine", {}, {SUMMARY: 1.0, "netdsl test": 1.0}, {"n": 1}
    )
    assert check_measurement(row, old) == [
        "03a-some-net: command `netdsl fmt x` is not measured",
        "03a-some-net: command `netdsl test` is not of the row",
        "03a-some-net: figure `count` is not measured",
        "03a-some-net: figure `n` is not of the row",
    ]


def test_the_exit_code_of_measure(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_of(root)
    monkeypatch.setattr(lecture, "read_row", lambda _: row)
    for value, code in ((4, 0), (6, 1)):
        prints(monkeypatch, {"params": value})
        assert lecture.main(["measure", str(row.path)]) == code
        assert json.loads(row.record.read_text())["figures"] == {"count": value}
    assert "error: 03a-some-net: figure `count`: 6 is above 5" in capsys.readouterr().err
    prints(monkeypatch, {"params": 5})  # out of bounds before, so measured again, and only once
    assert lecture.main(["measure", "--missing", str(row.path)]) == 0
    prints(monkeypatch, {})
    assert lecture.main(["measure", "--missing", str(row.path)]) == 0
    assert lecture.main(["measure", str(row.path)]) == 2


def test_commands_run_in_their_folder(tmp_path: Path) -> None:
    environment = dict(os.environ)
    (tmp_path / "a.net").write_text("net a { input(4x4x1); fc(2) }\n")
    printed = run_command(read_command("netdsl summary a.net"), tmp_path, environment, as_json=True)
    assert read_figure(json.loads(printed), "params") == 34
    with pytest.raises(NetError, match="exits with 0, not 2"):
        run_command(read_command("netdsl check a.net # refused"), tmp_path, environment)
    with pytest.raises(NetError, match="has no option --json"):
        run_command(read_command("netdsl fmt a.net"), tmp_path, environment, as_json=True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (4.4, "4 s"), (43, "45 s"), (89, "90 s"), (170, "3 min")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
