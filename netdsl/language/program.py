"""A program: what a file and the files it uses define, by name, ready to be elaborated."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from netdsl.errors import Diagnostic, NetError, Source, Span, fail, suggest_name
from netdsl.file_io import open_regular_file
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors, too_much
from netdsl.language.evaluate import Scope, arguments, evaluate
from netdsl.language.parse import count_words, parse
from netdsl.language.unparse import expression
from netdsl.limits import MAX_CHAIN_LENGTH, MAX_FILE_BYTES
from netdsl.parameter_types import AnyValue
from netdsl.signature import REQUIRED, Param, Signature
from netdsl.values import Argument, Symbol, Value


@dataclass(frozen=True)
class Program:
    """A checked file: its own items, and the blocks of the files it uses."""

    name: str
    items: tuple[s.Item, ...]
    blocks: Mapping[str, s.Block]
    nets: Mapping[str, s.Net | s.Instance]

    @cached_property
    def tests(self) -> tuple[s.Test, ...]:
        return tuple(i for i in self.items if isinstance(i, s.Test))

    @cached_property
    def _sections(self) -> Mapping[str, Mapping[str | None, s.Section]]:
        """The sections of each kind by name."""
        found: dict[str, dict[str | None, s.Section]] = {"data": {}, "train": {}}
        for item in self.items:
            if isinstance(item, s.Section):
                found[item.kind][item.name] = item
        return found

    def sections(self, kind: str) -> tuple[s.Section, ...]:
        return tuple(self._sections[kind].values())

    def has_recipe(self, name: str | None) -> bool:
        """Whether a `train` section is called that."""
        return name is not None and name in self._sections["train"]

    def complete(self, name: str) -> bool:
        """Whether a net can be elaborated by its name alone, every parameter having a value."""
        item = self.nets[name]
        return not isinstance(item, s.Net) or all(p.default is not None for p in item.params)

    def net(self, name: str | None = None, span: Span | None = None) -> str:
        """A net's name, checked; the file's first net where none is asked for."""
        if name is None:
            if not self.nets:
                raise fail(
                    f"{self.name} holds no `net`", help="a net is written `net NAME { ... }`"
                )
            return next(iter(self.nets))
        if name not in self.nets:
            help = suggest_name(name, self.nets, "nets here")
            raise fail(f"{self.name} holds no net called `{name}`", span, help=help)
        return name

    def section(self, kind: str, name: str | None = None) -> s.Section | None:
        """A section of a kind. Unasked: the last unnamed one, else the first, if any.

        A named one inherits the entries of the unnamed one that it does not give itself.
        """
        all_of = self._sections[kind]
        unnamed = all_of.get(None)
        if name is None:
            return unnamed or next(iter(all_of.values()), None)
        if name not in all_of:
            known = [n for n in all_of if n]
            help = suggest_name(name, known, f"{kind} sections here")
            if not known:
                help = f"this file has no named {kind} section"
            raise fail(f"{self.name} holds no `{kind}` section called `{name}`", help=help)
        return _inherit(unnamed, all_of[name]) if unnamed else all_of[name]


def _inherit(base: s.Section, heir: s.Section) -> s.Section:
    own = {e.name for e in heir.entries if isinstance(e, s.Entry)}
    judged = any(isinstance(e, s.Expect) for e in heir.entries)
    kept = (
        e for e in base.entries if (e.name not in own if isinstance(e, s.Entry) else not judged)
    )
    return replace(heir, entries=(*kept, *heir.entries))


Reader = Callable[[str], str]
SUFFIX = ".net"


def read_text(path: str) -> str:
    """A file's text. Raises NetError where it is no regular file, or cannot be read."""
    with open_regular_file(Path(path)) as f:
        try:
            return decode(f.read(MAX_FILE_BYTES + 1), path)
        except OSError as e:
            raise fail(f"cannot read {path}: {e.strerror or e}") from None


def read_nothing(path: str) -> str:
    """The reader for a text that came with weights: what it says reads nothing of this disk."""
    raise fail(
        f"`use` of {path} in a text that carries all that it needs",
        help="a checkpoint and a run's recipe.net hold every block themselves",
    )


def decode(content: bytes, name: str) -> str:
    """Bytes as text, a byte order mark left out. Raises NetError where they are none."""
    if len(content) > MAX_FILE_BYTES:
        raise fail(f"{name} has over {MAX_FILE_BYTES:,} bytes; a .net file is never so long")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fail(f"{name} is no UTF-8 text", help="is it a .net file?") from None


