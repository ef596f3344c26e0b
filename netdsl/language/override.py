"""Applies `--set train.epochs=5` and the like from the command line to the syntax tree.

So the text that is printed, saved and run is always the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from netdsl.errors import NetError, Span, fail, suggest_name, suggest_spelling, suggest_word
from netdsl.foreign_words import find_advice, find_counterpart, normalize_word
from netdsl.language import syntax as s
from netdsl.language.parse import parse_expression
from netdsl.language.unparse import expression_text
from netdsl.language.uses import NetTable, VisibleNet, find_written_net, own_nets


class PythonSetting(str):
    """A setting `key=value` from Python, which messages show without the option."""

    __slots__ = ()


@dataclass(frozen=True)
class Setting:
    """A parsed setting: its key, and the expression that it sets."""

    key: str
    value: s.Expression

    def __str__(self) -> str:
        return f"{self.key}={expression_text(self.value)}"

    @property
    def span(self) -> Span:
        """The span of key and value, or of the value alone if it is not all of the setting."""
        span = self.value.span
        before = re.search(rf"{re.escape(self.key)}\s*=\s*$", span.source.text[: span.start])
        return span if before is None else replace(span, start=before.start())

    @property
    def key_span(self) -> Span:
        """The span of the key, or that of the value if the key is not in its text."""
        text = self.value.span.source.text
        found = re.compile(rf"(?:^|\s){re.escape(self.key)}\s*=").search(text)
        if found is None:
            return self.value.span
        start = text.index(self.key, found.start())
        return replace(self.value.span, start=start, end=start + len(self.key))

    @property
    def target_section(self) -> str:
        """The section that `train.NAME.KEY=value` would set, as `train.NAME`; else an empty
        string."""
        kind, *path = self.key.split(".")
        return f"{kind}.{path[0]}" if len(path) > 1 else ""


def parse_setting(text: str, option: str = "--set") -> Setting:
    """Parses `key=value`, given to an option of the command line. Raises NetError, with the
    position in the text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise fail(f"`{text}` is not a setting", help=f"write `{option} {_EXAMPLES[option][0]}`")
    if not value.strip():
        raise fail(f"`{text}` has no value", help=f"write `{option} {_EXAMPLES[option][0]}`")
    return Setting(key.strip(), _parse_value(text, value, option))


_EXAMPLES = {
    "--set": ("train.epochs=5", """'train.freeze="conv1.*"'"""),
    "--vary": ("'train.epochs=[5, 10]'", """'train.freeze=["conv1.*", "conv2.*"]'"""),
}
"""For each option, a setting and one with globs."""


@dataclass(frozen=True)
class SectionKeys:
    """The keys that sections may have, with those of the arguments in them, as `train.epochs` and
    `train.optimizer.lr`; the names of the calls that are the defaults of some; for names of
    keys and of entries where they belong, for messages; and the arguments that the call of a key
    takes, by key and call, in the order of their positions."""

    names: tuple[str, ...] = ()
    default_calls: Mapping[str, str] = field(default_factory=dict)
    homes: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def find(self, word: str) -> str | None:
        """The key of which a word is the last part, also in another framework's spelling."""
        parts = {key.rpartition(".")[2]: key for key in reversed(self.names)}
        known = {normalize_word(part): part for part in parts}
        name = word.replace("-", "_")
        part = known.get(normalize_word(name)) or find_counterpart(name, known)
        return parts[part] if part else None


NO_KEYS = SectionKeys()

UsedNets = Mapping[str, tuple[VisibleNet, ...]]


def override(
    file: s.File,
    settings: Sequence[str | Setting],
    net: str | None = None,
    used: UsedNets | None = None,
    section_keys: SectionKeys = NO_KEYS,
) -> s.File:
    """Returns `file` with each `key=value` applied.

    `train.KEY` and `data.KEY` set an entry in every section of that kind, `train.NAME.KEY` in the
    section of that name, `train.optimizer.lr` an argument within an entry. `NET.PARAM` sets a
    parameter of a net; a bare name sets one of `net`, or of the file's first net, else a constant
    of the file. A setting for a named section takes precedence over one for all sections. `used`
    holds the nets of the files that `file` uses. An argument of an entry that no section has goes
    to the default of that entry, which `section_keys` contains.
    """
    names = {f"{i.kind}.{i.name}" for i in file.items if isinstance(i, s.Section) and i.name}
    parsed = [x if isinstance(x, Setting) else parse_setting(x) for x in settings]
    for setting in sorted(parsed, key=lambda x: x.target_section in names):
        kind, *path = setting.key.split(".")
        if kind in ("train", "data") and path:
            file = _set_entry(file, kind, path, setting, section_keys)
        else:
            file = _set_param(file, setting, net, used or {}, section_keys)
    return file


