"""The examples of docs/python.md run, are typed, and give what their comments say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = [text for language, text in FENCED if language == "python"]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the examples define, after all of them have run in a folder with what they read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        yield run_examples()


def run_examples() -> dict[str, Any]:
    Path("models").symlink_to(ROOT / "models")
    digit = load_digits().images[3] * (255 / 16)
    Image.fromarray(digit.round().astype(np.uint8)).save("three.png")
    for text in (text for language, text in FENCED if not language):
        head, _, body = text.partition("\n")
        Path(head.removeprefix("# ")).write_text(body)
    defined: dict[str, Any] = {}
    for text in EXAMPLES:
        exec(text, defined)
    return defined


def test_the_examples_run(names: dict[str, Any]) -> None:
    assert names["best"].label == "3"
    assert len(names["best"].top(2)) == 2
    assert names["search"].best_params_["epochs"] in (1, 2)
    assert Path("runs/digits-1/best.safetensors").exists()
    assert Path("runs/mine/best.safetensors").exists()
    assert names["model"].score(names["digits"].data, names["digits"].target) > 0.95


def commented(text: str) -> list[tuple[str, str]]:
    """The expressions of an example with the tuples that their comments begin with."""
    return re.findall(
        r"^(\w(?:(?! = ).)*?)  # (\([^()]*(?:\([^()]*\))?[^()]*\))", text, re.MULTILINE
    )


def test_the_shapes_that_are_shown_are_those_of_the_nets(names: dict[str, Any]) -> None:
    import netdsl

    shown = [pair for text in EXAMPLES[1:3] for pair in commented(text)]
    assert len(shown) == 10
    scope = {**names, "net": netdsl.load("runs/digits-1")}
    for expression, value in shown:
        assert eval(expression, scope) == eval(value), expression


@pytest.mark.slow
def test_the_examples_are_typed(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(EXAMPLES).replace("def watch(metrics):", TYPED))
    command = [sys.executable, "-m", "mypy", "--strict", "page.py"]
    command += ["--ignore-missing-imports", "--no-warn-return-any"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout


TYPED = "from typing import Any\ndef watch(metrics: dict[str, Any]) -> bool:"
