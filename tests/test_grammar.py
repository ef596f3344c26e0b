"""The grammar's folder: its EBNF is fresh, its README true, and every installation has it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lark import Lark

from netdsl.insight.ebnf import ebnf
from netdsl.insight.program_check import check_program
from netdsl.language.parse import load_grammar, parse
from netdsl.language.program import build_program
from tests.conftest import ROOT

FOLDER = ROOT / "grammar"
README = (FOLDER / "README.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_ebnf_is_fresh() -> None:
    assert (FOLDER / "netdsl.ebnf").read_text() == ebnf()


def test_every_rule_that_is_used_is_one() -> None:
    productions = dict(re.findall(r"^(\w+) +::= (.*)$", ebnf(), re.MULTILINE))
    assert productions["chain"] == '(NAME ":")? element ("->" element)*'
    for body in productions.values():
        plain = re.sub(r"/\*.*?\*/$|\"[^\"]*\"", "", body)
        assert set(re.findall(r"\w+", plain)) <= set(productions)


def test_the_file_that_is_shown_is_sound() -> None:
    (text,) = (text for language, text in FENCED if not language)
    nets, warnings = check_program(build_program(parse(text.partition("\n")[2])))
    assert set(nets) == {"small", "wide"}
    assert not warnings


def test_the_grammar_is_read_as_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (text for language, text in FENCED if language == "python")
    monkeypatch.chdir(ROOT)
    exec(code)
    assert capsys.readouterr().out.splitlines()[1].strip() == "net"


WORDS = {
    "item": ["use", "block", "net", "data", "train", "test"],
    "statement": ["let", "shared", "output", "if", "for"],
    "index": ["as"],
}


@pytest.mark.parametrize("word", sorted({w for words in WORDS.values() for w in words}))
def test_keywords_depend_on_the_place(word: str) -> None:
    """A parameter and an argument may have any of their names."""
    text = f"""let {word} = 2 if {word} else 3
    let {word}({word}) = {word}
    block b({word}=3) {{ conv({word}, 1x1) * {word} as {word} }}
    net n {{ input(8x8x1); b({word}=4) }}"""
    Lark(load_grammar(), parser="lalr", start="start").parse(text)


def test_all_packages_are_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = (str(p.parent.relative_to(ROOT)) for p in (ROOT / "netdsl").rglob("__init__.py"))
    packages = {p.replace("/", ".") for p in found}
    assert set(settings["packages"]) == packages | {"netdsl.grammar"}


# ---- installations


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what an installation is made of, in which a build may write."""
    copy = tmp_path_factory.mktemp("tree")
    listed = [ROOT / name for name in ("pyproject.toml", "README.md")]
    listed += [p for d in ("netdsl", "grammar", "models") for p in (ROOT / d).rglob("*")]
    for path in listed:
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    found = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment or None,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout + found.stderr


def build(tree: Path, kind: str, out: Path) -> Path:
    """A wheel or an sdist of the tree."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    (made,) = out.iterdir()
    return made


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_distribution_has_its_data_files(tree: Path, kind: str, tmp_path: Path) -> None:
    """Unpacked and used by itself, beside the libraries that are here."""
    made = build(tree, kind, tmp_path / "made")
    place = tmp_path / "place"
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--target", place)
    run(sys.executable, "-m", "pip", "install", *options, made, cwd=tmp_path)
    assert (place / "netdsl" / "grammar" / "netdsl.lark").read_text() == load_grammar()
    assert (place / "netdsl" / "insight" / "report" / "templates" / "page.css").is_file()
    (tmp_path / "a.net").write_text("net a { input(8x8x1); fc(10) }\n")
    checked = run(
        *(sys.executable, "-m", "netdsl", "check", "a.net"),
        cwd=tmp_path,
        PYTHONPATH=str(place),
        NETDSL_CACHE=str(tmp_path / "cache"),
    )
    assert "a.net: a: no warnings" in checked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_an_installation_checks_a_file(tree: Path, kind: str, tmp_path: Path) -> None:
    """In an environment of its own, with all that it depends on."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    what = ("-e", tree) if kind == "editable" else (build(tree, kind, tmp_path / "made"),)
    run(python, "-m", "pip", "install", *what, cwd=tmp_path)
    path = tree / "models" / "lenet.net"
    command = tmp_path / "venv" / "bin" / "netdsl"
    checked = run(command, "check", path, cwd=tmp_path, NETDSL_CACHE=str(tmp_path / "cache"))
    assert "lenet.net: lenet5, caffe_lenet: no warnings" in checked
