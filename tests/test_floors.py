"""Imports point down the floors only, and files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = [
    "printable",
    "output",
    "interrupt",
    "limits",
    "errors",
    "environment",
    "optional",
    "files",
    "dump",
    "kept",
    "schema",
    "values",
    "kinds",
    "globs",
    "signature",
    "types",
    "ops",
    "ir",
    "passes",
    "plan",
    "layers",
    "language",
    "backends",
    "runtime",
    "data",
    "training",
    "inference",
    "insight",
    "cli",
    "__main__",
]
PACKAGE = ROOT / "netdsl"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def floor(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The floors of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "netdsl":
                names = [f"netdsl.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("netdsl.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = FLOORS.index(floor(path))
    above = {name for name in imports(path) if FLOORS.index(name) > own}
    assert not above


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_opens_with_its_job(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
