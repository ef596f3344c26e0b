"""Wrong files and what is said of them, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from netdsl.errors import NetError
from netdsl.insight.program_check import check_program
from netdsl.language.program import load_program
from tests.conftest import ROOT
from tests.golden import assert_matches_golden

WRONG = sorted((ROOT / "tests" / "wrong").glob("*.net"))


@pytest.mark.parametrize("path", WRONG, ids=lambda p: p.stem)
def test_what_is_said_of_a_wrong_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(NetError) as e:
        check_program(load_program(path.name))
    assert_matches_golden(f"wrong/{path.stem}.txt", e.value.render() + "\n")


def test_there_are_thirty_and_more() -> None:
    assert len(WRONG) >= 30
