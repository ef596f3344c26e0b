"""Mutated and truncated files: a diagnostic, or fine; never anything else, never long."""

from __future__ import annotations

import random
import time

import pytest

from netdsl.errors import NetError
from netdsl.insight.check import check_program
from netdsl.language.format import format_text
from netdsl.language.parse import parse
from netdsl.language.program import program
from tests.conftest import ROOT

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
]
SLOWEST = 10.0


def unreadable(path: str) -> str:
    raise NetError()


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
        check_program(program(tree, unreadable))
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
