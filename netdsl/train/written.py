"""A recipe written out: one file that repeats a run by itself, every default spelled out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from netdsl import __version__
from netdsl.data.config import SIGNATURE as DATA
from netdsl.language import syntax as s
from netdsl.language.parse import parse_expression
from netdsl.language.program import Program, section_values, self_contained
from netdsl.signature import Signature
from netdsl.train.recipe import SIGNATURE, reference, stages
from netdsl.values import Symbol, Value, show


def recipe_text(name: str | None, text: str, notes: Sequence[str] = ()) -> str:
    """The recipe.net of a run: its text, and above it what was changed on the way."""
    lines = [f"# netdsl {__version__}, train {name or 'section'}", *(f"# {n}" for n in notes)]
    return "\n".join(lines) + f"\n{text}"


def written_out(program: Program, name: str | None) -> s.File:
    """One file, without other files, that repeats a run by itself: its recipes are this one, now
    unnamed, and those that it comes after. Recipes and data spell out every default, so that no
    default of another day changes them."""
    file = self_contained(program)
    if program.section("train", name) is None:
        return file
    *before, _ = stages(program, name)
    sections = {x.name: x for stage in (*before, name) if (x := _data(program, stage))}
    kept = (i for i in file.items if not _replaced(i, sections.keys()))
    own = [_spelled(sections[n], DATA) for n in sorted(sections, key=str)]
    own += [_stage(program, stage) for stage in before]
    return replace(file, items=(*kept, *own, replace(_recipe(program, name), name=None)))


def _data(program: Program, stage: str | None) -> s.Section | None:
    section = program.section("train", stage)
    return program.section("data", reference(section, "data") if section else None)


def _recipe(program: Program, name: str | None) -> s.Section:
    section, data = program.section("train", name), _data(program, name)
    assert section is not None
    net = Symbol(program.net(reference(section, "net")))
    known = Symbol(data.name) if data is not None and data.name else None
    return _spelled(section, SIGNATURE, net=net, data=known)


def _stage(program: Program, name: str | None) -> s.Section:
    """A recipe that runs before another; only the last one's expectations are judged."""
    section = _recipe(program, name)
    return replace(section, entries=tuple(e for e in section.entries if isinstance(e, s.Entry)))


def _replaced(item: s.Item, data: Collection[str | None]) -> bool:
    """Whether an item of the file gives way to a section that is spelled out."""
    if not isinstance(item, s.Section):
        return False
    return item.kind == "train" or item.name in data


def _spelled(section: s.Section, signature: Signature, **known: Value) -> s.Section:
    """A section with an entry for every key."""
    bound = signature.bind(section_values(section), section.span) | known
    entries = [
        s.Entry(section.span, key, parse_expression(show(value), f"{key} = "))
        for key, value in bound.items()
    ]
    kept = (e for e in section.entries if isinstance(e, s.Expect))
    return replace(section, entries=(*entries, *kept))
