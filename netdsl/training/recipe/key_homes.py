"""The keys of the sections with the entries and arguments that they take: where each belongs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netdsl.parameter_types import ListOf, OneOf, ParameterType
from netdsl.signature import CallOf, Signature, TableType


def find_homes(signatures: tuple[Signature, ...]) -> Mapping[str, str]:
    """For the sections' keys, for the entries of the tables that these take, and for the entries'
    arguments: a help line that says where each belongs. A name that is several of these is the
    first, and an argument of several entries that of the first."""
    homes: dict[str, str] = {}
    for section in signatures:
        for param in section.params:
            path = f"{section.name}.{param.name}"
            homes[param.name] = f"`{param.name}` is a key of the {section.name} section: `{path}`"
    calls = [call for section in signatures for call in find_calls(section)]
    for call in calls:
        value = f"[{call.name}]" if call.is_list else call.name
        help = f"`{call.name}` belongs in `{call.key}`: `{call.param} = {value}`"
        homes.setdefault(call.name, help)
    for call in calls:
        for argument in call.arguments:
            example = f"{call.name}({argument}=...)"
            value = f"[{example}]" if call.is_list else example
            help = f"`{argument}` is an argument in `{call.key}`: `{call.param} = {value}`"
            homes.setdefault(argument, help)
    return homes


@dataclass(frozen=True)
class KeyCall:
    """An entry of a table that a section's key takes, with the names of its arguments;
    `is_list`: as one of a list."""

    section: str
    param: str
    is_list: bool
    name: str
    arguments: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.section}.{self.param}"


def find_calls(section: Signature) -> Iterator[KeyCall]:
    """The entries that a section's keys take."""
    for param in section.params:
        for kind in _alternatives(param.type):
            is_list = isinstance(kind, ListOf)
            item = kind.item_type if isinstance(kind, ListOf) else kind
            if isinstance(item, CallOf | TableType):
                for name, record in item.table.items():
                    arguments = tuple(p.name for p in record.signature.params)
                    yield KeyCall(section.name, param.name, is_list, name, arguments)


def _alternatives(kind: ParameterType) -> tuple[ParameterType, ...]:
    return kind.alternatives if isinstance(kind, OneOf) else (kind,)
