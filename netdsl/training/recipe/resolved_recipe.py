"""The resolved recipe: one self-contained file that repeats a run, with all defaults spelled
out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from netdsl.data.config import SIGNATURE as DATA
from netdsl.errors import NetError, Source, Span
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.inline import inline_uses
from netdsl.language.parse import parse_expression
from netdsl.language.program import Program, evaluate_section
from netdsl.signature import BoundCall, Signature
from netdsl.training.recipe.net_data import find_data_of_net
from netdsl.training.recipe.recipe import SIGNATURE, find_recipe_of_net, stage_names
from netdsl.values import Symbol, Value, format_value

Pin = Callable[[BoundCall], BoundCall]
"""Replaces the paths of a source by those where its files were found."""


def resolve_file(program: Program, name: str | None, pin: Pin = lambda call: call) -> s.File:
    """Returns one self-contained file that repeats a run: this recipe, now unnamed, and the recipes
    it comes after. Recipes and data sections spell out every default, so later changes of defaults
    do not affect it, and `pin` changes the paths in them. Resolving the result again, or any of its
    recipes, gives the same file."""
    file = inline_uses(program)
    if program.find_section("train", name) is None:
        return file
    *before, _ = stage_names(program, name)
    budget = Budget()
    sections = {x.name: _resolve_data(program, x, budget, pin) for x in program.sections("data")}
    kept = (i for i in file.items if not isinstance(i, s.Section))
    own = [sections[n] for n in sorted(sections, key=str)]
    own += [_resolve_section(without_expectations(program), stage, budget, pin) for stage in before]
    last = replace(_resolve_section(program, name, budget, pin), name=None)
    return replace(file, items=(*kept, *own, last))


def resolve_net_file(program: Program, net: str) -> s.File:
    """Returns one self-contained file of a net, which may be any of those that the program sees:
    with the recipe of `recipe_of_net`, now unnamed. Its recipe names the net, so that what reads
    the text uses this one and no other."""
    section = find_recipe_of_net(program, net)
    if section is not None:
        return resolve_file(program, section.name)
    span = Span(Source(program.name, ""), 0, 0)
    others = tuple(i for i in program.items if not isinstance(i, s.Section))
    data = find_data_of_net(program, net) or s.Section(span, "data", None, ())
    entry = s.SectionEntry(span, "net", s.Name(span, net))
    own = s.Section(span, "train", None, (entry,))
    return resolve_file(replace(program, items=(*others, replace(data, name=None), own)), None)


def _resolve_data(program: Program, section: s.Section, budget: Budget, pin: Pin) -> s.Section:
    """A data section with every default filled in; unchanged if it is incomplete, in which case no
    recipe can use it."""
    found = program.find_section("data", section.name)
    assert found is not None
    try:
        return _fill_defaults(program, found, DATA, budget, pin)
    except NetError:
        return section


def _data_section(program: Program, stage: str | None) -> s.Section | None:
    section = program.find_section("train", stage)
    return program.find_section(
        "data", program.reference_name(section, "data") if section else None
    )


def _resolve_section(program: Program, name: str | None, budget: Budget, pin: Pin) -> s.Section:
    section, data = program.find_section("train", name), _data_section(program, name)
    assert section is not None
    net = Symbol(program.resolve_net_name(program.reference_name(section, "net")))
    known = Symbol(data.name) if data is not None and data.name else None
    return _fill_defaults(program, section, SIGNATURE, budget, pin, net=net, data=known)


def without_expectations(
    program: Program, is_left_out: Callable[[s.Expression], bool] = lambda condition: True
) -> Program:
    """The program without expectations, or without those that are chosen. Recipes that run before
    another have none: only those of the last recipe are judged, and a recipe would inherit those of
    the unnamed one."""

    def is_kept(entry: s.SectionEntry | s.Expect) -> bool:
        return isinstance(entry, s.SectionEntry) or not is_left_out(entry.condition)

    def without(item: s.Item) -> s.Item:
        if not isinstance(item, s.Section):
            return item
        return replace(item, entries=tuple(filter(is_kept, item.entries)))

    return replace(program, items=tuple(without(i) for i in program.items))


_SOURCES = ("source", "init")
"""The keys whose values name files."""


def _fill_defaults(
    program: Program,
    section: s.Section,
    signature: Signature,
    budget: Budget,
    pin: Pin,
    **known: Value,
) -> s.Section:
    """The section with an entry for every key."""
    bound = signature.bind(evaluate_section(program, section, budget), section.span) | known
    bound |= {key: pin(bound[key]) for key in _SOURCES if bound.get(key) is not None}
    entries = [
        s.SectionEntry(section.span, key, parse_expression(format_value(value), f"{key} = "))
        for key, value in bound.items()
    ]
    kept = (e for e in section.entries if isinstance(e, s.Expect))
    return replace(section, entries=(*entries, *kept))
