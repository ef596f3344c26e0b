"""Where a key or an entry that is written in the wrong section belongs, for messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from netdsl.parameter_types import ListOf, OneOf, ParameterType
from netdsl.signature import CallOf, Param, Signature, TableType


def find_homes(signatures: tuple[Signature, ...]) -> Mapping[str, str]:
    """For the sections' keys, for the entries of the tables that these take, and for the entries'
    arguments: a help line that says where each belongs. A name that is several of these is the
    first, and an argument of several entries that of the first."""
    homes: dict[str, str] = {}
    for section in signatures:
        for param in section.params:
            path = f"{section.name}.{param.name}"
            homes[param.name] = f"`{param.name}` is a key of the {section.name} section: `{path}`"
    calls = [found for section in signatures for found in _find_calls(section)]
    for section_name, param, is_list, name, _ in calls:
        value = f"[{name}]" if is_list else name
        help = f"`{name}` belongs in `{section_name}.{param.name}`: `{param.name} = {value}`"
        homes.setdefault(name, help)
    for section_name, param, is_list, name, argument_names in calls:
        for argument in argument_names:
            call = f"{name}({argument}=...)"
            value = f"[{call}]" if is_list else call
            help = (
                f"`{argument}` is an argument in `{section_name}.{param.name}`: "
                f"`{param.name} = {value}`"
            )
            homes.setdefault(argument, help)
    return homes


def _find_calls(section: Signature) -> Iterator[tuple[str, Param, bool, str, tuple[str, ...]]]:
    """The entries that a section's keys take: the section, the key, whether it is a list of
    entries, the entry and its arguments."""
    for param in section.params:
        for kind in _alternatives(param.type):
            is_list = isinstance(kind, ListOf)
            item = kind.item_type if isinstance(kind, ListOf) else kind
            if isinstance(item, CallOf | TableType):
                for name, record in item.table.items():
                    arguments = tuple(p.name for p in record.signature.params)
                    yield section.name, param, is_list, name, arguments


def _alternatives(kind: ParameterType) -> tuple[ParameterType, ...]:
    return kind.alternatives if isinstance(kind, OneOf) else (kind,)
