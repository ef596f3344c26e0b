"""Writes equal parts of a chain that follow each other as repeats."""

from __future__ import annotations

from dataclasses import replace

from netdsl.interchange.structure.groups import group_starts, is_pool
from netdsl.interchange.structure.tree import (
    IfItem,
    Item,
    LabelItem,
    RepeatItem,
    Sequence,
    Term,
    item_nodes,
)

_MAX_PERIOD = 8


def fold_runs(sequence: Sequence) -> Sequence:
    """The sequence with repeats of groups, first of single ones."""
    for period in range(1, min(_MAX_PERIOD, len(sequence) // 2) + 1):
        sequence = _absorb(_fold_period(sequence, period))
    return sequence


def _fold_period(sequence: Sequence, period: int) -> Sequence:
    starts = group_starts(sequence)
    last = len(starts) - 1
    found: list[Item] = []
    group = 0
    while group < last:
        count, end = 1, min(group + period, last)
        part = sequence[starts[group] : starts[end]]
        while end + period <= last and sequence[starts[end] : starts[end + period]] == part:
            count, end = count + 1, end + period
        if count < 2 or (period > 1 and is_pool(part[0])):
            found += sequence[starts[group] : starts[group + 1]]
            group += 1
            continue
        channels = part[0].channels
        nodes = item_nodes(sequence[starts[group] : starts[end]])
        if channels != sequence[starts[group + period]].channels:
            part = tuple(map(_forget_channels, part))
        found.append(RepeatItem(part, count, nodes, channels))
        group = end
    return tuple(found)


def _forget_channels(item: Item) -> Item:
    """The item without the channels that flow in: they are others in each repeat."""
    return item if isinstance(item, LabelItem | IfItem) else replace(item, channels=None)


def _absorb(sequence: Sequence) -> Sequence:
    """Counts equal items beside a repeat with it."""
    found: list[Item] = []
    for item in sequence:
        body, count = _as_repeat(item)
        last, n = _as_repeat(found[-1]) if found else ((), 0)
        is_repeat = bool(found) and any(isinstance(i, RepeatItem) for i in (item, found[-1]))
        if is_repeat and body == last and isinstance(count, int) and isinstance(n, int):
            before = found.pop()
            nodes = (*before.nodes, *item.nodes)
            found.append(RepeatItem(body, n + count, nodes, before.channels))
        else:
            found.append(item)
    return tuple(found)


def _as_repeat(item: Item) -> tuple[Sequence, Term]:
    return (item.body, item.count) if isinstance(item, RepeatItem) else ((item,), 1)
