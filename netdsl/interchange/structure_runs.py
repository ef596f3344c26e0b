"""Writes equal parts of a chain that follow each other as repeats."""

from __future__ import annotations

from dataclasses import replace

from netdsl.interchange.structure_groups import group_starts, size
from netdsl.interchange.structure_tree import (
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
    """The sequence with repeats of groups."""
    starts = group_starts(sequence)
    found: list[Item] = []
    group = 0
    while group < len(starts) - 1:
        period, count = _best_run(sequence, starts, group)
        start, end = starts[group], starts[group + period]
        if count < 2:
            found += sequence[start:end]
            group += 1
            continue
        part = sequence[start:end]
        channels = part[0].channels
        if channels != sequence[end].channels:
            part = tuple(map(_forget_channels, part))
        group += period * count
        nodes = item_nodes(sequence[start : starts[group]])
        found.append(RepeatItem(part, count, nodes, channels))
    return _absorb(tuple(found))


def _forget_channels(item: Item) -> Item:
    """The item without the channels that flow in: they are others in each repeat."""
    return item if isinstance(item, LabelItem | IfItem) else replace(item, channels=None)


def _best_run(sequence: Sequence, starts: list[int], first: int) -> tuple[int, int]:
    """The groups and the count of the run at a group that saves most."""
    best, best_gain = (1, 1), 0
    last = len(starts) - 1
    for period in range(1, min(_MAX_PERIOD, (last - first) // 2) + 1):
        part = sequence[starts[first] : starts[first + period]]
        count, end = 1, first + period
        while end + period <= last and sequence[starts[end] : starts[end + period]] == part:
            count, end = count + 1, end + period
        gain = (count - 1) * size(part)
        if count > 1 and gain > best_gain:
            best, best_gain = (period, count), gain
    return best


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
