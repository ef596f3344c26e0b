"""What comes from a file is shown, not obeyed: escapes of terminals, marks of Rich, directions of
writing, in every name and every message."""

from __future__ import annotations

import ast
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.cli.display import show_diff, show_summary
from netdsl.data.pictures import write_picture
from netdsl.errors import Source, Span, fail
from netdsl.insight.network_diff import DiffEntry, NetworkDiff
from netdsl.insight.summary import summarise
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.text_escaping import escape_line, escape_text
from tests.conftest import ROOT

HOSTILE = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "a\rb": r"a\rb",
    "a\nerror: b": r"a\nerror: b",
    "\u202eabc\u2066": r"\u202eabc\u2066",
    "\x9b31m": r"\x9b31m",
    "a\u2028b\x85": r"a\u2028b\x85",
    "[red]x[bold]": "[red]x[bold]",
    "[link=file:x]y": "[link=file:x]y",
    ":smile:": ":smile:",
    "\u2603\u0627\u200c": "\u2603\u0627\u200c",
}
"""Names, and how they must be shown."""
KEPT = "\n\t\u200c\u200d"


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal would obey or hide."""
    obeyed = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {c for c in text if unicodedata.category(c) in obeyed and c not in KEPT}


@given(st.text())
def test_all_is_shown(text: str) -> None:
    assert not obeyed(escape_text(text))
    assert len(escape_line(text).splitlines()) <= 1
    plain = "".join(c for c in text if not obeyed(c))
    assert escape_text(plain) == plain
    assert escape_text(escape_text(text)) == escape_text(text)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_shown(name: str) -> None:
    assert escape_line(name) == HOSTILE[name]


@given(st.text(max_size=200), st.integers(0, 200), st.integers(0, 50))
def test_a_mark_stands_below_what_it_marks(line: str, begin: int, width: int) -> None:
    """However wide what is shown for a character is."""
    line = line.replace("\n", " ")
    begin = min(begin, len(line))
    end = min(begin + width, len(line))
    span = Span(Source("x.net", f"first\n{line}\nlast"), 6 + begin, 6 + end)
    shown, marks = fail("it is wrong", span).render().splitlines()[2:4]
    assert not obeyed(shown)
    at, count = marks.index("^"), marks.count("^")
    marked = escape_line(line[begin:end].expandtabs(1)).rstrip()
    if len(line) <= 120 and marked:
        assert shown[at:].startswith(marked)
        assert count >= len(marked)


def test_every_part_of_a_diagnostic_is_shown() -> None:
    for name, shown in HOSTILE.items():
        source = Source(f"{name}.net", f"net {name} {{")
        error = fail(f"no {name}", Span(source, 0, 3), help=f"try {name}", notes=[f"it is {name}"])
        text = error.render()
        assert not obeyed(text)
        assert text.count(shown.replace(r"\n", "\n")) + text.count(shown) >= 4


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Pictures in folders of hostile names."""
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        for i in range(4):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_picture(path, rng.integers(0, 256, (8, 8), np.uint8))
    text = f"""net a {{ input(8x8x1); fc({len(HOSTILE)}) }}
data {{ source = folder("data"), batch = 4, validation = 0.25 }}
train {{ epochs = 1 }}
"""
    (tmp_path / "a.net").write_text(text)
    return tmp_path


def test_hostile_class_names_are_shown_by_every_command(netdsl: Any, classes: Path) -> None:
    device = ("--device", "reference")
    picture = str(classes / "data" / "\x1b[2J" / "0.png")
    code, out, err = netdsl("train", "a.net", "--out", "run", *device)
    assert (code, obeyed(out + err)) == (0, set())
    code, out, err = netdsl("eval", "run", *device)
    assert (code, obeyed(out + err)) == (0, set())
    for shown in HOSTILE.values():
        assert out.count(shown) >= 2, "a row and a column of the confusion"
    code, out, err = netdsl("predict", "run", picture, picture, *device)
    assert (code, obeyed(out + err), out.count("\n")) == (0, set(), 2)
    assert r"data/\x1b[2J/0.png: " in out
    (classes / "data" / "\x1b[1m").mkdir()
    write_picture(classes / "data" / "\x1b[1m" / "0.png", np.zeros((8, 8), np.uint8))
    code, out, err = netdsl("eval", "run", *device)
    assert (code, obeyed(out + err)) == (2, set())
    assert r"\x1b[1m" in err


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_paths_and_texts_are_shown(netdsl: Any, tmp_path: Path, name: str) -> None:
    good, bad = f"{name}.net", f"{name}bad.net"
    quoted = name.replace("\n", "")
    (tmp_path / good).write_text(
        f'net a {{ input(8x8x1); fc(10) }}\ntest a {{ shape("{quoted}") == 4 }}\n'
    )
    (tmp_path / bad).write_text(f"net a {{ input(8x8x1); {name} }}\n")
    for args in (
        ("check", good),
        ("check", bad),
        ("test", good),
        ("test", "."),
        ("fmt", "--check", good, bad),
        ("fmt", bad),
        ("summary", good),
        ("summary", "."),
        ("diff", good, good),
        ("train", good, "--set", f"train.{name}=1"),
        ("train", "--resume", name),
        ("eval", name),
        ("predict", name, name),
        ("filters", name, "-o", f"{name}.png"),
        (name,),
    ):
        code, out, err = netdsl(*args)
        assert not obeyed(out + err), args
        assert code in (0, 1, 2)
    assert HOSTILE[name] in netdsl("check", good)[2].replace("\n", r"\n")


def test_tables_take_no_marks(capsys: pytest.CaptureFixture[str]) -> None:
    net = elaborate(build_program(parse("net a { input(8x8x1); fc(10) }")))
    show_summary(summarise(net))
    assert "fc(10)" in capsys.readouterr().out
    for name, shown in HOSTILE.items():
        change = DiffEntry(name, name, None)
        show_diff(NetworkDiff((name, name), (1, 2), (3, 4), (change,), (name,), (change,), 5))
        out = capsys.readouterr().out
        assert not obeyed(out)
        assert out.replace("\n", r"\n").count(shown) >= 6


def test_the_command_line_prints_by_way_of_printable() -> None:
    """`print` itself stands where it is wrapped, and where `fmt` is a filter."""
    found = [
        path.name
        for path in (ROOT / "netdsl" / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert set(found) == {"app.py", "inspection.py"}
    assert found.count("inspection.py") == 1
