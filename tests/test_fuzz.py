"""Mutated, truncated and drawn texts: a diagnostic, or fine; never anything else, never long."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError, fail
from netdsl.insight.net_tests import run_test
from netdsl.insight.program_check import check_program
from netdsl.insight.summary import summarise
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file, format_text
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program
from netdsl.limits import MAX_ERRORS, MAX_MESSAGE_CHARACTERS
from tests import grammar_fuzzer
from tests.conftest import ROOT
from tests.syntax_trees import files

GOOD = [p.read_text() for p in sorted((ROOT / "models").glob("*.net"))]
SCRAPS = [
    *"(){}[]|;,:=*+-/%.<>~#\"'\n\t \\_$é→0",
    "->",
    "3x3",
    "1e999",
    "99999999999999999999",
    "-1",
    "0",
    " in ",
    "in.channels",
    " if ",
    " for x in [1, 2] { ",
    " shared ",
    " let ",
    " output ",
    " * 100000 ",
    " add { identity | ",
    "yes",
    "none",
    "input(8x8x1)",
    'use "x.net"',
    "batchnorm",
    "conv(",
    "range(100000)",
    "local(4, 3x3)",
    "net a = a",
    "net x = x",
    " as i",
    " if n > 1 else 2",
    "let f(n) = f(n - 1) + f(n - 2)\n",
]
SLOWEST = 10.0


def read(path: str) -> str:
    """A folder with one file."""
    if path == "x.net":
        return (
            "let x = 2\nblock x(c=x) { conv(c, 1x1) -> relu }\nnet a { input(8x8x1); x }\nnet x = a"
        )
    raise fail(f"cannot read {path}")


def mutant(rng: random.Random) -> str:
    """A good text with a few places cut, doubled, swapped or overwritten."""
    text = rng.choice(GOOD)
    if rng.random() < 0.2:
        return text[: rng.randrange(len(text))]
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        a = rng.randrange(len(text) + 1)
        b = min(len(text), a + rng.choice((0, 1, 1, 2, 5, 20)))
        match rng.randrange(4):
            case 0:
                text = text[:a] + text[b:]
            case 1:
                text = text[:a] + rng.choice(SCRAPS) + text[b:]
            case 2:
                c = rng.randrange(len(text) + 1)
                text = text[:c] + text[a:b] + text[c:]
            case 3:
                words = text.split(" ")
                i, j = rng.randrange(len(words)), rng.randrange(len(words))
                words[i], words[j] = words[j], words[i]
                text = " ".join(words)
    return text


def told(text: str) -> list[str]:
    """What is said of a text; what parses must also survive formatting."""
    try:
        tree = parse(text, "mutant.net")
        formatted = format_text(text)
        assert parse(formatted) == tree
        assert format_text(formatted) == formatted
        check_program(build_program(tree, read))
    except NetError as e:
        return [d.render() for d in e.diagnostics]
    return []


def survives(text: str) -> None:
    """A text is refused with places and sentences, or checks, in good time."""
    started = time.process_time()
    for said in told(text):
        assert said.startswith("error: ")
    assert time.process_time() - started < SLOWEST


@pytest.mark.parametrize("seed", range(8))
def test_mutants(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        survives(mutant(rng))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_twenty_thousand_mutants(seed: int) -> None:
    rng = random.Random(1000 + seed)
    for _ in range(100):
        survives(mutant(rng))


# ---- texts of the grammar and the tables --------------------------------------------------------

SLOWEST_TEXT = 5.0
"""Seconds of processor time that a command may take on one text."""
LARGEST = 2**20
"""Kilobytes that the process may have grown by."""


def _check(whole: Program) -> None:
    check_program(whole)


def _test(whole: Program) -> None:
    budget = Budget()
    for section in whole.tests:
        run_test(whole, section, budget)


def _summary(whole: Program) -> None:
    summarise(elaborate(whole))


COMMANDS: tuple[Callable[[Program], None], ...] = (_check, _test, _summary)


def bounded(text: str) -> None:
    """`fmt`, `check`, `test` and `summary` of a text end soon, with sentences of some length."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # other tests' too
    for command in (_fmt, *(partial(_read, work) for work in COMMANDS)):
        started = time.process_time()
        try:
            command(text)
        except NetError as e:
            told_well(e)
        assert time.process_time() - started < SLOWEST_TEXT
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LARGEST


def _fmt(text: str) -> None:
    tree = parse(text, "drawn.net")
    formatted = format_text(text)
    assert parse(formatted) == tree
    assert format_text(formatted) == formatted


def _read(work: Callable[[Program], None], text: str) -> None:
    work(build_program(parse(text, "drawn.net"), read))


def told_well(error: NetError) -> None:
    said = error.render()
    assert said.startswith("error: ")
    assert len(error.diagnostics) <= MAX_ERRORS
    assert len(said) < MAX_ERRORS * 8 * MAX_MESSAGE_CHARACTERS


def drawn_and_mutated(seed: int) -> str:
    r = grammar_fuzzer.TextDraw(seed)
    return grammar_fuzzer.mutate_text(r, grammar_fuzzer.draw_file(r))


@pytest.mark.parametrize("part", range(4))
def test_drawn_texts(part: int) -> None:
    for seed in range(50 * part, 50 * (part + 1)):
        bounded(drawn_and_mutated(seed))


@settings(max_examples=40)
@given(files, st.integers(0, 2**32))
def test_mutated_trees(tree: s.File, seed: int) -> None:
    bounded(grammar_fuzzer.mutate_text(grammar_fuzzer.TextDraw(seed), format_file(tree)))


def test_drawn_texts_mostly_make_sense() -> None:
    """Or what is tried is refused by the parser before it is anything."""
    made = [grammar_fuzzer.draw_file(grammar_fuzzer.TextDraw(seed)) for seed in range(160)]
    assert sum(map(_parses, made)) > 120
    assert sum(map(_checks, made)) > 1


def _parses(text: str) -> bool:
    try:
        parse(text)
    except NetError:
        return False
    return True


def _checks(text: str) -> bool:
    try:
        check_program(build_program(parse(text), read))
    except NetError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("part", range(200))
def test_twenty_thousand_drawn_texts(part: int) -> None:
    for seed in range(10**6 + 100 * part, 10**6 + 100 * (part + 1)):
        bounded(drawn_and_mutated(seed))
