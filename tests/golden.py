"""Golden files: outputs must equal the texts in tests/golden; NETDSL_GOLDEN=write updates them."""

from __future__ import annotations

import os

from tests.conftest import ROOT

GOLDEN_FOLDER = ROOT / "tests" / "golden"


def assert_matches_golden(name: str, text: str) -> None:
    """Asserts that a text equals the golden file of that name."""
    path = GOLDEN_FOLDER / name
    if os.environ.get("NETDSL_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"no golden {name}; look at the text and write it: NETDSL_GOLDEN=write"
    assert text == path.read_text()