_UNQUOTED_TEXT = re.compile(r"(?=.*[./*?~])(?=.*[A-Za-z*])[\w\[\], ./*?~-]+")
"""A glob, a path or a list of these without their quotes."""


def _parse_value(setting: str, text: str, option: str) -> s.Expression:
    """The value of a setting, `text`. Raises NetError, with its place in the setting."""
    before = setting[: len(setting) - len(text)]
    is_python = isinstance(setting, PythonSetting)
    try:
        if is_python:
            return parse_expression(text, before, "set")
        return parse_expression(text, f"{option} {before}")
    except NetError as e:
        if not _UNQUOTED_TEXT.fullmatch(text):
            help = None if is_python else _unbracketed_help(before, text, option)
            if help is None:
                raise
            raise NetError(*(replace(d, help=help) for d in e.diagnostics)) from None
        shell_example = f"{option} {_EXAMPLES[option][1]}"
        example = """{"train.freeze": '"conv1.*"'}""" if is_python else shell_example
        help = f"globs and paths need their own quotes: {example}"
        raise NetError(*(replace(d, help=help) for d in e.diagnostics)) from None


def _list_values(text: str) -> str | None:
    """The list that values separated by commas make; None if they make none."""
    listed = f"[{text}]"
    try:
        parsed = parse_expression(listed, "", "set")
    except NetError:
        return None
    return listed if isinstance(parsed, s.ListLiteral) and len(parsed.items) > 1 else None


def _unbracketed_help(key: str, text: str, option: str) -> str | None:
    """How to write a list without brackets, or a call without its parentheses."""
    if percentage := re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,6})?)%", text):
        share = round(float(percentage[1]) / 100, 8)
        return f"a percentage is a share of 1: `{option} {key.strip()}{share}`"
    listed = _list_values(text)
    if listed and option == "--set" and key.strip(" =").split(".")[-1] == "seed":
        return f"`netdsl sweep FILE --seeds {text}` repeats a run with several seeds"
    if listed:
        runs = "" if option == "--vary" else "; `netdsl sweep --vary` tries several values"
        return f"several values are a list in brackets: `{option} '{key}{listed}'`{runs}"
    call = re.fullmatch(r"(\w+),\s*(\w+=.+)", text)
    if call:
        return f"arguments go in parentheses: `{option} '{key}{call[1]}({call[2]})'`"
    return None


def _set_entry(
    file: s.File, kind: str, path: list[str], setting: Setting, section_keys: SectionKeys
) -> s.File:
    sections = [i for i in file.items if isinstance(i, s.Section) and i.kind == kind]
    named_sections = [x for x in sections if x.name == path[0]]
    if named_sections and len(path) > 1:
        sections, path = named_sections, path[1:]
    if not sections:
        raise fail(f"there is no `{kind}` section to set `{setting.key}` in")
    name = ".".join((kind, *path))
    default = section_keys.default_calls.get(f"{kind}.{path[0]}", "")
    if len(path) > 1:
        without_entry = [x for x in sections if default and _find_entry(x, path[0]) is None]
        sections = [x for x in sections if _has_call(x, path)] or without_entry
    near = _find_near_key(name, section_keys)
    is_other = len(path) == 1 and _is_other_key(name, section_keys)
    if not sections or len(path) > 2 or is_other or near:
        help = near or _suggest_key(name, section_keys) or f"settings are: {kind}.KEY"
        if named_sections and setting.key != name:
            help = help.replace(f"`{kind}.", f"`{setting.target_section}.")
        raise fail(f"there is no setting called `{setting.key}`", help=help)
    positions = section_keys.arguments
    is_unknown = bool(section_keys.names) and name not in section_keys.names
    place = setting.key_span if is_unknown else setting.span
    changed = {
        id(x): _set_in_section(x, path, setting, default, positions, place) for x in sections
    }
    return replace(file, items=tuple(changed.get(id(i), i) for i in file.items))


