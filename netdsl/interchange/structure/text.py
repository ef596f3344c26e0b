"""Writes a tree as the text of a .net file, in canonical layout."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache

from netdsl.interchange.structure.calls import CENTRED, SAME, layer_signature
from netdsl.interchange.structure.tree import (
    BlockItem,
    CallItem,
    IfItem,
    Item,
    LabelItem,
    LoopItem,
    RepeatItem,
    Scaled,
    Sequence,
    StatementItem,
    Term,
)
from netdsl.signature import REQUIRED
from netdsl.values import Argument, Call, Size, format_value

_POSITIONAL = ("kernel", "rate", "slope", "alpha", "groups", "factor", "size", "init")
"""Optional parameters that need no name where they are the first."""


@dataclass(frozen=True)
class NetText:
    """What a file consists of: blocks in the order of their use, shared chains and statements."""

    name: str
    blocks: tuple[BlockItem, ...]
    shared: Mapping[str, Sequence]
    statements: tuple[StatementItem, ...]
    labels: Mapping[str, str]
    """Labels by the nodes whose values they name."""

    def lines(self) -> list[str]:
        return [*map(self._block, self.blocks), *self._net()]

    def _block(self, block: BlockItem) -> str:
        params = ", ".join(
            f"{p.name}={term_text(p.default)}" if p.is_optional else p.name for p in block.params
        )
        head = f"{block.name}({params})" if params else block.name
        return f"block {head} {{ {self._chain(block.body)} }}\n"

    def _net(self) -> list[str]:
        shared = [f"  shared {name} = {self._chain(c)}" for name, c in self.shared.items()]
        inside = [f"  {line}" for line in self._statement_lines()]
        return [f"net {self.name} {{", *shared, *inside, "}"]

    def _statement_lines(self) -> list[str]:
        found, current = [], None
        for st in self.statements:
            start = ""
            if st.source is not None and st.source != current:
                start = f"{self.labels[st.source]} -> "
            line = start + self._chain(st.items)
            if st.output is not None:
                found.append(f"output {st.output}: {line}")
                continue
            found.append(f"{st.label}: {line}" if st.label else line)
            current = st.node
        return found

    def _chain(self, items: Sequence) -> str:
        return " -> ".join(map(self._item, items)) if items else "identity"

    def _positional(self, name: str) -> Container[str]:
        for block in self.blocks:
            if block.name == name:
                return [p.name for p in block.params if not p.is_optional]
        return () if name in self.shared else _positional_names(name)

    def _item(self, item: Item) -> str:
        match item:
            case LabelItem(node=node):
                return self.labels[node]
            case RepeatItem(body=body, count=count):
                inside = self._chain(body)
                is_single = len(body) == 1 and not isinstance(body[0], RepeatItem)
                text = inside if is_single else f"({inside})"
                return f"{text} * {term_text(count)}"
            case IfItem(condition=condition, body=()):
                return f"identity if {condition}"
            case IfItem(condition=condition, body=body):
                return f"if {condition} {{ {self._chain(body)} }}"
            case LoopItem():
                rows = ", ".join(format_row(row) for row in item.rows)
                label = f"{item.label}: " if item.label else ""
                body_text = self._chain(item.body)
                names = ", ".join(item.variables)
                return f"for {names} in [{rows}] {{ {label}{body_text} }}"
            case CallItem(branches=branches):
                text = call_text(item, self._positional(item.name))
                if branches is None:
                    return text
                return f"{text} {{ {' | '.join(map(self._chain, branches))} }}"


def format_row(row: tuple[Term, ...]) -> str:
    inside = ", ".join(map(term_text, row))
    return f"[{inside}]" if len(row) > 1 else inside


def call_text(call: CallItem, positional: Container[str]) -> str:
    """A call with its arguments, those in `positional` without their names."""
    args = dict(call.args)
    if call.name in CENTRED and args.get("pad") == SAME and _is_one_pixel(args.get("kernel")):
        del args["pad"]
    texts = ((name, term_text(value)) for name, value in args.items())
    parts = [text if name in positional else f"{name}={text}" for name, text in texts]
    return f"{call.name}({', '.join(parts)})" if parts else call.name


def _is_one_pixel(kernel: Term) -> bool:
    return isinstance(kernel, Size) and set(kernel.dims) == {1}


@cache
def _positional_names(layer: str) -> tuple[str, ...]:
    """The parameters of a layer that are given by position."""
    params = layer_signature(layer).params
    required = [p.name for p in params if p.default is REQUIRED]
    return tuple(required or [p.name for p in params[:1] if p.name in _POSITIONAL])


def term_text(value: Term) -> str:
    """A value or expression, with every digit of a number."""
    match value:
        case Scaled():
            return str(value)
        case bool():
            return format_value(value)
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e6 else repr(value)
        case tuple():
            return f"[{', '.join(map(term_text, value))}]"
        case Call(name=name, arguments=arguments):
            return f"{name}({', '.join(map(_argument_text, arguments))})"
    return format_value(value)


def _argument_text(argument: Argument) -> str:
    text = term_text(argument.value)
    return f"{argument.name}={text}" if argument.name else text
