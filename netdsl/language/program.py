"""A program: the definitions of a file and of the files it uses, by name, ready to elaborate."""

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
from netdsl.language.budget import Budget, Errors, limit_error
from netdsl.language.evaluate import Scope, evaluate, evaluate_arguments
from netdsl.language.parse import count_tokens
from netdsl.language.unparse import expression_text
from netdsl.language.upgrade import parse_any_format
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
        """Whether there is a `train` section of that name."""
        return name is not None and name in self._sections["train"]

    def has_all_defaults(self, name: str) -> bool:
        """Whether a net can be elaborated without arguments."""
        item = self.nets[name]
        return not isinstance(item, s.Net) or all(p.default is not None for p in item.params)

    def resolve_net_name(self, name: str | None = None, span: Span | None = None) -> str:
        """Returns `name`, or by default the file's first net. Raises NetError if it does not
        exist."""
        if name is None:
            if not self.nets:
                raise fail(
                    f"{self.name} contains no `net`", help="a net is written `net NAME { ... }`"
                )
            return next(iter(self.nets))
        if name not in self.nets:
            help = suggest_name(name, self.nets, "nets here")
            raise fail(f"{self.name} contains no net called `{name}`", span, help=help)
        return name

    def find_section(self, kind: str, name: str | None = None) -> s.Section | None:
        """Returns a section of a kind; without a name the unnamed one, else the first, if any.

        A named section inherits the entries of the unnamed one that it does not set itself.
        """
        sections = self._sections[kind]
        unnamed = sections.get(None)
        if name is None:
            return unnamed or next(iter(sections.values()), None)
        if name not in sections:
            known = [n for n in sections if n]
            help = suggest_name(name, known, f"{kind} sections here")
            if not known:
                help = f"this file has no named {kind} section"
            raise fail(f"{self.name} contains no `{kind}` section called `{name}`", help=help)
        return _inherit(unnamed, sections[name]) if unnamed else sections[name]


def _inherit(base: s.Section, section: s.Section) -> s.Section:
    own_names = {e.name for e in section.entries if isinstance(e, s.SectionEntry)}
    has_expectations = any(isinstance(e, s.Expect) for e in section.entries)
    inherited_entries = (
        e
        for e in base.entries
        if (e.name not in own_names if isinstance(e, s.SectionEntry) else not has_expectations)
    )
    return replace(section, entries=(*inherited_entries, *section.entries))


TextReader = Callable[[str], str]
SUFFIX = ".net"


def read_text(path: str) -> str:
    """Reads a file. Raises NetError if it is not a regular file or cannot be read."""
    with open_regular_file(Path(path)) as f:
        try:
            return decode_text(f.read(MAX_FILE_BYTES + 1), path)
        except OSError as e:
            raise fail(f"cannot read {path}: {e.strerror or e}") from None


def reject_read(path: str) -> str:
    """The reader for a text that comes with weights: such a text must not read other files."""
    raise fail(
        f"`use` of {path} in a text that must be self-contained",
        help="a checkpoint and a run's recipe.net contain every block themselves",
    )


def decode_text(content: bytes, name: str) -> str:
    """Decodes UTF-8 without a byte order mark. Raises NetError if it is invalid or too long."""
    if len(content) > MAX_FILE_BYTES:
        raise fail(f"{name} has over {MAX_FILE_BYTES:,} bytes; a .net file is never that long")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fail(f"{name} is not UTF-8 text", help="is it a .net file?") from None


def load_program(path: str, read: TextReader = read_text) -> Program:
    """Loads the program in a file. Raises NetError with the errors in it and in the files it
    uses."""
    return build_program(parse_file(path, read), read)


def parse_file(path: str, read: TextReader = read_text) -> s.File:
    """Parses a file. Errors quote its text only if the file, and the target if it is a link, are
    named .net: other files may be private."""
    text = read(path)
    try:
        return parse_any_format(text, path)
    except NetError as e:
        places = [d.span.position for d in e.diagnostics if d.span]
        if is_net_file(path) or not places:
            raise
        line, column = places[0]
        help = "lines are shown only for files whose names end in .net"
        message = f"{path} is not a .net file: line {line}, column {column} cannot be parsed"
        raise fail(message, help=help) from None


