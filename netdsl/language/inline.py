"""Makes a file self-contained: replaces each `use` by what it brings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from netdsl.errors import NetError, Source, Span
from netdsl.language import syntax as s
from netdsl.language.program import Program
from netdsl.language.uses import NetItem, NetTable, VisibleNet


def inline_uses(program: Program) -> s.File:
    """Returns a self-contained syntax tree: the blocks and `let`s of the files that are used, the
    file's own items, and those used nets that they need. A net whose name is taken gets another."""
    own = tuple(i for i in program.items if not isinstance(i, s.Use))
    own_ids = {id(i) for i in own}
    definitions: tuple[s.Item, ...] = (*program.blocks.values(), *program.lets.values())
    brought = (x for x in definitions if id(x) not in own_ids)
    nets = _NetInliner(program)
    items = tuple(nets.rename_base(i, program.net_table) for i in own)
    return s.File(Span(Source(program.name, ""), 0, 0), (*brought, *items, *nets.inline_bases()))


class _NetInliner:
    """Collects the used nets that a file's items refer to, and the bases of these."""

    def __init__(self, program: Program) -> None:
        table = program.net_table
        references = set(_net_references(program))
        self.taken_names = {*table.own, *references}
        self.names: dict[int, str] = {}
        """The new names of used nets, by the identity of their items."""
        self.found: list[VisibleNet] = []
        for name in sorted(references - table.own.keys()):
            net = _find(table, name)
            if net is not None:
                self._add(net, name)

    def rename_base(self, item: s.Item, table: NetTable) -> s.Item:
        """The item, with the new name of its base if it is an instance; one whose base does not
        exist is left as it is."""
        if not isinstance(item, s.Instance):
            return item
        base = _find_base(table, item)
        if base is None or base.item in table.own.get(item.base, ()):
            return item
        return replace(item, base=self._name(base))

    def inline_bases(self) -> Iterator[NetItem]:
        """Yields the collected nets under their new names; their bases are collected meanwhile."""
        for net in self.found:
            item = replace(net.item, name=self._name(net))
            if isinstance(item, s.Instance) and isinstance(net.item, s.Instance):
                base = _find_base(net.table, net.item)
                item = item if base is None else replace(item, base=self._name(base))
            yield item

    def _name(self, net: VisibleNet) -> str:
        """The new name of a used net, which is collected if it was not yet."""
        if id(net.item) not in self.names:
            name, number = net.item.name, 2
            while name in self.taken_names:
                name, number = f"{net.item.name}_{number}", number + 1
            self._add(net, name)
        return self.names[id(net.item)]

    def _add(self, net: VisibleNet, name: str) -> None:
        self.taken_names.add(name)
        self.names[id(net.item)] = name
        self.found.append(net)


def _net_references(program: Program) -> Iterator[str]:
    """The names of nets in recipes, tests and instances."""
    for item in program.items:
        match item:
            case s.Test(net=str(name)):
                yield name
            case s.Instance(name=name, base=base) if name != base:
                yield base
            case s.Section(kind="train"):
                referred = program.reference_name(item, "net")
                yield from (referred,) if referred else ()


def _find(table: NetTable, name: str) -> VisibleNet | None:
    try:
        return table.find(name)
    except NetError:
        return None


def _find_base(table: NetTable, instance: s.Instance) -> VisibleNet | None:
    try:
        return table.find_base(instance)
    except NetError:
        return None
