"""What the environment says is a number within its bounds, or a sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.task_program import MAX_THREADS, thread_count
from netdsl.data.memory_limits import MEMORY_VARIABLE, memory_limit
from netdsl.environment import read_integer
from netdsl.errors import NetError
from tests.conftest import ROOT

READ = {
    "NETDSL_THREADS": thread_count.__wrapped__,
    "NETDSL_VECTOR": vector_width.__wrapped__,
    MEMORY_VARIABLE: memory_limit,
}
NAME = "NETDSL_TESTED"
ODD = ["0", "-1", "abc", "1e3x", "3.5.1", "²", "١x", "1_0", "+", "0x10", "9" * 5000, "1\n2", "inf"]
LONGEST = 300


def text() -> st.SearchStrategy[str]:
    letters = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
    return st.one_of(st.integers().map(str), letters, st.from_regex(r"[0-9²١]{1,3}"))


@given(text(), st.integers(1, 300))
def test_a_number_lies_within_its_bounds_or_is_refused(value: str, most: int) -> None:
    value = value.replace("\0", "")
    with pytest.MonkeyPatch.context() as m:
        m.setenv(NAME, value)
        if not value.strip():
            assert read_integer(NAME, most, "number") is None
        elif re.fullmatch("[0-9]{1,9}", value.strip()) and 1 <= int(value) <= most:
            assert read_integer(NAME, most, "number") == int(value)
        else:
            with pytest.raises(NetError, match=f"is not a number from 1 to {most}") as e:
                read_integer(NAME, most, "number")
            assert len(e.value.render()) < LONGEST


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("value", ODD)
def test_every_variable_is_refused_in_a_sentence(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(NetError, match=name) as e:
        READ[name]()
    assert len(e.value.render()) < LONGEST


@pytest.mark.parametrize("name", READ)
def test_a_blank_variable_says_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    usual = READ[name]()
    for blank in ("", " ", "\t"):
        monkeypatch.setenv(name, blank)
        assert READ[name]() == usual


@pytest.mark.parametrize("value", ["100000", "3.5"])
def test_too_many_threads_are_refused_before_anything_runs(value: str) -> None:
    model = str(ROOT / "models" / "digits.net")
    command = [sys.executable, "-m", "netdsl", "train", model, "--dry-run", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NETDSL_THREADS": value}
    found = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert (found.returncode, found.stdout) == (2, "")
    said = f"error: NETDSL_THREADS={value} is not a number of threads from 1 to "
    assert found.stderr.startswith(said)
    assert int(found.stderr.removeprefix(said).split()[0].replace(",", "")) >= MAX_THREADS