def is_net_file(path: str) -> bool:
    """Whether a path, and its target if it is a link, end in .net."""
    try:
        return all(p.suffix == SUFFIX for p in (Path(path), Path(path).resolve()))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a cycle of links
        return False


def build_program(file: s.File, read: TextReader = read_text) -> Program:
    """Builds the program of a syntax tree, with the blocks of every `use`."""
    name = file.span.source.name
    errors = Errors()
    budget = Budget(tokens=count_tokens(file.span.source.text))
    blocks = _load_used_blocks(file, read, (os.path.normpath(name),), errors, {}, budget)
    own_blocks: dict[str, s.Block] = {}
    nets: dict[str, s.Net | s.Instance] = {}
    for item in file.items:
        if isinstance(item, s.Block):
            _define(own_blocks, item, "block", errors)
        elif isinstance(item, s.Net | s.Instance):
            _define(nets, item, "net", errors)
    _check_sections(file, errors)
    all_blocks = _merge_blocks(blocks, own_blocks, file.span, errors)
    errors.raise_if_any()
    return Program(name, file.items, all_blocks, nets)


def _define(table: dict[str, Any], item: Any, what: str, errors: Errors) -> None:
    if item.name in table:
        first = table[item.name].span
        note = f"the first is at {first}"
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
        entries = [e for e in item.entries if isinstance(e, s.SectionEntry)]
        counts = Counter(e.name for e in entries)
        last = {e.name: e for e in entries}
        for name, count in counts.items():
            if count > 1:
                errors.add(Diagnostic(f"`{name}` is given {count} times", last[name].span))


def _load_used_blocks(
    file: s.File,
    read: TextReader,
    use_chain: tuple[str, ...],
    errors: Errors,
    blocks_by_file: dict[str, dict[str, s.Block]],
    budget: Budget,
) -> dict[str, s.Block]:
    """Returns the blocks of the files that `file` uses, directly or indirectly.

    `use_chain` holds the files that led here, `blocks_by_file` the blocks of files already read.
    """
    blocks: dict[str, s.Block] = {}
    seen: set[str] = set()
    directory = os.path.dirname(file.span.source.name)
    for item in file.items:
        if not isinstance(item, s.Use):
            continue
        target = os.path.normpath(os.path.join(directory, item.path))
        if target in use_chain:
            cycle = " uses ".join((*use_chain[use_chain.index(target) :], target))
            errors.add(Diagnostic("files use each other in a cycle", item.span, None, (cycle,)))
        elif len(use_chain) > MAX_CHAIN_LENGTH:
            help = "use the files that are needed, not those that use them"
            errors.add(Diagnostic(f"files use files over {MAX_CHAIN_LENGTH} deep", item.span, help))
        elif target not in seen:
            seen.add(target)
            try:
                if target not in blocks_by_file:
                    used_file = _parse_used_file(read, target, directory)
                    budget.spend_tokens(count_tokens(used_file.span.source.text), item.span)
                    used_blocks = _load_used_blocks(
                        used_file, read, (*use_chain, target), errors, blocks_by_file, budget
                    )
                    own_blocks = {b.name: b for b in used_file.items if isinstance(b, s.Block)}
                    blocks_by_file[target] = _merge_blocks(
                        used_blocks, own_blocks, item.span, errors
                    )
                blocks = _merge_blocks(blocks, blocks_by_file[target], item.span, errors)
            except NetError as e:
                errors.collect(e.with_default_span(item.span))
    return blocks


def _parse_used_file(read: TextReader, target: str, directory: str) -> s.File:
    folder = f"`{directory}`" if directory else "the current one"
    path_help = f"the path is relative to the folder of the file that contains it, here {folder}"

    def read_with_help(path: str) -> str:
        try:
            return read(path)
        except NetError as e:
            raise NetError(*(replace(d, help=d.help or path_help) for d in e.diagnostics)) from None

    return parse_file(target, read_with_help)


