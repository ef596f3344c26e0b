"""Writes blocks out where they are used once, or are only another name for a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from netdsl.interchange.structure.groups import height, size
from netdsl.interchange.structure.tree import (
    IN_CHANNELS,
    BlockItem,
    CallItem,
    IfItem,
    Item,
    LoopItem,
    RepeatItem,
    Scaled,
    Sequence,
    Term,
    map_sequences,
    walk_items,
)
from netdsl.interchange.structure.unify import term_defaults

_MAX_INLINE = 16
"""Words of a body with a join that is written out."""


def inline_blocks(
    chains: list[Sequence], blocks: Mapping[str, BlockItem]
) -> tuple[list[Sequence], dict[str, BlockItem]]:
    """Chains and blocks after that; a block stands behind those that it uses."""
    kept = dict(blocks)
    for name in [*kept]:
        uses = _count_uses(chains, kept)
        block = kept[name]
        is_small = not height(block.body) or size(block.body) <= _MAX_INLINE
        if (uses[name] == 1 and is_small) or _is_renaming(block):
            attempt = _inline(name, chains, kept)
            if attempt is not None:
                chains, kept = attempt
    return chains, _sort_by_use(kept)


def _count_uses(chains: list[Sequence], blocks: Mapping[str, BlockItem]) -> Counter[str]:
    bodies = (*chains, *(b.body for b in blocks.values()))
    return Counter(i.name for b in bodies for i in walk_items(b) if isinstance(i, CallItem))


def _is_renaming(block: BlockItem) -> bool:
    first = block.body[0]
    return len(block.body) == 1 and isinstance(first, CallItem) and first.branches is None


class _CannotInlineError(Exception):
    """A body needs what has no expression where it would stand."""


def _inline(
    name: str, chains: list[Sequence], blocks: dict[str, BlockItem]
) -> tuple[list[Sequence], dict[str, BlockItem]] | None:
    block = blocks[name]

    def change(sequence: Sequence) -> Sequence:
        found: list[Item] = []
        for item in sequence:
            if isinstance(item, CallItem) and item.name == name:
                found += _written_out(block, item, blocks)
            else:
                found.append(item)
        return tuple(found)

    try:
        changed = [map_sequences(c, change) for c in chains]
        others = {
            k: replace(b, body=map_sequences(b.body, change))
            for k, b in blocks.items()
            if k != name
        }
    except _CannotInlineError:
        return None
    return changed, others


@dataclass(frozen=True)
class _Place:
    """Where a body is written out: the values of its parameters, and what flows in."""

    args: Mapping[str, Term]
    channels: int | None
    blocks: Mapping[str, BlockItem]


def _written_out(block: BlockItem, call: CallItem, blocks: Mapping[str, BlockItem]) -> Sequence:
    channels = call.channels
    place = _Place(term_defaults(call.name, blocks) | dict(call.args), channels, blocks)
    body = tuple(_substitute(item, place) for item in block.body)
    first = replace(body[0], channels=channels) if isinstance(body[0], CallItem) else body[0]
    return _spread_nodes((first, *body[1:]), call.nodes)


def _spread_nodes(items: Sequence, nodes: tuple[str, ...]) -> Sequence:
    """The items with the nodes of the call that they replace, as far as these can be told."""
    counts = [len(i.nodes) for i in items]
    if sum(counts) != len(nodes):
        return items
    found, start = [], 0
    for item, count in zip(items, counts, strict=True):
        part = nodes[start : start + count]
        found.append(replace(item, nodes=part) if isinstance(item, CallItem | RepeatItem) else item)
        start += count
    return tuple(found)


def _substitute(item: Item, place: _Place) -> Item:
    match item:
        case CallItem(name=name, branches=branches):
            defaults = term_defaults(name, place.blocks)
            values = ((k, _value(v, place)) for k, v in item.args)
            args = tuple((k, v) for k, v in values if k not in defaults or v != defaults[k])
            if branches is not None:
                branches = tuple(tuple(_substitute(i, place) for i in b) for b in branches)
            return replace(item, args=args, branches=branches)
        case RepeatItem(body=body, count=count):
            inside = tuple(_substitute(i, place) for i in body)
            return replace(item, body=inside, count=_value(count, place))
        case IfItem() | LoopItem():
            raise _CannotInlineError
    return item


def _value(term: Term, place: _Place) -> Term:
    """A term of a body in terms of the place where the block is used."""
    if not isinstance(term, Scaled):
        return term
    value = place.channels if term.name == IN_CHANNELS else place.args[term.name]
    if value is None and term.name == IN_CHANNELS:
        raise _CannotInlineError
    if term.factor == term.divisor == 1:
        return value
    if type(value) is int:
        return value * term.factor // term.divisor
    if isinstance(value, Scaled) and value.factor == value.divisor == 1:
        return replace(term, name=value.name)
    raise _CannotInlineError


def _sort_by_use(blocks: Mapping[str, BlockItem]) -> dict[str, BlockItem]:
    found: dict[str, BlockItem] = {}

    def visit(name: str) -> None:
        if name in blocks and name not in found:
            for item in walk_items(blocks[name].body):
                if isinstance(item, CallItem):
                    visit(item.name)
            found[name] = blocks[name]

    for name in blocks:
        visit(name)
    return found
