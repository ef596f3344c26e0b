"""The tree between a flat graph and a text: calls, joins of branches, repeats, and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from netdsl.values import Value


@dataclass(frozen=True)
class Scaled:
    """`c`, `4*c` or `c/4`: a multiple of a parameter, or of `in.channels`."""

    name: str
    factor: int = 1
    divisor: int = 1

    def __str__(self) -> str:
        if self.divisor > 1:
            return f"{self.name}/{self.divisor}"
        return f"{self.factor}*{self.name}" if self.factor > 1 else self.name


Term = Value | Scaled
IN_CHANNELS = "in.channels"


@dataclass(frozen=True)
class CallItem:
    """A call of a layer, block or shared chain, with its branches if it joins some.

    `args` holds what differs from the defaults. `nodes` are the graph's nodes that it stands for,
    in order; `channels` is the channel count of what flows in, if it is known and one."""

    name: str
    args: tuple[tuple[str, Term], ...] = ()
    branches: tuple[Sequence, ...] | None = None
    nodes: tuple[str, ...] = field(default=(), compare=False)
    channels: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LabelItem:
    """The value with a label: the node that gives it."""

    node: str

    @property
    def nodes(self) -> tuple[str, ...]:
        return ()

    @property
    def channels(self) -> None:
        return None


@dataclass(frozen=True)
class RepeatItem:
    """`( ... ) * n`."""

    body: Sequence
    count: Term
    nodes: tuple[str, ...] = field(default=(), compare=False)
    channels: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LoopItem:
    """`for a, b in [[...], ...] { ... }`; `label` names the body's value."""

    variables: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    body: Sequence
    label: str | None = None
    nodes: tuple[str, ...] = field(default=(), compare=False)
    channels: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class IfItem:
    """`if condition { body }`; as a whole branch without a body, `identity if condition`."""

    condition: str
    body: Sequence = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        return ()

    @property
    def channels(self) -> None:
        return None


Item = CallItem | LabelItem | RepeatItem | LoopItem | IfItem
Sequence = tuple[Item, ...]


@dataclass(frozen=True)
class BlockParameter:
    """A parameter of a block; `default` only if it `is_optional`."""

    name: str
    is_optional: bool = False
    default: Term = None


@dataclass(frozen=True)
class BlockItem:
    """`block name(params) { body }`."""

    name: str
    params: tuple[BlockParameter, ...]
    body: Sequence


@dataclass(frozen=True)
class StatementItem:
    """A line of a net: the chain that gives the value of `node`. `source` is the node whose value
    flows in; None if nothing of it is used. `output` names a side output."""

    node: str
    items: Sequence
    source: str | None = None
    label: str | None = None
    output: str | None = None


def item_nodes(items: Sequence) -> tuple[str, ...]:
    """The graph's nodes that items stand for, in the order of their calls."""
    return tuple(n for item in items for n in item.nodes)


def walk_sequences(items: Sequence) -> Iterator[Sequence]:
    """A sequence and all those inside it, innermost first."""
    for item in items:
        match item:
            case CallItem(branches=tuple(branches)):
                for branch in branches:
                    yield from walk_sequences(branch)
            case RepeatItem(body=body) | LoopItem(body=body) | IfItem(body=body):
                yield from walk_sequences(body)
    yield items


def walk_items(items: Sequence) -> Iterator[Item]:
    for sequence in walk_sequences(items):
        yield from sequence


def map_sequences(items: Sequence, change: Callable[[Sequence], Sequence]) -> Sequence:
    """Items with every sequence changed, innermost first."""
    found: list[Item] = []
    for item in items:
        match item:
            case CallItem(branches=tuple(branches)):
                mapped = tuple(map_sequences(b, change) for b in branches)
                found.append(replace(item, branches=mapped))
            case RepeatItem(body=body) | LoopItem(body=body) | IfItem(body=body) if body:
                found.append(replace(item, body=map_sequences(body, change)))
            case _:
                found.append(item)
    return change(tuple(found))