def _merge_blocks(
    a: dict[str, s.Block], b: dict[str, s.Block], span: Span, errors: Errors
) -> dict[str, s.Block]:
    """Merges two tables; a name with two definitions is an error, since each file means its
    own."""
    for name in a.keys() & b.keys():
        if a[name] is not b[name]:
            message = f"the block `{name}` is defined in two files"
            notes = (f"at {a[name].span}", f"at {b[name].span}")
            errors.add(Diagnostic(message, span, "rename one of them", notes))
    return a | b


def inline_uses(program: Program) -> s.File:
    """Returns a self-contained syntax tree: every `use` replaced by the blocks it brings in."""
    own_names = {i.name for i in program.items if isinstance(i, s.Block)}
    used_blocks = tuple(b for name, b in program.blocks.items() if name not in own_names)
    own_items = tuple(i for i in program.items if not isinstance(i, s.Use))
    span = Span(Source(program.name, ""), 0, 0)
    return s.File(span, used_blocks + own_items)


def evaluate_section(section: s.Section, budget: Budget) -> tuple[Argument, ...]:
    """Evaluates the entries of a section."""
    entries = [e for e in section.entries if isinstance(e, s.SectionEntry)]
    budget.spend_leaves(len(entries), section.span)
    scope = Scope(budget=budget)
    return evaluate_arguments([s.Arg(e.span, e.name, e.value) for e in entries], scope)


def signature_of(item: s.Block | s.Net) -> Signature:
    """The signature of a block or net; defaults are evaluated when they are bound."""
    params = (
        Param(p.name, AnyValue(), Symbol(expression_text(p.default)) if p.default else REQUIRED)
        for p in item.params
    )
    return Signature(item.name, tuple(params))


def bind_params(
    item: s.Block | s.Net, arguments: Sequence[Argument], span: Span | None, budget: Budget
) -> dict[str, Value]:
    """Returns the values of all parameters; a default may use the parameters before it."""
    budget.spend_leaves(len(item.params), span)
    bound = signature_of(item).bind(arguments, span)
    given_names = {a.name for a in name_arguments(item.params, arguments)}
    values: dict[str, Value] = {}
    for p in item.params:
        if p.name in given_names or p.default is None:
            values[p.name] = bound[p.name]
        else:
            values[p.name] = evaluate(p.default, Scope(values, budget=budget))
    return values


def resolve_instance(
    program: Program, name: str, budget: Budget
) -> tuple[s.Net, dict[str, Argument]]:
    """Returns the net behind a name, and the arguments from its instances, by parameter name.

    An instance of an instance overrides its arguments. Raises NetError on a cycle.
    """
    seen: list[str] = []
    argument_lists: list[tuple[Argument, ...]] = []
    item = program.nets[name]
    while isinstance(item, s.Instance):
        if item.name in seen:
            raise fail(
                f"`{name}` is defined in terms of itself: {' = '.join([*seen, item.name])}",
                item.span,
            )
        if len(seen) == MAX_CHAIN_LENGTH:
            message = f"`{name}` is an instance of instances, over {MAX_CHAIN_LENGTH} deep"
            raise limit_error(message, item.span, "give the arguments to the net itself")
        seen.append(item.name)
        argument_lists.append(evaluate_arguments(item.args, Scope(budget=budget)))
        item = program.nets[program.resolve_net_name(item.base, item.span)]
    arguments_by_name: dict[str, Argument] = {}
    for arguments in reversed(argument_lists):
        signature_of(item).bind(arguments, program.nets[name].span, partial=True)
        arguments_by_name |= {a.name: a for a in name_arguments(item.params, arguments) if a.name}
    return item, arguments_by_name


def name_arguments(
    params: Sequence[s.Parameter], arguments: Sequence[Argument]
) -> Iterator[Argument]:
    """Yields the arguments, positional ones with the name of their parameter."""
    for i, a in enumerate(arguments):
        is_positional = a.name is None and i < len(params)
        yield replace(a, name=params[i].name) if is_positional else a
