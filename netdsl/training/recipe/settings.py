"""Applies `--set` to the file of a recipe, with the keys of the sections and their defaults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from netdsl.data.config import SIGNATURE as DATA_SIGNATURE
from netdsl.language import syntax as s
from netdsl.language.override import SectionKeys, Setting, override, parse_setting
from netdsl.language.program import Program, build_program
from netdsl.training.recipe.key_homes import find_calls
from netdsl.training.recipe.recipe import HOMES, net_name
from netdsl.training.recipe.recipe import SIGNATURE as TRAIN_SIGNATURE
from netdsl.values import Symbol

_SECTIONS = (TRAIN_SIGNATURE, DATA_SIGNATURE)
_CALLS = tuple(
    call for section in reversed(_SECTIONS) for call in find_calls(section) if not call.is_list
)
"""What keys take as a call, the source of the data first."""


_DEFAULTS = {f"{x.name}.{p.name}": p.default for x in _SECTIONS for p in x.params}


def _list_keys() -> Iterator[str]:
    for signature in _SECTIONS:
        yield from (f"{signature.name}.{p.name}" for p in signature.params)
    for call in _CALLS:
        yield from (f"{call.key}.{argument}" for argument in call.arguments)


SECTION_KEYS = SectionKeys(
    tuple(dict.fromkeys(_list_keys())),
    {
        call.key: call.name
        for call in _CALLS
        if call.arguments and Symbol(call.name) == _DEFAULTS.get(call.key)
    },
    HOMES,
    {(call.key, call.name): call.arguments for call in _CALLS},
)


def override_recipe(file: s.File, settings: Sequence[str | Setting], recipe: str | None) -> Program:
    """The program of a file with `--set` applied; a bare name there is a parameter of the recipe's
    net, which another setting may choose."""
    program = build_program(file)
    if not settings:
        return program
    parsed = [x if isinstance(x, Setting) else parse_setting(x) for x in settings]
    used = program.net_table.used
    choices = [x for x in parsed if x.key.startswith("train.") and x.key.endswith(".net")]
    if choices:
        program = build_program(override(file, choices, None, used, SECTION_KEYS))
    net = net_name(program, recipe)
    return build_program(override(file, parsed, net, used, SECTION_KEYS))
