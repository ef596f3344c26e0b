"""What README and reference say is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netdsl.errors import NetError
from netdsl.insight.net_tests import run_test
from netdsl.insight.program_check import check_program
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file
from netdsl.language.parse import parse
from netdsl.language.program import build_program
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


@pytest.mark.parametrize("text", BLOCKS[:3], ids=["digits", "language", "recipes"])
def test_the_nets_that_are_shown_are_sound(text: str) -> None:
    whole = build_program(parse(text))
    nets, warnings = check_program(whole)
    assert nets
    assert not warnings
    assert all(run_test(whole, test).ok for test in whole.tests)


def test_the_error_that_is_shown_is_the_error_that_is_told() -> None:
    wrong = BLOCKS[1].replace("| shortcut(4*c, stride) }", "| identity }")
    assert wrong != BLOCKS[1]
    with pytest.raises(NetError) as e:
        elaborate(build_program(parse(wrong, "small.net")))
    assert e.value.diagnostics[0].render() + "\n" == BLOCKS[3]


def test_the_nets_that_are_shown_are_laid_out_as_fmt_does() -> None:
    assert format_file(parse(BLOCKS[1]), BLOCKS[1]) == BLOCKS[1]
