"""Writes stages of a net that differ only in numbers as one loop over a table."""

from __future__ import annotations

import itertools
from collections.abc import Container
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from netdsl.interchange.structure.names import STEM, needed_labels
from netdsl.interchange.structure.tree import (
    CallItem,
    Item,
    LabelItem,
    LoopItem,
    RepeatItem,
    Scaled,
    StatementItem,
    Term,
    item_nodes,
    walk_items,
)
from netdsl.interchange.structure.unify import Blocks, Key, sequence_key, unify
from netdsl.values import Value

_MIN_ROWS = 4
_MAX_COLUMNS = 3
_MAX_TABLE = 70
"""Characters of a table, which stands on one line."""


def fold_tables(
    statements: tuple[StatementItem, ...], blocks: Blocks, fixed: Container[str]
) -> tuple[StatementItem, ...]:
    """The statements with loops for runs of those that differ in a few numbers. What is `fixed`
    cannot be called in a loop's own scope."""
    needed = needed_labels(statements)
    found: list[StatementItem] = []
    for key, group in itertools.groupby(statements, lambda st: _key(st, needed, fixed)):
        run = list(group)
        is_loop = key is not None and len(run) >= _MIN_ROWS and _keeps_labels(run)
        loop = _loop(run, blocks) if is_loop else None
        found += [loop] if loop else run
    return tuple(found)


def _key(
    st: StatementItem, needed: Container[str], fixed: Container[str]
) -> tuple[str, Key] | None:
    """What the statements of a loop have in common; None if one cannot be in a loop."""
    stem = _label_stem(st)
    is_plain = st.output is None and st.node not in needed and st.source is not None
    if not is_plain or not stem or not item_nodes(st.items):
        return None
    for item in walk_items(st.items):
        if not isinstance(item, CallItem | RepeatItem):
            return None
        if isinstance(item, CallItem) and item.name in fixed:
            return None
    return stem, sequence_key(tuple(map(_counted, st.items)))


def _label_stem(st: StatementItem) -> str:
    """The label without its number; empty if it has none."""
    label = "s1" if st.label == STEM else st.label or ""
    stem = label.rstrip("0123456789")
    return stem if stem != label else ""


def _keeps_labels(run: SequenceOf[StatementItem]) -> bool:
    """Whether a loop, which numbers its labels from 1, gives the statements the labels they have;
    `s1`, `s2` and so on are of our own making."""
    stem = _label_stem(run[0])
    return stem == "s" or [st.label for st in run] == [f"{stem}{i + 1}" for i in range(len(run))]


def _counted(item: Item) -> Item:
    """A call of a block as a repeat, so that one call and several are alike."""
    is_call = isinstance(item, CallItem) and item.branches is None
    if isinstance(item, LabelItem) or not is_call:
        return item
    return RepeatItem((item,), 1, item.nodes, None)


def _loop(run: SequenceOf[StatementItem], blocks: Blocks) -> StatementItem | None:
    unified = unify([tuple(map(_counted, st.items)) for st in run], blocks, reads_input=False)
    names = tuple(p.name for p in unified.params)
    defaults = {p.name: p.default for p in unified.params if p.is_optional}
    rows = [tuple((defaults | dict(row))[name] for name in names) for row in unified.rows]
    table = _as_values(rows)
    if table is None or not 0 < len(names) <= _MAX_COLUMNS:
        return None
    if sum(len(str(v)) + 2 for row in table for v in row) + 2 * len(table) > _MAX_TABLE:
        return None
    body = tuple(map(_uncounted, unified.body))
    nodes = tuple(n for st in run for n in item_nodes(st.items))
    loop = LoopItem(names, table, body, _label_stem(run[0]), nodes)
    return replace(run[-1], items=(loop,), source=run[0].source, label=None)


def _as_values(rows: SequenceOf[tuple[Term, ...]]) -> tuple[tuple[Value, ...], ...] | None:
    values = [tuple(v for v in row if not isinstance(v, Scaled)) for row in rows]
    is_known = all(len(v) == len(row) for v, row in zip(values, rows, strict=True))
    return tuple(values) if is_known else None


def _uncounted(item: Item) -> Item:
    return item.body[0] if isinstance(item, RepeatItem) and item.count == 1 else item
