"""What a file sees: its own definitions, and those of the files that it uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from netdsl.errors import Diagnostic, NetError, Span, fail, suggest_name
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors
from netdsl.language.parse import count_tokens
from netdsl.limits import MAX_CHAIN_LENGTH

NetItem = s.Net | s.Instance


@dataclass(frozen=True)
class VisibleNet:
    """A net or instance, with the nets that its own file sees: those its base may be."""

    item: NetItem
    table: NetTable = field(repr=False, compare=False)


@dataclass(frozen=True)
class NetTable:
    """The nets that a file sees. Its own hide those that it uses."""

    file: str
    own: Mapping[str, tuple[NetItem, ...]] = field(default_factory=dict)
    used: Mapping[str, tuple[VisibleNet, ...]] = field(default_factory=dict)

    @cached_property
    def visible(self) -> dict[str, tuple[VisibleNet, ...]]:
        """The nets by name; several if used files or a file itself define them several times."""
        own = {name: tuple(VisibleNet(i, self) for i in own) for name, own in self.own.items()}
        return {**self.used, **own}

    def find(self, name: str, span: Span | None = None) -> VisibleNet:
        """Returns the net of a name. Raises NetError if there is none, or more than one."""
        own = tuple(VisibleNet(i, self) for i in self.own.get(name, ()))
        return self._choose(name, own or self.used.get(name, ()), span)

    def find_base(self, instance: s.Instance) -> VisibleNet:
        """Returns the base of an instance in this file. A base of the instance's own name is a net
        of a used file, if there is one. Raises NetError as `find` does."""
        if instance.base == instance.name and instance.base in self.used:
            return self._choose(instance.base, self.used[instance.base], instance.span)
        return self.find(instance.base, instance.span)

    def _choose(self, name: str, found: tuple[VisibleNet, ...], span: Span | None) -> VisibleNet:
        if not found:
            help = suggest_name(name, [*self.own, *self.used], "nets here")
            raise fail(f"{self.file} contains no net called `{name}`", span, help=help)
        if len(found) > 1:
            message = f"several files that {self.file} uses define a net `{name}`"
            notes = tuple(f"at {x.item.span}" for x in found)
            help = (
                f"write `net my_{name} = {name}` in a file that uses only one of them, and use "
                "that file"
            )
            raise NetError(Diagnostic(message, span, help, notes))
        return found[0]


@dataclass(frozen=True)
class Definitions:
    """What a file sees: its own definitions, and those of the files that it uses."""

    nets: NetTable
    blocks: Mapping[str, s.Block] = field(default_factory=dict)
    lets: Mapping[str, s.Let] = field(default_factory=dict)


FileParser = Callable[[str, str], s.File]
"""Parses the file at a path that a file of a directory uses."""


def load_definitions(
    file: s.File, parse_used: FileParser, errors: Errors, budget: Budget
) -> Definitions:
    """Returns what `file` sees. Adds what is wrong with it, and with the files it uses, to
    `errors`."""
    name = os.path.normpath(file.span.source.name)
    loader = _Loader(parse_used, errors, budget)
    definitions = loader.load(file, (name,))
    loader.check_captures(definitions.lets)
    return definitions


_Definition = TypeVar("_Definition", s.Block, s.Let)


class _Loader:
    """Reads each used file once."""

    def __init__(self, parse_used: FileParser, errors: Errors, budget: Budget) -> None:
        self.parse_used = parse_used
        self.errors = errors
        self.budget = budget
        self.loaded: dict[str, tuple[s.File, Definitions]] = {}

    def load(self, file: s.File, use_chain: tuple[str, ...]) -> Definitions:
        """`use_chain` holds the files that led to this one."""
        blocks: dict[str, s.Block] = {}
        lets: dict[str, s.Let] = {}
        used_nets: dict[str, tuple[VisibleNet, ...]] = {}
        for use, found in self._load_uses(file, use_chain):
            blocks = self._merge("block", blocks, found.blocks, use)
            lets = self._merge("let", lets, found.lets, use)
            _add_nets(used_nets, found.nets.visible)
        is_main = len(use_chain) == 1
        return Definitions(
            NetTable(file.span.source.name, own_nets(file), used_nets),
            self._merge("block", blocks, self._own(s.Block, "block", file, is_main)),
            self._merge("let", lets, self._own(s.Let, "let", file)),
        )

    def _own(
        self, kind: type[_Definition], noun: str, file: s.File, is_strict: bool = True
    ) -> dict[str, _Definition]:
        table: dict[str, _Definition] = {}
        for item in file.items:
            if isinstance(item, kind):
                if is_strict and item.name in table:
                    self.errors.add(duplicate_error(noun, table[item.name], item))
                    continue
                table[item.name] = item
        return table

    def _merge(
        self,
        noun: str,
        a: Mapping[str, _Definition],
        b: Mapping[str, _Definition],
        use: s.Use | None = None,
    ) -> dict[str, _Definition]:
        """Merges a table with that of a used file, or a file's own if there is no `use`. A name
        with two definitions is an error, since each file means its own."""
        for name in a.keys() & b.keys():
            if a[name] is b[name]:
                continue
            first, second = a[name].span, b[name].span
            message = f"the {noun} `{name}` is defined in two files"
            if use is None:
                help = (
                    f"rename this one: {first.source.name}, which this file uses, also "
                    f"defines `{name}`"
                )
                self.errors.add(Diagnostic(message, second, help, (f"at {first}",)))
            else:
                notes = (f"at {first}", f"at {second}")
                help = "a file sees all files it uses: rename one, or use only one of the files"
                self.errors.add(Diagnostic(message, use.span, help, notes))
        return {**a, **b}

    def _load_uses(
        self, file: s.File, use_chain: tuple[str, ...]
    ) -> list[tuple[s.Use, Definitions]]:
        """The files that `file` uses directly, without those that cannot be read."""
        found: dict[str, tuple[s.Use, Definitions]] = {}
        directory = os.path.dirname(file.span.source.name)
        for item in file.items:
            if not isinstance(item, s.Use):
                continue
            target = os.path.normpath(os.path.join(directory, item.path))
            if target in use_chain:
                cycle = " uses ".join((*use_chain[use_chain.index(target) :], target))
                message = "files use each other in a cycle"
                self.errors.add(Diagnostic(message, item.span, None, (cycle,)))
            elif len(use_chain) > MAX_CHAIN_LENGTH:
                help = "`use` the files that are needed, not the files that use them"
                message = f"files use files over {MAX_CHAIN_LENGTH} deep"
                self.errors.add(Diagnostic(message, item.span, help))
            elif target not in found:
                try:
                    found[target] = item, self._load_file(item, target, directory, use_chain)
                except NetError as e:
                    self.errors.collect(e.with_default_span(item.span))
        return list(found.values())

    def _load_file(
        self, use: s.Use, target: str, directory: str, use_chain: tuple[str, ...]
    ) -> Definitions:
        if target not in self.loaded:
            file = self.parse_used(target, directory)
            self.budget.spend_tokens(count_tokens(file.span.source.text), use.span)
            definitions = self.load(file, (*use_chain, target))
            self.loaded[target] = file, definitions
        return self.loaded[target][1]

    def check_captures(self, lets: Mapping[str, s.Let]) -> None:
        """Checks that no `let` changes the meaning of a name in a file that does not see it: all
        files share one name space, as their blocks do."""
        for file, definitions in self.loaded.values():
            foreign = {k: let for k, let in lets.items() if k not in definitions.lets}
            items = (i for i in file.items if foreign and isinstance(i, s.Block | s.Let | NetItem))
            for node in (node for item in items for node in s.free_names(item)):
                let = foreign.get(node.name)
                if let is None or (isinstance(node, s.CallExpr) and let.params is None):
                    continue
                message = f"`{let.name}` means something else in {file.span.source.name}"
                self.errors.add(
                    Diagnostic(message, let.span, "rename this `let`", (f"at {node.span}",))
                )


def _add_nets(
    nets: dict[str, tuple[VisibleNet, ...]], more: Mapping[str, tuple[VisibleNet, ...]]
) -> None:
    """Adds to a table what another file sees; a net that both see counts once."""
    for name, found in more.items():
        known = nets.get(name, found)
        if known is found:
            nets[name] = found
        else:
            nets[name] = tuple({id(x.item): x for x in (*known, *found)}.values())


def own_nets(file: s.File) -> dict[str, tuple[NetItem, ...]]:
    """The nets and instances that a file defines, by name."""
    nets: dict[str, list[NetItem]] = {}
    for item in file.items:
        if isinstance(item, NetItem):
            nets.setdefault(item.name, []).append(item)
    return {name: tuple(items) for name, items in nets.items()}


def duplicate_error(
    noun: str, first: s.Block | s.Let | NetItem, second: s.SyntaxNode
) -> Diagnostic:
    """The error for two definitions of one name in a file."""
    note = f"the first is at {first.span}"
    return Diagnostic(f"two {noun}s are called `{first.name}`", second.span, None, (note,))


def find_written_net(table: NetTable, name: str) -> s.Net | None:
    """The net of that name, or the one that an instance leads to; None if it leads to none."""
    try:
        net = table.find(name)
        for _ in range(MAX_CHAIN_LENGTH):
            if isinstance(net.item, s.Net):
                return net.item
            net = net.table.find_base(net.item)
    except NetError:
        return None
    return None