def _is_other_key(key: str, section_keys: SectionKeys) -> bool:
    """Whether a section has no such key, but one of that name is elsewhere, or is spelt otherwise,
    as `epoch`."""
    return key not in section_keys.names and section_keys.find(key.rpartition(".")[2]) is not None


def _find_near_key(key: str, section_keys: SectionKeys) -> str | None:
    """A help line with the key of the same section or call of which a wrong one is a misspelling.
    The file may have that one already, which is then no reason to remove the setting."""
    owner, _, word = key.rpartition(".")
    names = [n.rpartition(".")[2] for n in section_keys.names if n.rpartition(".")[0] == owner]
    if word in names or find_advice(word, [f"key of {owner}", "key"]):
        return None
    found = suggest_word(word, names)
    return found and found.replace("`", f"`{owner}.", 1)


def _suggest_key(
    key: str, section_keys: SectionKeys, sections: Sequence[s.Section] = ()
) -> str | None:
    """A help line with the key that a wrong one probably means: one that the file's `sections`
    have, in the unnamed one rather than in another; else one that they may have."""
    for section in sorted(sections, key=lambda x: x.name is not None):
        for name in _written_names(section):
            if name == key or name.endswith(f".{key}"):
                prefix = f"{section.kind}.{section.name}" if section.name else section.kind
                return f"did you mean `{prefix}.{name}`?"
    if key in section_keys.homes and "." not in key:
        return section_keys.homes[key]
    found = section_keys.find(key.rpartition(".")[2])
    return f"did you mean `{found}`?" if found else suggest_spelling(key, section_keys.names)


def _written_names(section: s.Section) -> Iterator[str]:
    """The names of a section's entries, and of the arguments in them, as `optimizer.lr`."""
    for entry in (e for e in section.entries if isinstance(e, s.SectionEntry)):
        args = entry.value.args if isinstance(entry.value, s.CallExpr) else ()
        yield entry.name
        yield from (f"{entry.name}.{a.name}" for a in args if a.name)


def _find_entry(section: s.Section, name: str) -> s.SectionEntry | None:
    named = (e for e in section.entries if isinstance(e, s.SectionEntry) and e.name == name)
    return next(named, None)


def _has_call(section: s.Section, path: list[str]) -> bool:
    """Whether `path` names an argument of a call in this section."""
    entry = _find_entry(section, path[0])
    return len(path) == 2 and entry is not None and isinstance(entry.value, s.CallExpr | s.Name)


def _set_in_section(
    section: s.Section,
    path: list[str],
    setting: Setting,
    default: str,
    positions: Mapping[tuple[str, str], tuple[str, ...]],
    place: Span,
) -> s.Section:
    """Sets an entry, or an argument of the call that is its value, `default` if it is absent.
    `place` is what messages on the new entry show."""
    value = setting.value
    old_entry = _find_entry(section, path[0])
    if len(path) == 2:
        call = old_entry.value if old_entry is not None else s.Name(setting.span, default)
        if isinstance(call, s.CallExpr | s.Name):
            names = positions.get((f"{section.kind}.{path[0]}", call.name), ())
            new = s.Arg(place, path[1], value)
            value = _set_argument(call, new, names)
    other_entries = tuple(e for e in section.entries if e is not old_entry)
    return replace(section, entries=(*other_entries, s.SectionEntry(place, path[0], value)))


def _set_argument(call: s.CallExpr | s.Name, new: s.Arg, positions: Sequence[str]) -> s.CallExpr:
    """Sets an argument by its name. One that is written without a name, at its place in
    `positions`, is replaced there."""
    args = call.args if isinstance(call, s.CallExpr) else ()
    index = positions.index(new.name) if new.name in positions else len(args)
    if all(a.name is None for a in args[: index + 1]) and index < len(args):
        unnamed = replace(new, name=None)
        return s.CallExpr(call.span, call.name, (*args[:index], unnamed, *args[index + 1 :]))
    other_args = tuple(a for a in args if a.name != new.name)
    return s.CallExpr(call.span, call.name, (*other_args, new))


