"""The pages of the tutorial: their commands run in order, as written, and print what is shown.

A ```console block holds commands (`$ ...`) with shortened output; ```net and ```python blocks that
open with `# NAME` are files that the reader writes; a ```sh block (installing, downloading) is not
run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from netdsl import cli
from netdsl.language.format import format_file
from netdsl.language.parse import parse
from tests.conftest import ROOT

TUTORIAL = ROOT / "docs" / "tutorial"
STEPS = sorted(TUTORIAL.glob("[1-9]-*.md"))
PAGES = [TUTORIAL / "README.md", *STEPS]
WITH_DATA = {"2-photographs": ("hymenoptera",), "3-architecture": ("cifar10",)}
MODEL = "squeezenet1_0.onnx"
TOLERANCE = 10.0
"""Points by which a percentage may differ from the one that is shown, as the first page says."""
LEFT_OUT = "..."
NUMBER = r"[-+]?\d[\d,.]*(?:e[-+]?\d+)?"
DECIMAL = r"[-+]?[\d,]*\.\d+(?:e[-+]?\d+)?"
PERCENTAGE = re.compile(rf"({DECIMAL})%")
MEASURED = re.compile(
    rf"\b\d[\d,]* images/s|\b\d+ s\b|{DECIMAL}|\bonnxruntime \S+|epoch \d+: val|opset \d+"
)
"""What depends on the machine, its software and its load."""


@dataclass
class Command:
    """A command of a page with the exit code that its comment gives, and the output below it."""

    text: str
    shown: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def exit_code(self) -> int:
        found = re.search(r"#.* exit code (\d)", self.text)
        return int(found[1]) if found else 0


@dataclass(frozen=True)
class WrittenFile:
    """A file that the reader writes: its name and its text without the first line, the name."""

    name: str
    text: str


def read_page(page: Path) -> Iterator[Command | WrittenFile]:
    """The commands and files of a page, in their order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    for language, text in blocks:
        if language == "console":
            yield from read_console(text)
        elif language in ("net", "python"):
            head, _, body = text.partition("\n")
            assert re.fullmatch(r"# [\w.-]+\.(net|py)", head), head
            yield WrittenFile(head.removeprefix("# "), body)
        else:
            assert language in ("sh", "text"), f"{page.name}: a block of kind {language!r}"


def read_console(text: str) -> Iterator[Command]:
    command: Command | None = None
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command
            command = Command(line.removeprefix("$ "))
        else:
            assert command is not None, line
            command.shown.append(line)
    assert command is not None
    yield command


def commands(page: Path) -> list[Command]:
    return [x for x in read_page(page) if isinstance(x, Command)]


def expand(words: list[str]) -> list[str]:
    """Words with their globs expanded, as a shell does."""
    found = ([str(p) for p in sorted(Path().glob(w))] if "*" in w else [] for w in words)
    return [x for word, paths in zip(words, found, strict=True) for x in (paths or [word])]


def pattern(line: str) -> str:
    """A shown line as a regular expression: spaces and measured numbers may differ."""
    squeezed = " ".join(line.split())
    parts = re.split(f"({MEASURED.pattern})", squeezed)
    return "".join(
        mask(p) if MEASURED.fullmatch(p) else re.escape(p).replace(r"\.\.\.", ".*") for p in parts
    )


def mask(text: str) -> str:
    parts = re.split(f"({NUMBER})", text)
    return "".join(NUMBER if re.fullmatch(NUMBER, p) else re.escape(p) for p in parts)


def missing_lines(shown: list[str], *streams: str) -> list[str]:
    """The shown lines that are not among those of the streams, in the order of each stream and with
    percentages near those shown."""
    rests = [[" ".join(x.split()) for x in text.splitlines()] for text in streams]
    missing = []
    for line in (x for x in shown if x.strip() and x.strip() != LEFT_OUT):
        wanted = re.compile(pattern(line))
        for rest in rests:
            fits = (i for i, x in enumerate(rest) if wanted.fullmatch(x) and is_near(line, x))
            if (at := next(fits, None)) is not None:
                del rest[: at + 1]
                break
        else:
            missing.append(line)
    return missing


def is_near(shown: str, printed: str) -> bool:
    a, b = ([float(x) for x in PERCENTAGE.findall(line)] for line in (shown, printed))
    return all(abs(x - y) <= TOLERANCE for x, y in zip(a, b, strict=False))


