"""The table of planted faults fits the source; planting them is slow, and is done by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.faults import AREAS, FAULTS, Fault
from tests.mutate import _classify, explain_stale, main, select_faults


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_every_fault_can_be_planted(fault: Fault) -> None:
    assert explain_stale(fault) is None
    assert fault.area in AREAS
    assert fault.old != fault.new


def test_every_area_has_its_faults() -> None:
    assert max(Counter(f.name for f in FAULTS).values()) == 1
    assert min(Counter(f.area for f in FAULTS)[area] for area in AREAS) >= 8
    assert len(FAULTS) >= 100


def test_what_does_not_fit_any_more_is_told() -> None:
    fault = FAULTS[0]
    assert "occurs 0 times" in str(explain_stale(replace(fault, old="no such text anywhere")))
    assert "no Python" in str(explain_stale(replace(fault, new="(")))
    assert "there is no netdsl/x.py" in str(explain_stale(replace(fault, file="netdsl/x.py")))
    for test in ("tests/test_x.py", "tests/test_mutate.py::test_x"):
        assert f"there is no {test}" in str(explain_stale(replace(fault, tests=(test,))))
    assert (
        explain_stale(replace(fault, tests=("tests/test_mutate.py::test_every_fault[a]",)))
        is not None
    )


def test_faults_are_chosen_by_area_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f.area for f in select_faults(["plan", "ir"], [])} == {"plan", "ir"}
    assert [f.name for f in select_faults([], [FAULTS[3].name])] == [FAULTS[3].name]
    assert main(["--list", "--area", "train"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(select_faults(["train"], []))


@pytest.mark.parametrize(
    ("code", "word"),
    [(0, "SURVIVED"), (1, "caught"), (2, "caught"), (-11, "caught"), (4, "stale"), (5, "stale")],
)
def test_only_tests_that_ran_catch_a_fault(code: int, word: str) -> None:
    """A test that is not there any more must not count as one that failed."""
    fault = replace(FAULTS[0], spared="")
    assert _classify(fault, code) == word
    assert _classify(replace(fault, spared="it costs only"), code) == word.replace(
        "SURVIVED", "spared"
    )
    assert _classify(fault, None) == "timeout"
