"""Cuts long chains into the statements of a net: by the modules that its nodes are in, else where
the image gets smaller or larger."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from netdsl.interchange.layer_graph import LayerGraph
from netdsl.interchange.structure.groups import PRODUCTS, group_starts, is_pool, size
from netdsl.interchange.structure.names import GENERIC, HEAD, STEM, TOP, Naming, identifier
from netdsl.interchange.structure.tree import (
    CallItem,
    Item,
    LabelItem,
    Sequence,
    StatementItem,
    item_nodes,
    walk_items,
)

_MIN_PARTS = 3
_LONG = 24
"""Words of a statement that is cut."""
_MAX_UNIT = 3
"""Layers of a product with its normalisation and activation."""
_HEAD_LAYERS = frozenset(("globalavgpool", "globalmaxpool", "flatten", "dropout"))
"""Layers that belong to the head if they stand before its product."""
_MANY = 24
"""Modules of which a net is not one line each."""


@dataclass(frozen=True)
class _ModulePart:
    """Items of one module; `count` is how many of their nodes have its name."""

    name: str
    items: Sequence
    count: int

    @property
    def is_single(self) -> bool:
        return self.count < 2


def cut_by_modules(
    statements: tuple[StatementItem, ...], naming: Naming, graph: LayerGraph
) -> tuple[tuple[StatementItem, ...], bool]:
    """The statements, with a statement for each module if their names say something; and whether
    they do. A label is a wish."""
    parts = [_module_parts(st.items, naming) for st in statements]
    named = [p for ps in parts for p in ps if not p.is_single and _label(p.name)]
    covered = sum(len(item_nodes(p.items)) for p in named)
    if not _MIN_PARTS <= len(named) <= _MANY or 2 * covered < len(naming.paths):
        return statements, False
    found = []
    for st, ps in zip(statements, parts, strict=True):
        merged = _merge_singles(ps)
        labels = [_label(p.name) if not p.is_single else None for p in merged]
        found += _cut(st, [p.items for p in merged], labels)
    return _with_ends(tuple(found), graph), True


def _module_parts(items: Sequence, naming: Naming) -> list[_ModulePart]:
    """Runs of items in one module; what has no name belongs to the part before it, but for a join
    of labels, which belongs to the part behind it."""
    found: list[_ModulePart] = []
    starts = {*group_starts(items)}
    for i, item in enumerate(items):
        path = naming.path_of(item.nodes)
        name = path[0] if path else ""
        count = sum(bool(naming.paths[n]) for n in item.nodes)
        if found and _is_open_join(found[-1]):
            found[-1] = _ModulePart(name, (*found[-1].items, item), count)
        elif not name and i in starts and _joins_labels(item):
            found.append(_ModulePart("", (item,), 0))
        elif found and (not name or name == found[-1].name or i not in starts):
            before = found[-1]
            count = before.count + (count if name == before.name else 0)
            found[-1] = _ModulePart(before.name, (*before.items, item), count)
        else:
            found.append(_ModulePart(name, (item,), count))
    return [half for part in found for half in _split_pool(part, naming)]


def _joins_labels(item: Item) -> bool:
    return any(isinstance(i, LabelItem) for i in walk_items((item,)))


def _is_open_join(part: _ModulePart) -> bool:
    return not part.name and len(part.items) == 1 and _joins_labels(part.items[0])


def _split_pool(part: _ModulePart, naming: Naming) -> Iterator[_ModulePart]:
    """A part and the pooling without a name that ends it."""
    *rest, last = part.items
    if rest and is_pool(last) and not naming.path_of(last.nodes):
        yield replace(part, items=tuple(rest))
        yield _ModulePart("", (last,), 0)
    else:
        yield part


def _merge_singles(parts: list[_ModulePart]) -> list[_ModulePart]:
    """Neighbours of one node each as one part; a pooling ends the part before it, unless only some
    of several numbered modules have one: then each is a part by itself, so that they are alike."""
    uneven = _unevenly_pooled(parts)
    found: list[_ModulePart] = []
    for part in parts:
        before = found[-1] if found else None
        if before and _is_lone_pool(part) and _stem(before) in uneven:
            found.append(replace(part, name="", count=0))
        elif before and _is_lone_pool(part):
            found[-1] = replace(before, items=(*before.items, *part.items))
        elif before and part.is_single and (before.is_single or not before.name):
            found[-1] = _ModulePart("", (*before.items, *part.items), 0)
        else:
            found.append(part)
    return found


def _is_lone_pool(part: _ModulePart) -> bool:
    return part.is_single and len(part.items) == 1 and is_pool(part.items[0])


def _stem(part: _ModulePart) -> str:
    """The name of a module without its number; empty for a layer with what belongs to it."""
    return "" if len(item_nodes(part.items)) <= _MAX_UNIT else re.sub(r"\d+[a-z]?$", "", part.name)


def _unevenly_pooled(parts: list[_ModulePart]) -> set[str]:
    """The names of numbered modules of which some are followed by a pooling and some are not."""
    followed = {True: set[str](), False: set[str]()}
    for part, after in itertools.zip_longest(parts, parts[1:]):
        followed[after is not None and _is_lone_pool(after)].add(_stem(part))
    return (followed[True] & followed[False]) - {""}


def _label(name: str) -> str | None:
    label = identifier(name)
    return label if label and label not in GENERIC else None


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
    return _with_ends(tuple(numbered), graph)


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
        joins_labels = any(isinstance(i, LabelItem) for i in walk_items(group))
        is_large = isinstance(first, CallItem) and bool(first.branches) and size(group) > _LONG
        is_end = end == len(items) and _is_head(group)
        begins = (
            (area != before and not is_pool(first)) or joins_labels or is_large
        ) and not is_end
        if begins and run and not _is_head(run):
            is_late = _reads_depthwise(group, graph) or _is_head(group)
            kept = _expansion_start(run) if is_late else len(run)
            if kept:
                yield run[:kept]
            run = run[kept:]
        run = (*run, *group)
        if (is_pool(first) and area != before and len(run) > len(group)) or is_large:
            yield run
            run = ()
    if run:
        yield run


def _reads_depthwise(group: Sequence, graph: LayerGraph) -> bool:
    """Whether a group begins with a depthwise convolution, which widens nothing itself."""
    nodes = item_nodes(group)
    return bool(nodes) and graph.nodes[nodes[0]].layer == "depthwise"


def _expansion_start(run: Sequence) -> int:
    """Where the product at the end of a run begins: it widens what follows the run."""
    start = group_starts(run)[-2]
    is_unit = isinstance(run[start], CallItem) and len(item_nodes(run[start:])) <= _MAX_UNIT
    return start if is_unit and start else len(run)


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


def _with_ends(
    statements: tuple[StatementItem, ...], graph: LayerGraph
) -> tuple[StatementItem, ...]:
    """Names for the first and the last statement where they have none of their own. The head holds
    only what depends on the classes, so that `except="head.*"` keeps all that other classes can
    use."""
    found = list(statements)
    chains = [i for i, st in enumerate(found) if _is_chain(st)]
    if len(chains) < _MIN_PARTS:
        return statements
    first, last = found[chains[0]], found[chains[-1]]
    found[chains[0]] = first if _has_own_label(first) else replace(first, label=STEM)
    if not _has_own_label(last) or last.label == HEAD:
        found[chains[-1] : chains[-1] + 1] = _cut_head(last, graph)
    return tuple(found)


def _has_own_label(st: StatementItem) -> bool:
    return bool(st.label) and re.fullmatch(r"s\d+", st.label or "") is None


def _cut_head(st: StatementItem, graph: LayerGraph) -> list[StatementItem]:
    """The last statement, with the last product and what prepares its operand as the head; layers
    with weights before those are a statement by itself."""
    starts = group_starts(st.items)
    groups = [st.items[a:b] for a, b in itertools.pairwise(starts)]
    layers = [[graph.nodes[n].layer for n in item_nodes(g)] for g in groups]
    place = max((i for i, names in enumerate(layers) if PRODUCTS.intersection(names)), default=0)
    while place and layers[place - 1] and _HEAD_LAYERS.issuperset(layers[place - 1]):
        place -= 1
    before = st.items[: starts[place]]
    if not any(graph.nodes[n].states for n in item_nodes(before)):
        return [replace(st, label=HEAD)]
    label = st.label if st.label and st.label != HEAD else TOP
    return _cut(st, [before, st.items[starts[place] :]], [label, HEAD])
