"""Folds what recurs in a tree into repeats and blocks, as long as the text gets shorter."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

from netdsl.interchange.structure_tree import (
    BlockItem,
    CallItem,
    Item,
    LabelItem,
    LoopItem,
    RepeatItem,
    Sequence,
    walk_items,
    walk_sequences,
)
from netdsl.interchange.structure_unify import Unified, item_key, sequence_key, unify
from netdsl.layers import LAYERS, activation, convolution, normalization
from netdsl.layers.layer import Layer
from netdsl.ops import OPS

_MAX_PATTERN = 16
"""Items of a sequence that can become a block."""
_MAX_PERIOD = 24
_MIN_GAIN = 5
"""Words that a block must save."""
_BLOCK_COST = 5
_MANY_PARAMS = 6

NameBlock = Callable[[Sequence, SequenceOf[Sequence], Container[str]], str]
"""A name for a block: from its body, the sequences that it stands for, and the names taken."""


def _names(*families: SequenceOf[Layer]) -> frozenset[str]:
    return frozenset(layer.name for family in families for layer in family)


_PRODUCTS = _names(convolution.LAYERS) | {"fc"}
_POINTWISE = _names(normalization.LAYERS, activation.LAYERS) | {
    op.name for op in OPS.values() if op.is_layer
}


@dataclass
class Draft:
    """A net while it is folded: the chains of its statements and shared chains, and its blocks."""

    chains: list[Sequence]
    fixed: Container[str]
    """Names that only the net itself can call: its shared chains."""
    name_block: NameBlock
    blocks: dict[str, BlockItem] = field(default_factory=dict)

    def fold(self) -> None:
        self._map(fold_runs)
        self._fold_units()
        while self._fold_best():
            self._map(fold_runs)

    def _bodies(self) -> Iterator[Sequence]:
        for chain in (*self.chains, *(b.body for b in self.blocks.values())):
            yield from walk_sequences(chain)

    def _map(self, change: Callable[[Sequence], Sequence]) -> None:
        """Changes every sequence, innermost first."""
        self.chains = [map_sequences(c, change) for c in self.chains]
        for name, block in self.blocks.items():
            self.blocks[name] = replace(block, body=map_sequences(block.body, change))

    # ---- units: a product with what follows it

    def _fold_units(self) -> None:
        found: dict[tuple[Hashable, ...], list[Sequence]] = {}
        for sequence in self._bodies():
            for start, end in _unit_spans(sequence):
                part = sequence[start:end]
                found.setdefault(sequence_key(part), []).append(part)
        for key, occurrences in found.items():
            unified = unify(occurrences, self.blocks)
            if len(occurrences) > 1 and _gain(occurrences, unified) > 0:
                self._apply(key, occurrences, unified, lambda s: _unit_spans(s))

    # ---- patterns of any kind

    def _fold_best(self) -> bool:
        best: tuple[float, tuple[Hashable, ...], list[Sequence], Unified] | None = None
        for key, occurrences in self._patterns().items():
            if len(occurrences) < 2 or _is_trivial(key):
                continue
            bound = (len(occurrences) - 1) * max(map(size, occurrences)) - _BLOCK_COST
            if bound < _MIN_GAIN or (best is not None and bound <= best[0]):
                continue
            unified = unify(occurrences, self.blocks)
            gain = _gain(occurrences, unified)
            if gain >= _MIN_GAIN and (best is None or gain > best[0]):
                best = (gain, key, occurrences, unified)
        if best is None:
            return False
        _, key, occurrences, unified = best
        self._apply(key, occurrences, unified, lambda s: self._spans(s, key))
        return True

    def _patterns(self) -> dict[tuple[Hashable, ...], list[Sequence]]:
        """Sequences without labels by their keys; those of one key do not overlap."""
        found: dict[tuple[Hashable, ...], list[Sequence]] = {}
        for sequence in self._bodies():
            keys = [item_key(i) for i in sequence]
            is_plain = [self._is_plain(i) for i in sequence]
            ends: dict[tuple[Hashable, ...], int] = {}
            for start in range(len(sequence)):
                for end in range(start + 1, min(len(sequence), start + _MAX_PATTERN) + 1):
                    if not is_plain[end - 1]:
                        break
                    key = tuple(keys[start:end])
                    if ends.get(key, 0) <= start:
                        ends[key] = end
                        found.setdefault(key, []).append(sequence[start:end])
        return found

    def _is_plain(self, item: Item) -> bool:
        """Whether an item can be in a block."""
        return not any(
            isinstance(i, LabelItem | LoopItem)
            or (isinstance(i, CallItem) and (i.name in self.fixed or i.name == "input"))
            for i in walk_items((item,))
        )

    def _spans(self, sequence: Sequence, key: tuple[Hashable, ...]) -> Iterator[tuple[int, int]]:
        keys, start = [item_key(i) for i in sequence], 0
        while start + len(key) <= len(keys):
            if tuple(keys[start : start + len(key)]) == key:
                yield start, start + len(key)
                start += len(key)
            else:
                start += 1

    def _apply(
        self,
        key: tuple[Hashable, ...],
        occurrences: SequenceOf[Sequence],
        unified: Unified,
        spans: Callable[[Sequence], Iterator[tuple[int, int]]],
    ) -> None:
        """Makes a block of a pattern and calls it at each of its occurrences."""
        taken = {*self.blocks, *(c.name for s in self._bodies() for c in _call_items(s))}
        name = self.name_block(unified.body, occurrences, taken)
        calls = {id(o): (o, row) for o, row in zip(occurrences, unified.rows, strict=True)}
        rows: dict[tuple[Sequence, tuple[str, ...]], tuple[tuple[str, object], ...]] = {}
        for o, row in calls.values():
            rows[o, _nodes(o)] = row  # type: ignore[assignment]

        def change(sequence: Sequence) -> Sequence:
            found: list[Item] = []
            last = 0
            for start, end in spans(sequence):
                part = sequence[start:end]
                if sequence_key(part) == key:
                    args = rows[part, _nodes(part)]
                    call = CallItem(name, args, None, _nodes(part), part[0].channels)  # type: ignore[arg-type]
                    found += [*sequence[last:start], call]
                    last = end
            return (*found, *sequence[last:])

        self._map(change)
        self.blocks[name] = BlockItem(name, unified.params, unified.body)


def _call_items(items: Sequence) -> Iterator[CallItem]:
    return (i for i in items if isinstance(i, CallItem))


def _nodes(items: Sequence) -> tuple[str, ...]:
    return tuple(n for i in items for n in i.nodes)


def _is_trivial(key: tuple[Hashable, ...]) -> bool:
    """Whether a pattern is one call: a block of it would only be another name."""
    return len(key) == 1 and (isinstance(key[0], str) or key[0][0] == "*")  # type: ignore[index]


def map_sequences(items: Sequence, change: Callable[[Sequence], Sequence]) -> Sequence:
    """Items with every sequence changed, innermost first."""
    found: list[Item] = []
    for item in items:
        match item:
            case CallItem(branches=tuple(branches)):
                mapped = tuple(map_sequences(b, change) for b in branches)
                found.append(replace(item, branches=mapped))
            case RepeatItem(body=body) | LoopItem(body=body):
                found.append(replace(item, body=map_sequences(body, change)))
            case _:
                found.append(item)
    return change(tuple(found))


def _unit_spans(sequence: Sequence) -> Iterator[tuple[int, int]]:
    """A product with the normalisations and activations behind it, or two of these alone."""
    start = 0
    while start < len(sequence):
        end = start + 1
        first = _plain_name(sequence[start])
        if first in _PRODUCTS or first in _POINTWISE:
            while end < len(sequence) and _plain_name(sequence[end]) in _POINTWISE:
                end += 1
            if end - start > 1:
                yield start, end
        start = end


def _plain_name(item: Item) -> str:
    is_call = isinstance(item, CallItem) and item.branches is None and item.name in LAYERS
    return item.name if is_call and isinstance(item, CallItem) else ""


# ---- repeats ----------------------------------------------------------------------------------


def fold_runs(sequence: Sequence) -> Sequence:
    """Writes equal parts that follow each other as repeats."""
    found: list[Item] = []
    i = 0
    while i < len(sequence):
        period, count = _best_run(sequence, i)
        if count < 2:
            found.append(sequence[i])
            i += 1
            continue
        part = sequence[i : i + period * count]
        found.append(RepeatItem(part[:period], count, _nodes(part), part[0].channels))
        i += period * count
    return _absorb(tuple(found))


def _best_run(sequence: Sequence, start: int) -> tuple[int, int]:
    """The period and count of the run at a place that saves most."""
    best, best_gain = (1, 1), 0
    for period in range(1, min(_MAX_PERIOD, (len(sequence) - start) // 2) + 1):
        part = sequence[start : start + period]
        count, end = 1, start + period
        while sequence[end : end + period] == part:
            count, end = count + 1, end + period
        gain = (count - 1) * sum(map(_item_size, part))
        if count > 1 and gain > best_gain:
            best, best_gain = (period, count), gain
    return best


def _absorb(sequence: Sequence) -> Sequence:
    """Counts equal items beside a repeat with it."""
    found: list[Item] = []
    for item in sequence:
        body, count = _as_repeat(item)
        last, n = _as_repeat(found[-1]) if found else ((), 0)
        is_repeat = isinstance(item, RepeatItem) or (found and isinstance(found[-1], RepeatItem))
        if is_repeat and body == last and isinstance(count, int) and isinstance(n, int):
            before = found.pop()
            nodes = (*before.nodes, *item.nodes)
            found.append(RepeatItem(body, n + count, nodes, before.channels))
        else:
            found.append(item)
    return tuple(found)


def _as_repeat(item: Item) -> tuple[Sequence, object]:
    return (item.body, item.count) if isinstance(item, RepeatItem) else ((item,), 1)


# ---- the length of a text ---------------------------------------------------------------------


def size(items: Sequence) -> int:
    """The words of a chain."""
    return sum(map(_item_size, items))


def _item_size(item: Item) -> int:
    match item:
        case CallItem(args=args, branches=branches):
            joined = sum(size(b) + 1 for b in branches or ())
            return 2 + _args_size(args) + joined
        case RepeatItem(body=body):
            return size(body) + 2
        case LoopItem(body=body, rows=rows):
            return size(body) + 3 + sum(len(r) + 1 for r in rows)
    return 2


def _args_size(args: SequenceOf[tuple[str, object]]) -> int:
    return sum(2 if name not in ("channels", "kernel", "units") else 1 for name, _ in args)


def _gain(occurrences: SequenceOf[Sequence], unified: Unified) -> float:
    """The words that a block saves."""
    optional = {p.name for p in unified.params if p.is_optional}
    calls = sum(2 + sum(2 if name in optional else 1 for name, _ in row) for row in unified.rows)
    many = max(0, len(unified.params) - _MANY_PARAMS)
    block = _BLOCK_COST + len(unified.params) + size(unified.body) + 6 * many
    return sum(map(size, occurrences)) - calls - block
