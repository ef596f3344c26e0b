"""The rows of the lecture: docs/lecture/NN-slug.toml, read and checked.

The keys of a row: `title`, `claim` and `status` (shown, caveat or not here); `caveat` unless it is
shown; `file`, a .net file whose header lists commands; `commands`, further ones; `needs`, the data
sets; `result`; `picture` with `alt`; `change` with `answer`. `[figures.NAME]` has a `command` of
the row, word for word, `at`, the path of the figure in the JSON that the command prints
(`docs.tools.lecture_paths`), and a bound, `at_least` or `at_most`. The texts `result`, `caveat` and
`answer` show figures by name, as `str.format` does: `{accuracy:.1%}`; a brace of their own is
written twice.
"""

from __future__ import annotations

import re
import shlex
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from docs.tools.lecture_paths import split_path
from netdsl.errors import NetError, fail

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROWS = DOCS / "lecture"
STATUSES = ("shown", "caveat", "not here")
DATA = ("mnist", "cifar10", "hymenoptera", "squeezenet")
REFUSED, SLOW = "# refused", "# slow"
_TEXTS = (
    *("title", "claim", "status", "caveat", "file", "result"),
    *("picture", "alt", "change", "answer"),
)
_LISTS = ("commands", "needs")
_SUFFIX = re.compile(r"\s+#\s.*$")
_NAME = re.compile(r"\d\d[a-z]?-[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class LectureCommand:
    """A command of a row, without the remark at its end."""

    text: str
    is_refused: bool = False
    is_slow: bool = False

    @property
    def words(self) -> list[str]:
        """Its words after `netdsl`."""
        return shlex.split(self.text, comments=True)[1:]


@dataclass(frozen=True)
class Figure:
    """A number that a command prints, and the bounds within which each run must find it."""

    command: str
    at: str
    at_least: float | None
    at_most: float | None

    def check(self, value: float) -> str | None:
        """Returns what is wrong with a value, or None."""
        if self.at_least is not None and not value >= self.at_least:
            return f"{value:.6g} is below {self.at_least:g}"
        if self.at_most is not None and not value <= self.at_most:
            return f"{value:.6g} is above {self.at_most:g}"
        return None


@dataclass(frozen=True)
class LectureRow:
    path: Path
    texts: Mapping[str, str]
    commands: tuple[LectureCommand, ...]
    needs: tuple[str, ...]
    figures: Mapping[str, Figure]

    @property
    def name(self) -> str:
        """Such as 10-receptive_field."""
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name.split("-")[0].lstrip("0")

    @property
    def record(self) -> Path:
        """The file of what was measured."""
        return self.path.with_suffix(".json")

    @property
    def status(self) -> str:
        return self.texts["status"]

    @cached_property
    def files(self) -> frozenset[str]:
        """The .net files that it names, as `file` or in a command."""
        words = " ".join([self.texts.get("file", ""), *(c.text for c in self.commands)])
        return frozenset(re.findall(r"models/[\w/.]+\.net", words))

    def figures_of(self, command: LectureCommand) -> dict[str, Figure]:
        return {n: f for n, f in self.figures.items() if f.command == command.text}

    def format(self, key: str, figures: Mapping[str, float]) -> str:
        """The text of a key with its figures; empty if the row has no such text."""
        return self.texts.get(key, "").format_map(figures)

    def fields(self, key: str) -> frozenset[str]:
        """The figures that a text shows."""
        text = self.texts.get(key, "")
        return frozenset(name for _, name, _, _ in string.Formatter().parse(text) if name)


FORMATTED = ("result", "caveat", "answer")
"""The texts with figures."""


def read_rows(folder: Path = ROWS) -> list[LectureRow]:
    """Returns the rows in their order. Raises NetError with the mistakes of the first row that has
    some."""
    return [read_row(path) for path in sorted(folder.glob("*.toml"))]


def read_row(path: Path, root: Path = ROOT) -> LectureRow:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise fail(f"{path.name}: {e}") from None
    errors = [*_check_keys(table)]
    if not errors:
        row, errors = _make_row(path, table, root)
        errors += _check_row(row, root)
    if not _NAME.fullmatch(path.stem):
        errors.append("the name is not NUMBER-WORDS.toml, such as 12a-batchnorm-rates.toml")
    if errors:
        raise NetError(*(d for e in errors for d in fail(f"{path.name}: {e}").diagnostics))
    return row


def header_commands(text: str) -> list[LectureCommand]:
    """The commands in the comments of a .net file."""
    lines = (x.removeprefix("#   ") for x in text.splitlines() if x.startswith("#   "))
    return [read_command(x) for x in lines if x.startswith("netdsl ")]


def read_command(text: str) -> LectureCommand:
    is_refused, is_slow = text.endswith(REFUSED), text.endswith(SLOW)
    return LectureCommand(_SUFFIX.sub("", text), is_refused, is_slow)


def _check_keys(table: dict[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if key in _TEXTS:
            if not isinstance(value, str) or not value.strip():
                yield f"`{key}` is not a text"
        elif key in _LISTS:
            if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
                yield f"`{key}` is not a list of texts"
        elif key == "figures":
            if not isinstance(value, dict) or not all(isinstance(x, dict) for x in value.values()):
                yield "`figures` is not a table of tables, such as [figures.accuracy]"
        else:
            known = ", ".join((*_TEXTS, *_LISTS, "figures"))
            yield f"unknown key `{key}`; known are {known}"
    for key in ("title", "claim", "status"):
        if key not in table:
            yield f"`{key}` is missing"


def _make_row(path: Path, table: dict[str, Any], root: Path) -> tuple[LectureRow, list[str]]:
    errors, commands = [], []
    if "file" in table:
        if (root / table["file"]).is_file():
            commands = header_commands((root / table["file"]).read_text(encoding="utf-8"))
        else:
            errors.append(f"there is no file {table['file']}")
    commands += [read_command(x) for x in table.get("commands", [])]
    figures = {}
    for name, keys in table.get("figures", {}).items():
        wrong = [*_check_figure(name, keys, {c.text: c for c in commands})]
        errors += wrong
        if not wrong:
            figures[name] = _make_figure(keys)
    texts = {key: table[key].strip() for key in _TEXTS if key in table}
    row = LectureRow(path, texts, tuple(commands), tuple(table.get("needs", [])), figures)
    return row, errors


def _make_figure(keys: dict[str, Any]) -> Figure:
    return Figure(
        _SUFFIX.sub("", keys["command"]), keys["at"], keys.get("at_least"), keys.get("at_most")
    )


def _check_figure(
    name: str, keys: dict[str, Any], commands: dict[str, LectureCommand]
) -> Iterator[str]:
    label = f"figure `{name}`"
    if not name.isidentifier():
        yield f"{label}: the name is not letters, digits and underscores"
    for key in keys.keys() - {"command", "at", "at_least", "at_most"}:
        yield f"{label}: unknown key `{key}`"
    for key in ("command", "at"):
        if not isinstance(keys.get(key), str):
            yield f"{label}: `{key}` is missing or not a text"
            return
    bounds = [keys[key] for key in ("at_least", "at_most") if key in keys]
    if not bounds:
        yield f"{label}: it has no bound, `at_least` or `at_most`"
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in bounds):
        yield f"{label}: a bound is not a number"
    elif len(bounds) == 2 and bounds[0] > bounds[1]:
        yield f"{label}: no value is {bounds[0]} or more and {bounds[1]} or less"
    command = commands.get(_SUFFIX.sub("", keys["command"]))
    if not command:
        yield f"{label}: `{keys['command']}` is not a command of the row"
    elif command.is_refused:
        yield f"{label}: `{command.text}` is refused, so it prints no figures"
    try:
        split_path(keys["at"])
    except NetError as e:
        yield f"{label}: {e.message}"


def _check_row(row: LectureRow, root: Path) -> list[str]:
    texts = row.texts
    errors = [f"`{c.text}` is not a netdsl command" for c in row.commands if not _is_netdsl(c)]
    errors += [f"`{c}` is listed twice" for c in _repeated(c.text for c in row.commands)]
    if row.status not in STATUSES:
        errors.append(f"status `{row.status}` is not one of {', '.join(STATUSES)}")
    if (row.status == "shown") == ("caveat" in texts):
        errors.append("`caveat` is for rows that are not `shown`, and they need it")
    if row.status != "not here" and not (row.commands and row.figures and "result" in texts):
        errors.append("what is shown here needs a command, a figure and `result`")
    for key, other in (("picture", "alt"), ("change", "answer")):
        if (key in texts) != (other in texts):
            errors.append(f"`{key}` and `{other}` belong together")
    if "picture" in texts and not (root / "docs" / texts["picture"]).is_file():
        errors.append(f"there is no picture docs/{texts['picture']}")
    errors += [
        f"needs `{x}`, which is not one of {', '.join(DATA)}" for x in row.needs if x not in DATA
    ]
    errors += [f"there is no file {x}" for x in sorted(row.files) if not (root / x).is_file()]
    if re.search(r"[`*_\[\]<>]", texts["title"]):
        errors.append("`title` holds Markdown; it is plain text")
    return errors + _check_formats(row)


def _is_netdsl(command: LectureCommand) -> bool:
    try:
        return command.text.startswith("netdsl ") and bool(command.words)
    except ValueError:  # a quotation mark that is not closed
        return False


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [x for x in names if x in seen or seen.add(x)]  # type: ignore[func-returns-value]


def _check_formats(row: LectureRow) -> list[str]:
    errors = []
    for key in FORMATTED:
        try:
            missing = row.fields(key) - set(row.figures)
            errors += [f"`{key}` shows `{x}`, which is no figure" for x in sorted(missing)]
            if not missing:
                row.format(key, dict.fromkeys(row.figures, 0.5))
        except (ValueError, KeyError, IndexError, AttributeError) as e:
            errors.append(
                f"`{key}` cannot be formatted ({e}); braces of the text are written twice"
            )
    return errors