def load(path: str, read: Reader = read_text) -> Program:
    """The program in a file. Raises NetError with what is wrong in it or in a file it uses."""
    return program(parse_file(path, read), read)


def parse_file(path: str, read: Reader = read_text) -> s.File:
    """The syntax tree of a file. One that does not parse is quoted only where it is called .net,
    and so is what a link leads to: other files are not for everyone to see."""
    text = read(path)
    try:
        return parse(text, path)
    except NetError as e:
        places = [d.span.position for d in e.diagnostics if d.span]
        if is_net(path) or not places:
            raise
        line, column = places[0]
        help = "a file whose name ends in .net has its lines shown"
        message = f"{path} is no .net file: line {line}, column {column} makes no sense"
        raise fail(message, help=help) from None


def is_net(path: str) -> bool:
    """Whether a file is called .net, and what it links to as well."""
    try:
        return all(p.suffix == SUFFIX for p in (Path(path), Path(path).resolve()))
    except (OSError, ValueError, RuntimeError):  # the last where links go in a circle
        return False


def program(file: s.File, read: Reader = read_text) -> Program:
    """The program of a syntax tree, with the blocks of every `use`."""
    name = file.span.source.name
    errors = Errors()
    budget = Budget(words=count_words(file.span.source.text))
    blocks = _used(file, read, (os.path.normpath(name),), errors, {}, budget)
    own: dict[str, s.Block] = {}
    nets: dict[str, s.Net | s.Instance] = {}
    for item in file.items:
        if isinstance(item, s.Block):
            _define(own, item, "block", errors)
        elif isinstance(item, s.Net | s.Instance):
            _define(nets, item, "net", errors)
    _check_sections(file, errors)
    whole = _joined(blocks, own, file.span, errors)
    errors.check()
    return Program(name, file.items, whole, nets)


def _define(table: dict[str, Any], item: Any, what: str, errors: Errors) -> None:
    if item.name in table:
        first = table[item.name].span
        note = f"the first stands at {first}"
        errors.add(Diagnostic(f"two {what}s are called `{item.name}`", item.span, None, (note,)))
    else:
        table[item.name] = item


def _check_sections(file: s.File, errors: Errors) -> None:
    seen: set[tuple[str, str | None]] = set()
    for item in file.items:
        if not isinstance(item, s.Section):
            continue
        if (item.kind, item.name) in seen:
            called = f"are called `{item.name}`" if item.name else "have no name"
            message = f"two {item.kind} sections {called}"
            help = None if item.name else f"name one of them: `{item.kind} NAME {{ ... }}`"
            errors.add(Diagnostic(message, item.span, help))
        seen.add((item.kind, item.name))
        entries = [e for e in item.entries if isinstance(e, s.Entry)]
        counts = Counter(e.name for e in entries)
        last = {e.name: e for e in entries}
        for name, count in counts.items():
            if count > 1:
                errors.add(Diagnostic(f"`{name}` is given {count} times", last[name].span))


def _used(
    file: s.File,
    read: Reader,
    path: tuple[str, ...],
    errors: Errors,
    known: dict[str, dict[str, s.Block]],
    budget: Budget,
) -> dict[str, s.Block]:
    """Blocks of the files that `file` uses, theirs included.

    `path` is the way that led here, `known` what files that were read already bring.
    """
    blocks: dict[str, s.Block] = {}
    seen: set[str] = set()
    here = os.path.dirname(file.span.source.name)
    for item in file.items:
        if not isinstance(item, s.Use):
            continue
        target = os.path.normpath(os.path.join(here, item.path))
        if target in path:
            way = " uses ".join((*path[path.index(target) :], target))
            errors.add(Diagnostic("files use each other in a circle", item.span, None, (way,)))
        elif len(path) > MAX_CHAIN_LENGTH:
            help = "use the files that are needed, not those that use them"
            errors.add(Diagnostic(f"files use files over {MAX_CHAIN_LENGTH} deep", item.span, help))
        elif target not in seen:
            seen.add(target)
            try:
                if target not in known:
                    other = _parse_used(read, target, here)
                    budget.spend_words(count_words(other.span.source.text), item.span)
                    brought = _used(other, read, (*path, target), errors, known, budget)
                    own = {b.name: b for b in other.items if isinstance(b, s.Block)}
                    known[target] = _joined(brought, own, item.span, errors)
                blocks = _joined(blocks, known[target], item.span, errors)
            except NetError as e:
                errors.collect(e.with_default_span(item.span))
    return blocks


