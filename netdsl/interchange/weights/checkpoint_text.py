"""The .net text that imported weights carry: the net, and how its images are prepared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from netdsl.data.config import resolve_data
from netdsl.errors import NetError, Source, Span
from netdsl.interchange.imported_net import ImportOptions, PixelNormalization
from netdsl.interchange.net_text import data_entries
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.format import format_file
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import Program, evaluate_section
from netdsl.limits import MAX_CHAIN_LENGTH
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
    found = _find_data(program, network)
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


def _find_data(program: Program, network: Network) -> s.Section | None:
    """The data section of a recipe for this net, else of the recipes for nets of its image size, if
    they have only one, else the only one that no recipe uses."""
    users: dict[str, list[s.Section]] = {}
    for recipe in program.sections("train"):
        net = program.reference_name(recipe, "net") or program.resolve_net_name()
        section = program.find_section("data", program.reference_name(recipe, "data"))
        if section is not None:
            users.setdefault(net, []).append(section)
    for net in _bases(program, network.name):
        if net in users:
            return users[net][0]
    alike = [x for net, found in users.items() if _takes(program, net, network) for x in found]
    used = {x.name for found in users.values() for x in found}
    alike = alike or [x for x in program.sections("data") if x.name not in used]
    names = {x.name for x in alike}
    return alike[0] if len(names) == 1 else None


def _bases(program: Program, name: str) -> Iterator[str]:
    """A net of the file, the one that it is an instance of, and so on."""
    for _ in range(MAX_CHAIN_LENGTH):
        yield name
        item = program.nets.get(name)
        if not isinstance(item, s.Instance) or item.base == name:
            return
        name = item.base


def _takes(program: Program, net: str, network: Network) -> bool:
    """Whether another net of a file takes images of the same size."""
    try:
        return elaborate(program, net, Settings()).image_shape == network.image_shape
    except NetError:
        return False
