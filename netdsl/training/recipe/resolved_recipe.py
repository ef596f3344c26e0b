"""A recipe written out: one file that repeats a run by itself, every default spelled out."""

from __future__ import annotations

from dataclasses import replace

from netdsl.data.config import SIGNATURE as DATA
from netdsl.errors import NetError
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.parse import parse_expression
from netdsl.language.program import Program, evaluate_section, inline_uses
from netdsl.signature import Signature
from netdsl.training.recipe.recipe import SIGNATURE, reference_name, stage_names
from netdsl.values import Symbol, Value, format_value


def resolve_file(program: Program, name: str | None) -> s.File:
    """One file, without other files, that repeats a run by itself: its recipes are this one, now
    unnamed, and those that it comes after. Recipes and data spell out every default, so that no
    default of another day changes them. Written out again, it is the same, and so is each of its
    recipes."""
    file = inline_uses(program)
    if program.find_section("train", name) is None:
        return file
    *before, _ = stage_names(program, name)
    sections = {x.name: _resolve_data(program, x) for x in program.sections("data")}
    kept = (i for i in file.items if not isinstance(i, s.Section))
    own = [sections[n] for n in sorted(sections, key=str)]
    own += [_resolve_section(without_expectations(program), stage) for stage in before]
    return replace(file, items=(*kept, *own, replace(_resolve_section(program, name), name=None)))


def _resolve_data(program: Program, section: s.Section) -> s.Section:
    """A data section in full; as it stands where it is no whole one, which no recipe can use."""
    found = program.find_section("data", section.name)
    assert found is not None
    try:
        return _fill_defaults(found, DATA)
    except NetError:
        return section


def _data_section(program: Program, stage: str | None) -> s.Section | None:
    section = program.find_section("train", stage)
    return program.find_section("data", reference_name(section, "data") if section else None)


def _resolve_section(program: Program, name: str | None) -> s.Section:
    section, data = program.find_section("train", name), _data_section(program, name)
    assert section is not None
    net = Symbol(program.resolve_net_name(reference_name(section, "net")))
    known = Symbol(data.name) if data is not None and data.name else None
    return _fill_defaults(section, SIGNATURE, net=net, data=known)


def without_expectations(program: Program) -> Program:
    """The program of recipes that run before another: only the last one's expectations are judged,
    and a recipe would inherit those of the unnamed one."""

    def without(item: s.Item) -> s.Item:
        if not isinstance(item, s.Section):
            return item
        return replace(
            item, entries=tuple(e for e in item.entries if isinstance(e, s.SectionEntry))
        )

    return replace(program, items=tuple(without(i) for i in program.items))


def _fill_defaults(section: s.Section, signature: Signature, **known: Value) -> s.Section:
    """A section with an entry for every key."""
    bound = signature.bind(evaluate_section(section, Budget()), section.span) | known
    entries = [
        s.SectionEntry(section.span, key, parse_expression(format_value(value), f"{key} = "))
        for key, value in bound.items()
    ]
    kept = (e for e in section.entries if isinstance(e, s.Expect))
    return replace(section, entries=(*entries, *kept))