def _parse_used(read: Reader, target: str, here: str) -> s.File:
    folder = f"`{here}`" if here else "the current one"
    rule = f"the path begins at the folder of the file that it stands in, here {folder}"

    def read_here(path: str) -> str:
        try:
            return read(path)
        except NetError as e:
            raise NetError(*(replace(d, help=d.help or rule) for d in e.diagnostics)) from None

    return parse_file(target, read_here)


def _joined(
    a: dict[str, s.Block], b: dict[str, s.Block], span: Span, errors: Errors
) -> dict[str, s.Block]:
    """Both tables; a name that means two blocks is an error, since each file means its own."""
    for name in a.keys() & b.keys():
        if a[name] is not b[name]:
            message = f"the block `{name}` is defined in two files"
            notes = (f"at {a[name].span}", f"at {b[name].span}")
            errors.add(Diagnostic(message, span, "rename one of them", notes))
    return a | b


def self_contained(program: Program) -> s.File:
    """One syntax tree that needs no other file: every `use` replaced by the blocks it brings."""
    own = {i.name for i in program.items if isinstance(i, s.Block)}
    brought = tuple(b for name, b in program.blocks.items() if name not in own)
    kept = tuple(i for i in program.items if not isinstance(i, s.Use))
    span = Span(Source(program.name, ""), 0, 0)
    return s.File(span, brought + kept)


def section_values(section: s.Section, budget: Budget) -> tuple[Argument, ...]:
    """A section's entries with their values."""
    entries = [e for e in section.entries if isinstance(e, s.Entry)]
    budget.spend_leaves(len(entries), section.span)
    scope = Scope(budget=budget)
    return arguments([s.Arg(e.span, e.name, e.value) for e in entries], scope)


def signature_of(item: s.Block | s.Net) -> Signature:
    """The parameters of a block or net; defaults are evaluated where they are bound."""
    params = (
        Param(p.name, AnyValue(), Symbol(expression(p.default)) if p.default else REQUIRED)
        for p in item.params
    )
    return Signature(item.name, tuple(params))


def bind_params(
    item: s.Block | s.Net, given: Sequence[Argument], span: Span | None, budget: Budget
) -> dict[str, Value]:
    """Values of all parameters; a default may use the parameters before it."""
    budget.spend_leaves(len(item.params), span)
    bound = signature_of(item).bind(given, span)
    present = {a.name for a in named(item.params, given)}
    values: dict[str, Value] = {}
    for p in item.params:
        if p.name in present or p.default is None:
            values[p.name] = bound[p.name]
        else:
            values[p.name] = evaluate(p.default, Scope(values, budget=budget))
    return values


def instance_chain(
    program: Program, name: str, budget: Budget
) -> tuple[s.Net, dict[str, Argument]]:
    """The net behind a name, and the arguments that its instances give it, by parameter.

    An instance of an instance overrides its arguments. Raises NetError on a circle.
    """
    seen: list[str] = []
    layers: list[tuple[Argument, ...]] = []
    item = program.nets[name]
    while isinstance(item, s.Instance):
        if item.name in seen:
            raise fail(
                f"`{name}` is defined by itself: {' = '.join([*seen, item.name])}", item.span
            )
        if len(seen) == MAX_CHAIN_LENGTH:
            message = f"`{name}` is an instance of instances, over {MAX_CHAIN_LENGTH} of each other"
            raise too_much(message, item.span, "give the net itself the arguments")
        seen.append(item.name)
        layers.append(arguments(item.args, Scope(budget=budget)))
        item = program.nets[program.net(item.base, item.span)]
    given: dict[str, Argument] = {}
    for layer in reversed(layers):
        signature_of(item).bind(layer, program.nets[name].span, partial=True)
        given |= {a.name: a for a in named(item.params, layer) if a.name}
    return item, given


def named(params: Sequence[s.Parameter], given: Sequence[Argument]) -> Iterator[Argument]:
    """Arguments with the names of the parameters that they fill."""
    for i, a in enumerate(given):
        unnamed = a.name is None and i < len(params)
        yield replace(a, name=params[i].name) if unnamed else a
