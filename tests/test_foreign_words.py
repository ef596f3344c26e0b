"""The words of other frameworks: what they lead to exists, and the advice can be written so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from netdsl import foreign_words
from netdsl.backends import DEVICES
from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.config import SIGNATURE as DATA
from netdsl.data.config import STATISTICS
from netdsl.data.mixing import MIXINGS
from netdsl.data.sources import SOURCES
from netdsl.errors import suggest_name
from netdsl.foreign_words import fill_examples, normalize_word
from netdsl.insight.program_check import check_program
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.layers import LAYERS
from netdsl.layers.init import INITIALISERS
from netdsl.signature import Signature
from netdsl.training.recipe.intervals import INTERVALS
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.precision import LOW_PRECISIONS, PRECISIONS
from netdsl.training.recipe.rate_rules import RATE_RULES
from netdsl.training.recipe.recipe import SIGNATURE as TRAIN
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.recipe.schedules import SCHEDULES

TABLES: dict[str, Any] = {
    "layer": LAYERS,
    "initialiser": INITIALISERS,
    "source": SOURCES,
    "augmentation": {**AUGMENTATIONS, **MIXINGS},
    "statistics": STATISTICS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "rate rule": RATE_RULES,
    "interval": INTERVALS,
    "precision": PRECISIONS,
    "16-bit type": LOW_PRECISIONS,
}
SIGNATURES: list[Signature] = [
    DATA,
    TRAIN,
    *(record.signature for table in TABLES.values() for record in table.values()),
]
NAMES = {
    *(name for table in TABLES.values() for name in table),
    *(p.name for signature in SIGNATURES for p in signature.params),
    *DEVICES,
    "input",
}
ADVICE = [
    (kind, word, fill_examples(text))
    for kind, entries in foreign_words._ADVICE.items()
    for word, text in entries.items()
]


def test_every_counterpart_exists() -> None:
    found = {n for names in foreign_words._COUNTERPARTS.values() for n in names}
    assert found <= NAMES, found - NAMES


@pytest.mark.parametrize("kind", TABLES)
def test_no_word_of_a_table_is_foreign_to_it(kind: str) -> None:
    own = set(map(normalize_word, TABLES[kind]))
    assert not own & set(foreign_words._ADVICE.get(kind, {}))
    assert not own & foreign_words._WITHOUT_COUNTERPART.get(kind, frozenset())


def test_a_word_that_means_something_else_suggests_no_neighbour() -> None:
    for kind, words in foreign_words._WITHOUT_COUNTERPART.items():
        for word in words:
            help = suggest_name(word, TABLES[kind], kinds=[kind])
            assert str(help).startswith("it has no counterpart"), (kind, word)


def test_what_is_given_is_not_suggested() -> None:
    names = ["kernel", "stride"]
    assert suggest_name("kernel_size", names, taken=["kernel"]) == (
        "`kernel` is given already; remove `kernel_size`"
    )
    assert suggest_name("strid", names, kinds=["parameter"]) == "did you mean `stride`?"
    known = suggest_name("strid", names, kinds=["parameter"], taken=["stride"])
    assert known == "known names: kernel, stride"


def entries_in(text: str) -> list[str]:
    """The entries of sections that an advice quotes."""
    return [q for q in re.findall(r"`([^`]+)`", text) if re.match(r"\w+ = ", q)]


def layers_in(text: str) -> list[str]:
    """The layers that an advice quotes."""
    quotes = re.findall(r"`([^`]+)`", text)
    return [q for q in quotes if "..." not in q and re.match(r"(\w+: )?\w+( \{|\([^)]*\) ->)", q)]


def test_the_entries_of_an_advice_can_be_written_so() -> None:
    quoted = {e for _, _, text in ADVICE for e in entries_in(text)}
    assert len(quoted) > 10
    for entry in sorted(quoted):
        section = "data" if entry.split()[0] in {p.name for p in DATA.params} else "train"
        other = "" if section == "data" else "data { source = digits }"
        source = ", source = digits" if section == "data" and "source" not in entry else ""
        file = f"net a {{ input(8x8x1) -> fc(10) }}\n{other}\n{section} {{ {entry}{source} }}"
        recipe = file if section == "train" else f"{file}\ntrain {{ epochs = 1 }}"
        resolve_recipe(build_program(parse(recipe, "advice.net")), None)


def test_the_layers_of_an_advice_can_be_written_so() -> None:
    quoted = {x for _, _, text in ADVICE for x in layers_in(text)}
    assert len(quoted) > 5
    for layers in sorted(quoted):
        begin = "input(8x8x64); a: conv(64, 1x1); b: conv(64, 1x1); x: conv(64, 1x1)"
        file = f"net n {{ {begin}\n {layers} }}"
        check_program(build_program(parse(file, "advice.net")))


@pytest.mark.parametrize(
    ("arguments", "help"),
    [
        (("fit",), "write `netdsl train FILE`"),
        (("infer",), "write `netdsl predict WEIGHTS IMAGE`"),
        (("train", "x.net", "--batch-size", "3"), "write `--set data.batch=3`"),
        (("train", "x.net", "--gpu"), "write `--device cuda`"),
    ],
)
def test_commands_of_other_tools(netdsl: Any, arguments: tuple[str, ...], help: str) -> None:
    code, _, error = netdsl(*arguments)
    assert code == 2
    assert error.endswith(f"\nhelp: {help}\n")


@pytest.mark.parametrize("values", [(), ("1",), ("1", "2"), ("1", "2", "3")])
def test_examples_are_replaced_by_as_many_values(values: tuple[str, ...]) -> None:
    filled = fill_examples("write `a=<7>, b=<8>, c=<7>`", values)
    a, b = values if len(values) == 2 else ("7", "8")
    assert filled == f"write `a={a}, b={b}, c={a}`"