class Shell:
    """Runs the commands of a page in the working directory; `close` ends those in the
    background."""

    def __init__(self, netdsl: Any) -> None:
        self.netdsl = netdsl
        self.background: list[subprocess.Popen[bytes]] = []

    def run(self, command: Command) -> None:
        name, *rest = expand(command.words)
        if name == "netdsl":
            code, out, err = self.netdsl(*rest)
        elif rest[-1] == "&":
            self.background.append(subprocess.Popen([sys.executable, *rest[:-1]]))
            return
        else:
            program = sys.executable if name == "python" else name
            done = subprocess.run([program, *rest], capture_output=True, text=True)
            code, out, err = done.returncode, done.stdout, done.stderr
        printed = f"{out}\n{err}"
        assert code == command.exit_code, f"{command.text}\n{printed}"
        lost = missing_lines(command.shown, out, err)
        assert not lost, f"{command.text}\nnot printed: {lost}\nprinted:\n{printed}"

    def close(self) -> None:
        for process in self.background:
            process.kill()
            process.wait()


def follow(page: Path, shell: Shell, is_wanted: Callable[[Command], bool]) -> None:
    """Writes the files of a page and runs its commands, in the working directory."""
    Path("models").symlink_to(ROOT / "models")
    try:
        for step in read_page(page):
            if isinstance(step, WrittenFile):
                Path(step.name).write_text(step.text)
            elif is_wanted(step):
                shell.run(step)
    finally:
        shell.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^):\s]+)\)", page.read_text())
    for link in links:
        name, _, anchor = link.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in [slug(h) for h in headings], link


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", STEPS, ids=lambda p: p.stem)
def test_every_command_can_be_parsed(page: Path) -> None:
    app = typer.main.get_command(cli.app)
    for command in commands(page):
        name, *rest = command.words
        assert name in ("netdsl", "python", "curl"), command.text
        if name == "netdsl":
            with app.make_context("netdsl", [rest[0]]) as outer:
                found = app.get_command(outer, rest[0])  # type: ignore[attr-defined]
                assert found is not None, command.text
                found.make_context(rest[0], rest[1:], parent=outer)


@pytest.mark.parametrize("page", STEPS, ids=lambda p: p.stem)
def test_the_nets_are_laid_out_as_fmt_does(page: Path) -> None:
    for file in (x for x in read_page(page) if isinstance(x, WrittenFile)):
        if file.name.endswith(".py"):
            compile(file.text, file.name, "exec")
        elif not file.name.startswith("wrong"):
            assert format_file(parse(file.text), file.text) == file.text, file.name


def link_data(folder: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Links data sets and the ONNX model into the working directory, which becomes the cache."""
    for name in (*names, MODEL):
        if not (folder / name).exists():
            pytest.skip(f"there is no {folder / name}")
        Path(name).symlink_to(folder / name)
    monkeypatch.setenv("NETDSL_CACHE", str(Path.cwd()))


@pytest.mark.parametrize("page", STEPS, ids=lambda p: p.stem)
def test_the_errors_that_are_shown_are_those_that_are_printed(
    page: Path, netdsl: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [c for c in commands(page) if c.exit_code == 2]
    assert refused
    assert all(any(x.startswith("error: ") for x in c.shown) for c in refused)
    if any("--data" in c.words for c in refused):
        link_data(request.getfixturevalue("data_dir"), WITH_DATA[page.stem], monkeypatch)
    follow(page, Shell(netdsl), lambda c: c.exit_code == 2)


def test_a_shown_line_that_is_not_printed_is_found() -> None:
    printed = "epoch 1/2  accuracy 92.50%  0.1 s\n38,282 params\n"
    assert not missing_lines(["epoch 1/2  accuracy 95.00%  0.4 s", "..."], printed)
    assert missing_lines(["epoch 1/2  accuracy 75.00%  0.4 s"], printed)
    assert missing_lines(["38,283 params"], printed)
    assert missing_lines(["38,282 params", "epoch 1/2  accuracy 92.50%  0.1 s"], printed)


@pytest.mark.slow
@pytest.mark.parametrize("page", STEPS, ids=lambda p: p.stem)
def test_the_commands_of_a_page_print_what_is_shown(
    page: Path,
    netdsl: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    if names := WITH_DATA.get(page.stem, ()):
        link_data(request.getfixturevalue("data_dir"), names, monkeypatch)
    follow(page, Shell(netdsl), lambda _: True)
