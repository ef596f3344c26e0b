"""Applies `--set` to the file of a recipe, with the keys of the sections and their defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from netdsl.data.config import SIGNATURE as DATA_SIGNATURE
from netdsl.language import syntax as s
from netdsl.language.override import SectionKeys, Setting, override
from netdsl.language.program import Program, build_program
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.recipe import HOMES, net_name
from netdsl.training.recipe.recipe import SIGNATURE as TRAIN_SIGNATURE
from netdsl.training.recipe.schedules import SCHEDULES
from netdsl.values import Symbol

_TABLES: Mapping[str, Mapping[str, Any]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
}
"""The keys of `train` whose value is a call, with the records of what may be called."""


def _list_keys() -> Iterator[str]:
    for signature in (TRAIN_SIGNATURE, DATA_SIGNATURE):
        yield from (f"{signature.name}.{p.name}" for p in signature.params)
    for key, records in _TABLES.items():
        for record in records.values():
            yield from (f"train.{key}.{p.name}" for p in record.signature.params)


SECTION_KEYS = SectionKeys(
    tuple(dict.fromkeys(_list_keys())),
    {
        f"train.{p.name}": p.default.name
        for p in TRAIN_SIGNATURE.params
        if p.name in _TABLES and isinstance(p.default, Symbol)
    },
    HOMES,
)


def override_recipe(file: s.File, settings: Sequence[str | Setting], recipe: str | None) -> Program:
    """The program of a file with `--set` applied; a bare name there is a parameter of the recipe's
    net."""
    program = build_program(file)
    if not settings:
        return program
    net = net_name(program, recipe)
    return build_program(override(file, settings, net, program.net_table.used, SECTION_KEYS))
