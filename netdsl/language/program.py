"""A program: the definitions of a file and of the files it uses, by name, ready to elaborate."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from netdsl.errors import Diagnostic, NetError, Span, fail, suggest_name
from netdsl.file_io import open_regular_file
from netdsl.file_kinds import NET, check_kind
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors, LimitError, limit_error
from netdsl.language.evaluate import (
    TopLevel,
    bind_params,
    evaluate,
    evaluate_arguments,
    make_signature,
    name_arguments,
)
from netdsl.language.foreign_formats import explain_other_format
from netdsl.language.parse import count_tokens
from netdsl.language.upgrade import parse_any_format
from netdsl.language.uses import NetItem, NetTable, duplicate_error, load_definitions
from netdsl.limits import MAX_CHAIN_LENGTH, MAX_FILE_BYTES
from netdsl.values import Argument, Symbol, Value

CHOICE_OF_COMMAND = "say which one to use, as in `{file}:{net}`"
CHOICE_OF_RECIPE = "say which one to train: `net = {net}`"
CHOICE_OF_TEST = "say which one to test: `test {net} {{ ... }}`"
"""Where a file that has only used nets can name one of them."""


@dataclass(frozen=True)
class Program:
    """A checked file: its own items, and all that it sees: blocks, `let`s and nets include those of
    the files it uses."""

    name: str
    items: tuple[s.Item, ...]
    net_table: NetTable
    blocks: Mapping[str, s.Block]
    lets: Mapping[str, s.Let]

    @cached_property
    def nets(self) -> Mapping[str, NetItem]:
        """The file's own nets."""
        return {name: item for name, (item, *_) in self.net_table.own.items()}

    @cached_property
    def top_level(self) -> TopLevel:
        """The values of `lets`."""
        return TopLevel(self.lets)

    @cached_property
    def _references(self) -> tuple[dict[int, str | None], Budget]:
        """The names that entries refer to, by the identity of the entries, and what they cost."""
        return {}, Budget()

    def reference_name(self, section: s.Section, key: str) -> str | None:
        """Returns the name of another item that a section's key refers to, unchecked."""
        for e in section.entries:
            if isinstance(e, s.SectionEntry) and e.name == key:
                names, budget = self._references
                if id(e) not in names:
                    names[id(e)] = self._evaluate_reference(e, budget)
                return names[id(e)]
        return None

    def _evaluate_reference(self, entry: s.SectionEntry, budget: Budget) -> str | None:
        try:
            value = evaluate(entry.value, self.top_level.scope(budget))
        except LimitError:
            raise
        except NetError:
            return None
        return value.name if isinstance(value, Symbol) else None

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

    def has_net(self, name: str) -> bool:
        """Whether the file sees a net of that name, its own or a used one."""
        return name in self.nets or name in self.net_table.used

    def resolve_net_name(
        self, name: str | None = None, span: Span | None = None, choice: str = CHOICE_OF_COMMAND
    ) -> str:
        """Returns `name`, or by default the file's first own net. Raises NetError if it does not
        exist, with `choice` as help: it says where a name is written, by `{file}` and `{net}`."""
        if name is None:
            if not self.nets:
                raise self._no_net_error(span, choice)
            return next(iter(self.nets))
        self.net_table.find(name, span)
        return name

    def find_trained_net(self, recipe: str | None) -> str | None:
        """The net that a `train` section names, else the file's first own one; None if there is no
        such net."""
        section = self.find_section("train", recipe)
        name = self.reference_name(section, "net") if section else None
        if name is None:
            return next(iter(self.nets), None)
        return name if self.has_net(name) else None

    def _no_net_error(self, span: Span | None, choice: str) -> NetError:
        used = list(self.net_table.used)
        if not used:
            help = "a net is written `net NAME { ... }`"
            return fail(f"{self.name} contains no `net`", span, help=help)
        names = ", ".join(used[:_MAX_SHOWN_NETS]) + (", ..." if used[_MAX_SHOWN_NETS:] else "")
        help = f"{choice.format(file=self.name, net=used[0])}, or write `net my = {used[0]}`"
        return fail(f"{self.name} has no net of its own; it uses {names}", span, help=help)

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
            if any(isinstance(i, s.Use) for i in self.items):
                help = f"`use` does not import {kind} sections; {help}"
            if kind == "train" and self.has_net(name):
                help = self._explain_net_as_recipe(name)
            raise fail(f"{self.name} contains no `{kind}` section called `{name}`", help=help)
        return _inherit(unnamed, sections[name]) if unnamed else sections[name]

    def _explain_net_as_recipe(self, net: str) -> str:
        """What to do instead of giving a net where a recipe is wanted."""
        recipes = [x.name for x in self.sections("train")]
        trainers = [name for name in recipes if self.find_trained_net(name) == net]
        if trainers:
            recipe = f"{self.name}:{trainers[0]}" if trainers[0] else self.name
            return f"`{net}` is a net, not a recipe; `{recipe}` trains it"
        own = f"`train {net} {{ net = {net} }}`"
        other = f", or give another recipe `--set train.net={net}`" if recipes else ""
        return f"`{net}` is a net, not a recipe: write one for it, {own}{other}"


