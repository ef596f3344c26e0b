"""Cuts long chains into the statements of a net: by the modules that its nodes are in, else where
the image gets smaller or larger."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from netdsl.interchange.layer_graph import LayerGraph
from netdsl.interchange.structure_groups import group_starts, size
from netdsl.interchange.structure_names import RESERVED, Naming, Path, identifier
from netdsl.interchange.structure_tree import (
    CallItem,
    LabelItem,
    Sequence,
    StatementItem,
    item_nodes,
    walk_items,
)

_MIN_PARTS = 3
_LONG = 24
"""Words of a statement that is cut."""
_MANY = 24
"""Modules of which a net is not one line each."""
STEM, HEAD = "stem", "head"


@dataclass(frozen=True)
class _Part:
    """Items of one module."""

    name: str
    items: Sequence

    @property
    def is_single(self) -> bool:
        return len(item_nodes(self.items)) < 2


def cut_by_modules(
    statements: tuple[StatementItem, ...], naming: Naming
) -> tuple[tuple[StatementItem, ...], bool]:
    """The statements, with a statement for each module if their names say something; and whether
    they do. A label is a wish."""
    depth = _depth([*naming.paths.values()])
    parts = [_module_parts(st.items, naming, depth) for st in statements]
    named = [p for ps in parts for p in ps if not p.is_single and _label(p.name)]
    if not _MIN_PARTS <= len(named) <= _MANY:
        return statements, False
    found = []
    for st, ps in zip(statements, parts, strict=True):
        merged = _merge_singles(ps)
        labels = [_label(p.name) if not p.is_single else None for p in merged]
        found += _cut(st, [p.items for p in merged], labels)
    return _with_ends(tuple(found)), True


def _module_parts(items: Sequence, naming: Naming, depth: int) -> list[_Part]:
    """Runs of items in one module; what has no name belongs to the part before it."""
    found: list[_Part] = []
    starts = {*group_starts(items)}
    for i, item in enumerate(items):
        path = naming.path_of(item.nodes)
        name = "_".join(path[depth : depth + 1]) if len(path) > depth else "_".join(path)
        is_same = bool(found) and (not name or name == found[-1].name or i not in starts)
        if is_same:
            found[-1] = replace(found[-1], items=(*found[-1].items, item))
        else:
            found.append(_Part(name, (item,)))
    return found


def _depth(paths: SequenceOf[Path]) -> int:
    """How many leading segments most paths have in common: `features` says nothing."""
    depth = 0
    known = [p for p in paths if p]
    while known:
        first = [p[depth] for p in known if len(p) > depth + 1]
        common = max(set(first), key=first.count, default="")
        if first.count(common) * 5 < len(known) * 4:
            return depth
        inner = [p for p in known if len(p) > depth + 1 and p[depth] == common]
        if any(p[depth + 1].isdigit() for p in inner):
            return depth
        depth += 1
    return depth


def _merge_singles(parts: list[_Part]) -> list[_Part]:
    """Neighbours of one node each as one part."""
    found: list[_Part] = []
    for part in parts:
        if found and part.is_single and (found[-1].is_single or not found[-1].name):
            found[-1] = _Part("", (*found[-1].items, *part.items))
        else:
            found.append(part)
    return found


def _label(name: str) -> str | None:
    label = identifier(name)
    is_layer = label.rstrip("0123456789_") in RESERVED
    return label if label and not is_layer else None


def _cut(
    st: StatementItem, parts: SequenceOf[Sequence], labels: SequenceOf[str | None]
) -> list[StatementItem]:
    """The statement in parts; one that gives a side output stays whole."""
    parts_labels = [(p, w) for p, w in zip(parts, labels, strict=True) if p]
    if st.output is not None or len(parts_labels) < 2:
        label = labels[0] if len(parts_labels) == 1 and len(st.items) > 1 else None
        return [replace(st, label=label)]
    found, source = [], st.source
    for part, label in parts_labels:
        last = part[-1]
        node = last.node if isinstance(last, LabelItem) else item_nodes(part)[-1]
        found.append(StatementItem(node, part, source, label))
        source = node
    return found


def cut_by_size(
    statements: tuple[StatementItem, ...], graph: LayerGraph
) -> tuple[StatementItem, ...]:
    """The statements, cut where they are long and the size of the image changes."""
    found: list[StatementItem] = []
    for st in statements:
        parts = [*_stages(st.items, graph)] if size(st.items) > _LONG else [st.items]
        found += _cut(st, parts, [None] * len(parts))
    if len(found) == len(statements):
        return statements
    numbered = [replace(st, label=f"s{i}" if _is_chain(st) else None) for i, st in enumerate(found)]
    return _with_ends(tuple(numbered))


def _is_chain(st: StatementItem) -> bool:
    is_input = any(isinstance(i, CallItem) and i.name == "input" for i in st.items)
    return st.output is None and not is_input and bool(item_nodes(st.items))


def _stages(items: Sequence, graph: LayerGraph) -> Iterator[Sequence]:
    """Runs of items. One that makes the image smaller begins a run, unless it is a pooling, which
    ends one; one that makes it larger, or joins labels, begins one; so does the head."""
    starts = group_starts(items)
    run: Sequence = ()
    for start, end in itertools.pairwise(starts):
        group = items[start:end]
        area, before = _area(group, graph), _area_before(group, graph)
        first = group[0]
        is_pool = isinstance(first, CallItem) and first.name in ("maxpool", "avgpool")
        joins_labels = any(isinstance(i, LabelItem) for i in walk_items(group))
        begins = (area != before and not is_pool) or joins_labels
        if begins and run and not _is_head(run):
            yield run
            run = ()
        run = (*run, *group)
        if is_pool and area != before:
            yield run
            run = ()
    if run:
        yield run


def _is_head(run: Sequence) -> bool:
    first = run[0]
    return isinstance(first, CallItem) and first.name.startswith("global")


def _area(group: Sequence, graph: LayerGraph) -> int:
    nodes = item_nodes(group)
    return _pixels(graph.nodes[nodes[-1]].shape) if nodes else 0


def _area_before(group: Sequence, graph: LayerGraph) -> int:
    nodes = item_nodes(group)
    inputs = graph.nodes[nodes[0]].inputs if nodes else ()
    return _pixels(graph.nodes[inputs[0]].shape) if inputs else 0


def _pixels(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] if len(shape) == 3 else 1


def _with_ends(statements: tuple[StatementItem, ...]) -> tuple[StatementItem, ...]:
    """Names for the first and the last statement where they have none of their own."""
    found = list(statements)
    chains = [i for i, st in enumerate(found) if _is_chain(st)]
    if len(chains) < _MIN_PARTS:
        return statements
    for place, label in ((chains[0], STEM), (chains[-1], HEAD)):
        if not found[place].label or found[place].label == f"s{place}":
            found[place] = replace(found[place], label=label)
    return tuple(found)