def _set_param(
    file: s.File,
    setting: Setting,
    net: str | None,
    used: UsedNets,
    section_keys: SectionKeys,
) -> s.File:
    """Sets the default of a net's parameter, an argument of an instance, or a constant."""
    key, value = setting.key, setting.value
    table = NetTable(file.span.source.name, own_nets(file), used)
    constants = {i.name: i for i in file.items if isinstance(i, s.Let) and i.params is None}
    if not table.own and not used and not constants:
        raise fail(f"there is no net to set `{key}` in")
    owner, dot, name = key.rpartition(".")
    first = net or next(iter(table.own), "")
    target = owner if dot else first
    if name in parameter_names(table, target):
        return _set_net_param(file, table, target, s.Arg(value.span, name, value))
    if key in constants:
        return _replace_item(file, constants[key], replace(constants[key], value=value))
    net_keys = [f"{n}.{p}" for n in table.own for p in parameter_names(table, n)]
    sections = [i for i in file.items if isinstance(i, s.Section)]
    patterns = [f"{i.kind}.{i.name}.KEY" if i.name else f"{i.kind}.KEY" for i in sections]
    keys = [*parameter_names(table, target), *net_keys, *constants, *patterns]
    help = (
        _suggest_section(sections, key, section_keys)
        or _suggest_parameter(file, target if target in table.own else first, key)
        or _suggest_key(key, section_keys, sections)
        or suggest_name(key, keys, "settings are")
    )
    raise fail(f"there is no setting called `{key}`", help=help)


def _suggest_parameter(file: s.File, net: str, key: str) -> str | None:
    """How to set what belongs to a layer of a net, which settings do not reach."""
    found = next((i for i in file.items if isinstance(i, s.Net) and i.name == net), None)
    nodes = list(s.walk(found)) if found else []
    named = {n.label for n in nodes if isinstance(n, s.Chain)}
    named |= {n.name for n in nodes if isinstance(n, s.Step)}
    layer = next((part for part in key.split(".") if part in named), None)
    if layer is None:
        return None
    return (
        f"`{layer}` is a layer: give the net a parameter for its number, "
        f"`net {net}(width=16) {{ ... conv(width, 3x3) ... }}`, and write `--set width=32`"
    )


def _suggest_section(
    sections: Sequence[s.Section], key: str, section_keys: SectionKeys
) -> str | None:
    """What was meant by a key that names a section only, or that begins with a section's name."""
    if key == "data":
        return "did you mean `data.source`?"
    if key == "train":
        return "`netdsl train FILE:NAME` chooses a recipe; settings are `train.KEY`"
    name, dot, word = key.partition(".")
    named = next((x for x in sections if x.name == name), None)
    if named is None or not dot:
        return None
    prefix = f"{named.kind}.{name}"
    is_known = f"{named.kind}.{word}" in section_keys.names
    kind, _, found = (section_keys.find(word.rpartition(".")[2]) or "").partition(".")
    return f"did you mean `{prefix}.{found if kind == named.kind and not is_known else word}`?"


def _set_net_param(file: s.File, table: NetTable, net: str, arg: s.Arg) -> s.File:
    """Sets a parameter of a net. One of a used file becomes an instance of the same name here."""
    if net not in table.own:
        instance = s.Instance(arg.span, net, net, (arg,))
        return replace(file, items=(*file.items, instance))
    old = table.own[net][0]
    new: s.Net | s.Instance
    if isinstance(old, s.Instance):
        other_args = tuple(a for a in old.args if a.name != arg.name)
        new = replace(old, args=(*other_args, arg))
    else:
        params = (replace(p, default=arg.value) if p.name == arg.name else p for p in old.params)
        new = replace(old, params=tuple(params))
    return _replace_item(file, old, new)


def _replace_item(file: s.File, old: s.Item, new: s.Item) -> s.File:
    return replace(file, items=tuple(new if i is old else i for i in file.items))


def parameter_names(table: NetTable, name: str) -> tuple[str, ...]:
    """The parameters of a net, or of the one that an instance leads to; none if it does not."""
    net = find_written_net(table, name)
    return () if net is None else tuple(p.name for p in net.params)
