"""The .net text that imported weights carry: the net, and how its images are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from netdsl.data.config import resolve_data
from netdsl.errors import Source, Span
from netdsl.interchange.imported_net import ImportOptions, PixelNormalization
from netdsl.interchange.net_text import data_entries
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.format import format_file
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import Program, evaluate_section
from netdsl.training.recipe.net_data import find_data_of_net
from netdsl.training.recipe.resolved_recipe import resolve_file

_NO_SPAN = Span(Source("import", ""), 0, 0)


def weights_text(
    program: Program, network: Network, options: ImportOptions, pixels: PixelNormalization | None
) -> tuple[str, str]:
    """A self-contained text of a net with one data section and one recipe, and a line that says
    where its data section comes from: that of a recipe for this net in its file or for the one that
    it is an instance of, else the only one whose recipes train nets for images of this size or that
    no recipe uses, else a new one. `--normalize`, or what a net for bytes does with its `pixels`,
    replaces the section's own. Raises NetError if it is invalid."""
    entries, note = data_entries(network, options, pixels)
    section = _parse_section(entries)
    found = find_data_of_net(program, network.name)
    if found is not None:
        own = [e for e in section.entries if _name(e) == "normalize"]
        is_normalized = bool(own) or pixels is not None
        section = replace(_without(found, "normalize") if is_normalized else found, name=None)
        section = replace(section, entries=(*section.entries, *own))
        called = f"`data {found.name}`" if found.name else "`data`"
        rest = ", but for `normalize`" if is_normalized else ""
        reason = f"{note}; " if pixels is not None else ""
        note = f"{reason}images are prepared as in {called} of the net's file{rest}"
    budget = Budget()
    resolve_data(evaluate_section(program, section, budget), section.span)
    net = s.SectionEntry(_NO_SPAN, "net", s.Name(_NO_SPAN, network.name))
    kept = (i for i in program.items if not isinstance(i, s.Section | s.Test))
    items = (*kept, section, s.Section(_NO_SPAN, "train", None, (net,)))
    return format_file(resolve_file(replace(program, items=items), None)), note


def _parse_section(entries: Sequence[str]) -> s.Section:
    text = "\n".join(("data {", *entries, "}"))
    (section,) = parse(text, "data section of the weights").items
    assert isinstance(section, s.Section)
    return section


def _name(entry: s.SectionEntry | s.Expect) -> str:
    return entry.name if isinstance(entry, s.SectionEntry) else ""


def _without(section: s.Section, name: str) -> s.Section:
    return replace(section, entries=tuple(e for e in section.entries if _name(e) != name))
