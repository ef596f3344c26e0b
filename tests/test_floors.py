"""Imports point down the floors only, and files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = [
    "foreign_names",
    "text_escaping",
    "standard_streams",
    "interrupt",
    "limits",
    "foreign_advice",
    "foreign_words",
    "errors",
    "environment",
    "optional_imports",
    "pickles",
    "file_io",
    "dump",
    "disk_cache",
    "json_schema",
    "ranks",
    "values",
    "value_advice",
    "parameter_types",
    "globs",
    "signature",
    "types",
    "safetensors_file",
    "file_kinds",
    "ops",
    "ir",
    "passes",
    "plan",
    "lower",
    "layers",
    "language",
    "backends",
    "runtime",
    "data",
    "training.metrics",
    "training.recipe",
    "training.step",
    "training.checks",
    "training.job",
    "training.store",
    "training.run",
    "inference",
    "interchange",
    "insight",
    "api",
    "sklearn",
    "cli",
    "__main__",
]
PACKAGE = ROOT / "netdsl"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
TOOLS = sorted((ROOT / "docs").rglob("*.py"))
"""They stand above the package, and no floor imports them."""


MAX_LINES = 500
"""Of a module: more than that is several things."""


def floor(module: str) -> int:
    """The floor of a module by its dotted name below netdsl: `plan.kernel` is on `plan`'s."""
    found = [i for i, name in enumerate(FLOORS) if f"{module}.".startswith(f"{name}.")]
    assert found, f"{module} is on no floor"
    return found[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if is_package(node.module):
                names = [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.removeprefix("netdsl.") for n in names if n.startswith("netdsl.")}
    return found - {"__version__"}


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    if module_name(path) == "training":
        return  # a docstring alone
    own = floor(module_name(path))
    assert not {name for name in imports(path) if floor(name) > own}


@pytest.mark.parametrize("path", [*MODULES, *TOOLS], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_opens_with_its_job(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", [*MODULES, *TOOLS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


ENGINES = ("backends.cpu", "backends.cuda")
"""They share names as long as each has a lowering of its own."""
SYNTAX = "language.syntax"
"""Its names are always written with that of the module, as in `s.Net`."""


def test_a_class_name_means_one_thing() -> None:
    found: dict[str, list[str]] = {}
    shared = {p for p in MODULES if module_name(p).startswith(ENGINES) or module_name(p) == SYNTAX}
    for path in (*MODULES, *TOOLS):
        if path in shared:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: modules for name, modules in found.items() if len(modules) > 1}
