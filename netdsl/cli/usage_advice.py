"""Explains a command line that cannot be read: an unknown command or option, a missing argument."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from netdsl.foreign_words import find_advice

Commands = Mapping[str, Any]
"""The parser's commands by their names: `params`, whose `opts` are options, and `help`."""


def explain(problem: str, arguments: Sequence[str], commands: Commands) -> str:
    """The problem that the parser of the command line reports, with a help line on how to mend it
    if there is one."""
    name = next((a for a in arguments if not a.startswith("-")), "")
    for pattern, advise in (
        (r"No such command '(?P<word>.*?)'", _advise_command),
        (r"No such option: (?P<word>\S+)", _advise_option),
        (r"Option '(?P<word>--resume)' requires an argument", _advise_resume),
        (r"Got unexpected extra argument(?:s|\(s\))? \((?P<word>.*)\)", _advise_extra),
        (r"Missing |.* requires an argument", _advise_missing),
    ):
        found = re.match(pattern, problem, re.DOTALL)
        if found:
            word = found.groupdict().get("word", "")
            message = re.sub(r" \(Possible options.*| Did you mean.*", "", problem, flags=re.DOTALL)
            help = advise(word, name, arguments, commands)
            return f"{message}\nhelp: {help}" if help else message
    return problem


def _advise_command(word: str, name: str, arguments: Sequence[str], commands: Commands) -> str:
    path = word.partition(".net:")[0]
    if path != word or word.endswith(".net") or Path(word).is_file():
        return f"a command comes first: `netdsl check {word}`, `netdsl train {word}`"
    if ours := find_advice(word, ["command"]):
        return f"write `netdsl {ours}`"
    close = get_close_matches(word.lower(), commands, n=1)
    return f"did you mean `{close[0]}`?" if close else f"commands are: {', '.join(commands)}"


def _advise_option(word: str, name: str, arguments: Sequence[str], commands: Commands) -> str:
    from netdsl.training.recipe.settings import SECTION_KEYS

    option, _, _ = word.partition("=")
    params = commands[name].params if name in commands else ()
    known = [x for p in params for x in p.opts if x.startswith("--")]
    close = get_close_matches(option, known, n=1, cutoff=0.8)
    if close:
        return f"did you mean `{close[0]}`?"
    word_of_option = option.lstrip("-").replace("-", "_")
    ours = find_advice(word_of_option, ["option"]) or ""
    if ours.partition(" ")[0] in known:
        return f"write `{ours}`"
    if advice := find_advice(word_of_option, ["option without counterpart"]):
        return advice
    if bare := _drop_option(option, word, arguments):
        return f"a file is named without an option: write `netdsl {bare}`"
    key = SECTION_KEYS.find(option.lstrip("-"))
    if key is not None and "--set" in known:
        return f"write `--set {shlex.quote(f'{key}={_find_value(word, arguments)}')}`"
    if key is not None and name in ("eval", "predict"):
        return f"`{key}` is read from the weights; `netdsl {name} --help` lists the options"
    return f"`netdsl {name} --help` lists the options" if name else "`netdsl --help` lists them"


def _drop_option(option: str, word: str, arguments: Sequence[str]) -> str | None:
    """The command line with a file in the place of an option with that file as its value."""
    value = _find_value(word, arguments)
    if Path(value).suffix != ".net" and not Path(value).exists():
        return None
    others = (a for a in arguments if a != option)
    return shlex.join(value if a.startswith(f"{option}=") else a for a in others)


def _find_value(option: str, arguments: Sequence[str]) -> str:
    """The value that an unknown option was given, with `=` or as the next argument."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        before, equals, value = argument.partition("=")
        if before == option.partition("=")[0]:
            return value if equals else following.lstrip("-") or "..."
    return "..."


def _advise_resume(word: str, name: str, arguments: Sequence[str], commands: Commands) -> str:
    from netdsl.training.store.resume import list_runs

    runs = list_runs(Path("runs")) or list_runs(Path())
    if not runs:
        return "name the run's directory: `--resume runs/NAME-1`"
    return f"name the run's directory: {', '.join(f'`--resume {run}`' for run in runs)}"


def _advise_extra(word: str, name: str, arguments: Sequence[str], commands: Commands) -> str:
    extra = word.split(" ")[0]
    at = max((i for i, a in enumerate(arguments) if a == extra), default=0)
    before = arguments[at - 1] if at else ""
    can_set = name in commands and any("--set" in p.opts for p in commands[name].params)
    if can_set and re.match(r"[\w.]+=", extra):
        return f"write `--set {shlex.quote(extra)}`"
    if at > 1 and arguments[at - 2] in ("--set", "--vary") and "=" not in before:
        return f"write `{arguments[at - 2]} {before}={extra}`"
    if before.endswith(".net") and extra.isidentifier():
        return f"a net or recipe of a file is named with a colon: `{before}:{extra}`"
    return _format_example(name, commands)


def _advise_missing(word: str, name: str, arguments: Sequence[str], commands: Commands) -> str:
    return _format_example(name, commands)


def _format_example(name: str, commands: Commands) -> str:
    """The example that a command's help ends with."""
    text = commands[name].help if name in commands else ""
    found = re.search(r"^Example: (.*)$", text, re.MULTILINE)
    return f"for example: `{found[1]}`" if found else ""
