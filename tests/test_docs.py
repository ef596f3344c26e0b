"""What README and reference say is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netdsl.errors import NetError
from netdsl.insight.check import check_program
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import program
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BLOCKS = [text for language, text in FENCED if not language]


def test_the_reference_page_is_fresh() -> None:
    from netdsl.insight.reference import reference

    assert (ROOT / "docs" / "reference.md").read_text() == reference()


def test_the_first_net_is_the_file_of_that_name() -> None:
    head, _, body = BLOCKS[0].partition("\n")
    path = Path(head.removeprefix("# "))
    assert body == (ROOT / path).read_text().partition("\n")[2]


def test_the_language_in_a_minute_parses() -> None:
    assert len(parse(BLOCKS[1]).items) == 2


def test_the_recipes_that_are_shown_are_sound() -> None:
    assert check_program(program(parse(BLOCKS[2]))) == (["small"], [])


def test_the_error_that_is_shown_is_the_error_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "models" / "resnet.net").read_text()
    wrong = text.replace("| shortcut(4*c, stride) }", "| identity }")
    assert wrong != text
    with pytest.raises(NetError) as e:
        elaborate(program(parse(wrong, "models/resnet.net")))
    assert e.value.diagnostics[0].render() + "\n" == BLOCKS[3]