def _inherit(base: s.Section, section: s.Section) -> s.Section:
    own_names = {e.name for e in section.entries if isinstance(e, s.SectionEntry)}
    has_expectations = any(isinstance(e, s.Expect) for e in section.entries)
    inherited_entries = (
        e
        for e in base.entries
        if (e.name not in own_names if isinstance(e, s.SectionEntry) else not has_expectations)
    )
    return replace(section, entries=(*inherited_entries, *section.entries))


_MAX_SHOWN_NETS = 8
TextReader = Callable[[str], str]
SUFFIX = ".net"


def read_text(path: str) -> str:
    """Reads a file. Raises NetError if it is not a regular file, cannot be read or is of another
    kind."""
    check_kind(Path(path), NET)
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
    """Decodes UTF-8 without a byte order mark; lines may end as on any system. Raises NetError if
    it is invalid or too long."""
    if len(content) > MAX_FILE_BYTES:
        raise fail(f"{name} has over {MAX_FILE_BYTES:,} bytes; a .net file is never that long")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise _encoding_error(content, name, e.start) from None
    return text if "\n" in text else text.replace("\r", "\n")


def _encoding_error(content: bytes, name: str, position: int) -> NetError:
    """The error for a text that is not UTF-8: by its byte order mark UTF-16, else by its bytes the
    8-bit text of an editor, or no text."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return fail(f"{name} is UTF-16 text", help="save it as UTF-8")
    line = content.count(b"\n", 0, position) + 1
    message = f"{name} is not UTF-8 text: line {line:,} has the byte 0x{content[position]:02X}"
    is_text = b"\0" not in content
    return fail(message, help="save it as UTF-8" if is_text else "is it a .net file?")


def load_program(path: str, read: TextReader = read_text) -> Program:
    """Loads the program in a file. Raises NetError with the errors in it and in the files it
    uses."""
    return build_program(parse_file(path, read), read)


def parse_file(path: str, read: TextReader = read_text) -> s.File:
    """Parses a file. Errors quote its text only if the file, and the target if it is a link, are
    named .net: other files may be private."""
    text = read(path)
    try:
        return parse_any_format(text, path, os.path.dirname(path))
    except NetError as e:
        places = [d.span.position for d in e.diagnostics if d.span]
        if is_net_file(path) or not places:
            raise
        line, column = places[0]
        help = explain_other_format(text) or "lines are shown only for files that end in .net"
        message = f"{path} is not a .net file: line {line}, column {column} cannot be parsed"
        raise fail(message, help=help) from None


def is_net_file(path: str) -> bool:
    """Whether a path, and its target if it is a link, end in .net."""
    try:
        return all(p.suffix == SUFFIX for p in (Path(path), Path(path).resolve()))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a cycle of links
        return False


def build_program(file: s.File, read: TextReader = read_text) -> Program:
    """Builds the program of a syntax tree, with what every `use` brings."""
    name = file.span.source.name
    errors = Errors()
    budget = Budget(tokens=count_tokens(file.span.source.text))
    seen = load_definitions(file, partial(_parse_used_file, read), errors, budget)
    for first, *others in seen.nets.own.values():
        for other in others:
            errors.add(duplicate_error("net", first, other))
    _check_sections(file, errors)
    errors.raise_if_any()
    return Program(name, file.items, seen.nets, seen.blocks, seen.lets)


def _check_sections(file: s.File, errors: Errors) -> None:
    seen: set[tuple[str, str | None]] = set()
    for item in file.items:
        if not isinstance(item, s.Section):
            continue
        if (item.kind, item.name) in seen:
            called = f"are called `{item.name}`" if item.name else "have no name"
            message = f"two {item.kind} sections {called}"
            help = None if item.name else f"give one of them a name: `{item.kind} NAME {{ ... }}`"
            errors.add(Diagnostic(message, item.span, help))
        seen.add((item.kind, item.name))
        entries = [e for e in item.entries if isinstance(e, s.SectionEntry)]
        counts = Counter(e.name for e in entries)
        last = {e.name: e for e in entries}
        for name, count in counts.items():
            if count > 1:
                errors.add(Diagnostic(f"`{name}` is given {count} times", last[name].span))


def _parse_used_file(read: TextReader, target: str, directory: str) -> s.File:
    """Parses the file `target`, which a file in `directory` uses."""
    folder = f"`{directory}`" if directory else "the current folder"
    path_help = f"the path is relative to the folder of the file that contains it, here {folder}"
    if not target.endswith(SUFFIX):
        path_help = f'did you mean `use "{target}{SUFFIX}"`? {path_help}'

    def read_with_help(path: str) -> str:
        try:
            return read(path)
        except NetError as e:
            raise NetError(*(replace(d, help=d.help or path_help) for d in e.diagnostics)) from None

    return parse_file(target, read_with_help)


def check_lets(program: Program, budget: Budget) -> None:
    """Evaluates the `let`s of a file. Raises NetError with the errors of all of them."""
    errors = Errors()
    for item in program.items:
        if isinstance(item, s.Let):
            try:
                program.top_level.find(item.name, budget)
            except NetError as e:
                errors.collect(e)
    errors.raise_if_any()


def evaluate_section(program: Program, section: s.Section, budget: Budget) -> tuple[Argument, ...]:
    """Evaluates the entries of a section."""
    entries = [e for e in section.entries if isinstance(e, s.SectionEntry)]
    budget.spend_leaves(len(entries), section.span)
    scope = program.top_level.scope(budget)
    return evaluate_arguments([s.Arg(e.span, e.name, e.value) for e in entries], scope)


def bind_arguments(
    program: Program,
    item: s.Block | s.Net,
    arguments: Sequence[Argument],
    span: Span | None,
    budget: Budget,
) -> dict[str, Value]:
    """Returns the values of all parameters of a block or net."""
    signature = make_signature(item.name, item.params)
    return bind_params(signature, item.params, arguments, span, program.top_level, budget)


def resolve_instance(
    program: Program, name: str, budget: Budget
) -> tuple[s.Net, dict[str, Argument]]:
    """Returns the net behind a name, and the arguments from its instances, by parameter name.

    An instance of an instance overrides its arguments. Raises NetError on a cycle, or if a
    parameter has no value.
    """
    seen: list[s.Instance] = []
    argument_lists: list[tuple[Argument, ...]] = []
    net = program.net_table.find(name)
    span = net.item.span
    while isinstance(item := net.item, s.Instance):
        if any(item is x for x in seen):
            way = " = ".join(x.name for x in (*seen, item))
            raise fail(f"`{name}` is defined in terms of itself: {way}", item.span)
        if len(seen) == MAX_CHAIN_LENGTH:
            message = f"`{name}` is an instance of instances more than {MAX_CHAIN_LENGTH} deep"
            raise limit_error(message, item.span, "pass the arguments to the net itself")
        seen.append(item)
        argument_lists.append(evaluate_arguments(item.args, program.top_level.scope(budget)))
        net = net.table.find_base(item)
    signature = make_signature(item.name, item.params)
    arguments_by_name: dict[str, Argument] = {}
    for arguments in reversed(argument_lists):
        signature.bind(arguments, span, partial=True)
        arguments_by_name |= {a.name: a for a in name_arguments(item.params, arguments) if a.name}
    _check_parameters(program.net_table.find(name).item, item, arguments_by_name)
    return item, arguments_by_name


def _check_parameters(named: NetItem, net: s.Net, given: Mapping[str, Argument]) -> None:
    """Raises NetError if a parameter of the net behind an item has neither a default nor a
    value."""
    missing = [p.name for p in net.params if p.default is None and p.name not in given]
    if not missing:
        return
    settings = " and ".join(f"`{p}=VALUE`" for p in missing)
    values = ", ".join(f"{p}=VALUE" for p in missing)
    new, base = (named.name, named.base) if isinstance(named, s.Instance) else ("my", named.name)
    raise fail(
        f"`{named.name}` needs {' and '.join(f'`{p}`' for p in missing)}",
        named.span,
        help=f"set {settings}, or write `net {new} = {base}({values})`",
    )
