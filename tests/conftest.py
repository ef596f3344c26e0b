"""Shared fixtures (a Draw on Hypothesis, data sets, the CLI) and one deterministic profile."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # workers run in parallel
os.environ["NETDSL_MIRROR"] = "http://127.0.0.1:9"  # no test may download anything

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from netdsl.language.budget import ensure_recursion_limit

settings.register_profile(
    "netdsl",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile(
    "planted",  # with a planted fault any failing example is enough, so skip shrinking
    settings.get_profile("netdsl"),
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("netdsl")
ensure_recursion_limit()  # before Hypothesis: it warns if the limit changes during an example

ROOT = Path(__file__).parent.parent


def pytest_collection_finish() -> None:
    """Thousands of tests stay until the end: the garbage collector need not look at them each
    time."""
    gc.collect()
    gc.freeze()


class HypothesisDraw:
    """Implements the Draw of Op.examples on a Hypothesis `data` object."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def choice(self, options: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(list(options)))


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data sets; the test is skipped, with a message, if it does not exist."""
    folder = Path(os.environ.get("NETDSL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set NETDSL_DATA to run this")
    return folder


@pytest.fixture
def netdsl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Any:
    """Runs a command in an empty directory; returns (exit code, standard output, standard
    error)."""
    from netdsl import cli

    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["netdsl", *args])
        with pytest.raises(SystemExit) as e:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(e.value.code, int)
        return e.value.code, out, err

    return run
