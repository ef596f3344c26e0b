"""Thousands of data sets, damaged and hostile: what is read of them is samples or a sentence, and
none takes long or much memory. They are read in processes of their own, where a limit can hold."""

from __future__ import annotations

import json
import sys

import pytest

from tests import fuzz_data
from tests.conftest import ROOT
from tests.processes import run_process

MOST = 10**9
"""Bytes of memory that a process may take on top, for the worst of its cases."""
KINDS = list(fuzz_data.MAKERS)


def survive(kind: str, first: int, count: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz_data", kind, str(first), str(count)]
    done = run_process(*command, limit=900, cwd=ROOT, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert not found["wrong"], found["wrong"][:3]
    assert found["cases"] == count
    assert 0 < found["read"] < count
    assert found["peak"] < MOST, f"{found['peak']:,} bytes"
    assert found["slowest"] < fuzz_data.MAX_SECONDS


@pytest.mark.parametrize("kind", KINDS)
def test_hundreds(kind: str) -> None:
    survive(kind, 0, 100 if kind == "csv" else 300)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_thousands(kind: str, part: int) -> None:
    """2,000 archives, 1,000 sets of idx files, 1,000 folders, 1,000 tables."""
    count = 200 if kind == "npz" else 100
    survive(kind, 10_000 + part * count, count)
