"""The .net text that imported weights carry: the net, and how its images are prepared."""

from __future__ import annotations

from dataclasses import replace

from netdsl.data.config import resolve_data
from netdsl.errors import NetError, Source, Span
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.format import format_file
from netdsl.language.network import Network
from netdsl.language.parse import parse_expression
from netdsl.language.program import Program, evaluate_section
from netdsl.training.recipe.resolved_recipe import resolve_file

_NO_SPAN = Span(Source("import", ""), 0, 0)


def weights_text(program: Program, network: Network, normalize: str | None) -> tuple[str, str]:
    """A self-contained text of a net with one data section and one recipe, and a line that says
    where its data section comes from: that of a recipe for this net in its file, else the only one
    whose recipes train nets for images of this size, else a new one. `normalize`, as it would be
    written there, replaces the section's own. Raises NetError if it is invalid."""
    found = _find_data(program, network)
    section = found or s.Section(_NO_SPAN, "data", None, ())
    if normalize is not None:
        section = _set_entry(section, "normalize", parse_expression(normalize, "--normalize "))
    budget = Budget()
    resolve_data(evaluate_section(program, section, budget), section.span)
    train = s.Section(_NO_SPAN, "train", None, (_entry("net", s.Name(_NO_SPAN, network.name)),))
    kept = (i for i in program.items if not isinstance(i, s.Section | s.Test))
    items = (*kept, replace(section, name=None), train)
    return format_file(resolve_file(replace(program, items=items), None)), _describe(found, section)


def _describe(found: s.Section | None, section: s.Section) -> str:
    entries = {e.name: e for e in section.entries if isinstance(e, s.SectionEntry)}
    if found is None:
        return (
            ""
            if "normalize" in entries
            else (
                "pixels are scaled to 0..1 and not normalised; `--normalize imagenet` is what most "
                "weights of PyTorch expect"
            )
        )
    name = f"`data {found.name}`" if found.name else "`data`"
    return f"images are prepared as in {name} of the net's file"


def _find_data(program: Program, network: Network) -> s.Section | None:
    """The data section of a recipe for this net, else of the recipes for nets of its image size, if
    they have only one."""
    users: dict[str, list[s.Section]] = {}
    for recipe in program.sections("train"):
        net = program.reference_name(recipe, "net") or program.resolve_net_name()
        section = program.find_section("data", program.reference_name(recipe, "data"))
        if section is not None:
            users.setdefault(net, []).append(section)
    if network.name in users:
        return users[network.name][0]
    alike = [x for net, found in users.items() if _takes(program, net, network) for x in found]
    names = {x.name for x in alike}
    return alike[0] if len(names) == 1 else None


def _takes(program: Program, net: str, network: Network) -> bool:
    """Whether another net of a file takes images of the same size."""
    try:
        return elaborate(program, net, Settings()).image_shape == network.image_shape
    except NetError:
        return False


def _set_entry(section: s.Section, name: str, value: s.Expression) -> s.Section:
    others = tuple(
        e for e in section.entries if not (isinstance(e, s.SectionEntry) and e.name == name)
    )
    return replace(section, entries=(*others, _entry(name, value)))


def _entry(name: str, value: s.Expression) -> s.SectionEntry:
    return s.SectionEntry(value.span, name, value)
