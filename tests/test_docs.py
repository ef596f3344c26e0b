"""What README and reference say is what the program does."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netdsl.data.augment import bind_augmentation
from netdsl.data.pictures import pictures_from_paths
from netdsl.data.preprocessing import Preprocessing
from netdsl.errors import NetError
from netdsl.insight.net_tests import run_test
from netdsl.insight.program_check import check_program
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.layers import normalization
from netdsl.ops import OPS, activation
from netdsl.training.metrics.table import METRIC_NAMES
from netdsl.training.recipe import schedules
from netdsl.types import TensorType
from tests.conftest import ROOT
from tests.test_coverage import ENGINES, coverage

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(page: str, language: str) -> list[str]:
    """The blocks of a page that are marked with this word."""
    return [text for word, text in FENCE.findall((ROOT / page).read_text()) if word == language]


EXAMPLES = fenced("docs/language.md", "net")
[FIRST_NET] = [text for text in EXAMPLES if text.startswith("# models/")]
[BOTTLENECKS] = [text for text in EXAMPLES if "block bottleneck(" in text]


def test_the_reference_page_is_fresh() -> None:
    from netdsl.insight.reference import reference

    assert (ROOT / "docs" / "reference.md").read_text() == reference()


def test_the_first_net_is_the_file_of_that_name() -> None:
    head, _, body = FIRST_NET.partition("\n")
    path = Path(head.removeprefix("# "))
    assert body == (ROOT / path).read_text().partition("\n")[2]


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split("\n")[0])
def test_the_nets_that_are_shown_are_sound(text: str) -> None:
    whole = build_program(parse(text, str(ROOT / "models" / "example.net")))
    nets, warnings = check_program(whole)
    assert nets
    assert not warnings
    assert all(run_test(whole, test).ok for test in whole.tests)
    assert format_file(parse(text), text) == text


def test_every_example_of_the_language_is_checked() -> None:
    words = [word for word, _ in FENCE.findall((ROOT / "docs" / "language.md").read_text())]
    assert sorted({*words}) == ["net", "text"]
    assert words.count("text") == 1  # the message of the next test


def find_error(text: str) -> str:
    with pytest.raises(NetError) as e:
        elaborate(build_program(parse(text, "small.net")))
    return e.value.diagnostics[0].render() + "\n"


def test_the_error_that_is_shown_is_the_error_that_is_told() -> None:
    wrong = BOTTLENECKS.replace("| shortcut(4*c, stride) }", "| identity }")
    assert wrong != BOTTLENECKS
    assert [find_error(wrong)] == fenced("docs/language.md", "text")


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
MAINTAINERS = [
    p for p in PAGES if p.name not in ("README.md", "lecture.md", "reference.md", "comparison.md")
]
"""The pages that speak of the code; the comparison names that of others."""
CODE = re.compile(r"`([^`\n]+)`")
WORDS = {
    *(
        "pre-commit",
        "NAME",
        "KEY",
        "DIR",
        "FILE",
        "PATH",
        "NETDSL_DUMP",
        "NETDSL_GOLDEN",
        "NETDSL_THREADS",
    ),
    *(
        "NETDSL_VECTOR",
        "DiGraph",
        "AssertionError",
        "KeyboardInterrupt",
        "recipe.net",
        "metrics.jsonl",
        "no_decay",
    ),
    *("KeyboardInterrupt", "normal", "lr", "pad", "conv1.weight", "conv1.bias"),
}
"""What is named in the pages and is no name of the code."""


def code_without_blocks(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return CODE.findall(text)


def defined_names() -> set[str]:
    """Every name that the package or the tests define: functions, classes, fields, constants,
    metrics."""
    found = {*WORDS, *METRIC_NAMES}
    for path in (*(ROOT / "netdsl").rglob("*.py"), *(ROOT / "tests").glob("*.py")):
        with pause_garbage_collection():  # it would follow every node of every tree
            found.update(_names_in(ast.parse(path.read_text())))
    return found


def _names_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_files_that_are_named_are_there(page: Path) -> None:
    for name in code_without_blocks(page):
        if re.fullmatch(r"(netdsl|tests|grammar|models|docs|benchmarks)/[\w./*]*", name):
            assert "NAME" in name or any(ROOT.glob(name.rstrip("/"))), name
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_names_that_are_used_exist() -> None:
    """One test for all pages: what the code defines is collected only once."""
    known = defined_names()
    missing = [
        (page.name, text)
        for page in MAINTAINERS
        for text in code_without_blocks(page)
        if re.fullmatch(r"_?[A-Za-z]\w*(\.\w+)*(?<!_)", text) and re.search(r"[A-Z_]", text)
        if text not in known and text.rpartition(".")[2] not in known
    ]
    assert not missing


@pytest.mark.parametrize("page", MAINTAINERS, ids=lambda p: p.name)
def test_the_python_that_is_shown_can_be_parsed(page: Path) -> None:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
        if language == "python":
            ast.parse(text)


def shown_code(page: str) -> str:
    """The first Python example of a page."""
    text = (ROOT / "docs" / page).read_text()
    return next(t for lang, t in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if lang)


def test_the_operator_that_is_shown_works(monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict(vars(activation))
    exec(shown_code("add-an-op.md"), names)
    op = names["OPS"][-1]
    monkeypatch.setitem(OPS, op.name, op)
    values = np.linspace(-3, 3, 8)
    b = Builder(dtype="float64")
    x = b.input("x", TensorType((8,), "float64"))
    y = b.emit(op.name, x)
    slope = grad(b, y, [x], cotangent=b.input("u", y.type))["x"]
    found = evaluate_results(b.build({"y": y, "d": slope}), {"x": values, "u": np.ones(8)})
    root = np.sqrt(values**2 + 4)
    assert found["y"] == pytest.approx((values + root) / 2)
    assert found["d"] == pytest.approx((1 + values / root) / 2)
    assert {coverage(op.name, engine) for engine in ENGINES} == {"kernel"}


def test_the_layer_that_is_shown_is_the_one_that_exists() -> None:
    source = inspect.getsource(normalization)
    definition, record = shown_code("add-a-layer.md").split("LAYERS = (\n    ...,\n")
    assert definition.partition("\n")[2].strip() in source
    assert source.endswith(record)


def test_the_pass_that_is_shown_works() -> None:
    names: dict[str, Any] = {}
    exec(shown_code("add-a-pass.md"), names)
    b = Builder()
    x = b.input("x", TensorType((4,)))
    graph = names["remove_repeated_relu"](b.build({"y": b.relu(b.relu(b.relu(x)))}))
    assert len(graph.find_by_op("relu")) == 1


def test_the_schedule_that_is_shown_works() -> None:
    text = (ROOT / "docs" / "add-a-layer.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    *definitions, entry = ast.parse(blocks[-1]).body
    assert isinstance(entry, ast.Expr)
    names = dict(vars(schedules))
    exec(compile(ast.Module(definitions, []), "page", "exec"), names)
    schedule = eval(compile(ast.Expression(entry.value), "page", "eval"), names)
    factors = [schedule.factor(schedules.Moment(e, 9, 10), 0.0, 0.5) for e in (0, 0.9, 1.0, 2.5)]
    assert factors == [1, 1, 0.5, 0.25]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(301, 500), (640, 333), (256, 256)])
def test_the_preparation_of_the_tutorial_is_that_of_predict(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    (python,) = [t for t in fenced("docs/tutorial/4-deploy.md", "python") if "def prepare(" in t]
    names: dict[str, Any] = {}
    exec(python, names)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    transforms = (bind_augmentation("resize", size=256), bind_augmentation("center_crop"))
    expected = Preprocessing(transforms, (227, 227, 3))(pictures_from_paths([tmp_path / "a.jpg"]))
    with Image.open(tmp_path / "a.jpg") as picture:
        np.testing.assert_array_equal(names["prepare"](picture), expected)


def test_the_ir_of_the_internals_is_what_the_pass_does(
    netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "internals.md").read_text()
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    (net,) = [t for language, t in fences if language == "net"]
    before, after, plan = [t for language, t in fences if language == "text"]
    (python,) = [t for language, t in fences if language == "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETDSL_DUMP", "dump")
    Path("pointwise.net").write_text(net)
    assert format_file(parse(net), net) == net
    assert netdsl("compile", "pointwise.net")[0] == 0
    assert Path("dump/002-lower.txt").read_text().strip() == f"{before}\n{after}".strip()
    assert Path("dump/006-plan.txt").read_text() == plan
    exec(python, {})
