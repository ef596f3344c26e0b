"""Folds what recurs in a tree into repeats and blocks, as long as the text gets shorter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

from netdsl.interchange.structure_groups import (
    group_starts,
    height,
    is_pool,
    is_unit_layer,
    layer_name,
    size,
    spans_of,
)
from netdsl.interchange.structure_inline import inline_blocks
from netdsl.interchange.structure_runs import fold_runs
from netdsl.interchange.structure_tree import (
    BlockItem,
    CallItem,
    IfItem,
    Item,
    LabelItem,
    LoopItem,
    RepeatItem,
    Sequence,
    item_nodes,
    map_sequences,
    walk_items,
    walk_sequences,
)
from netdsl.interchange.structure_unify import Key, Unified, item_key, sequence_key, unify
from netdsl.interchange.structure_variants import (
    Variant,
    projected_units,
    residual_chains,
    unify_variants,
)

_MAX_PATTERN = 8
"""Groups of a sequence that can become a block."""
_MIN_GAIN = 5
_MIN_CHAIN_GAIN = 12
"""Words that a block of one group must save, and one of several groups."""
_MAX_CHAIN_PARAMS = 4
_MAX_BLOCKS = 40
"""Blocks of a net; more are no help to a reader."""
_MAX_SELECTED = 64
"""Occurrences of which each is tried to be left out."""
_BLOCK_COST = 5
_FREE_PARAMS = 3


@dataclass(frozen=True)
class _Pattern:
    """Sequences of one key, of so many groups."""

    key: Key
    group_count: int
    occurrences: list[Sequence]
    is_repeated: bool
    """Whether it is all that some repeat consists of."""

    @property
    def is_group(self) -> bool:
        return self.group_count == 1

    @property
    def is_gate(self) -> bool:
        """Whether it is a group without a sum: what units consist of."""
        return self.is_group and not any(
            isinstance(i, CallItem) and i.name == "add" for i in walk_items(self.occurrences[0])
        )

    @property
    def is_trivial(self) -> bool:
        """Whether it is one call: a block of it would only be another name."""
        first = self.occurrences[0][0]
        is_call = isinstance(first, CallItem) and first.branches is None
        return len(self.key) == 1 and (is_call or isinstance(first, RepeatItem))


@dataclass
class Draft:
    """A net while it is folded: the chains of its statements and shared chains, and its blocks."""

    chains: list[Sequence]
    fixed: Container[str]
    """Names that only the net itself can call: its shared chains."""
    blocks: dict[str, BlockItem] = field(default_factory=dict)

    def fold(self) -> None:
        self._fold_units()
        self._map(fold_runs)
        while len(self.blocks) < _MAX_BLOCKS and self._fold_once():
            self._map(fold_runs)
        self.chains, self.blocks = inline_blocks(self.chains, self.blocks)

    def _fold_once(self) -> bool:
        """Makes one block, if one saves anything: small parts of units first, chains last."""
        return (
            self._fold_best(lambda p: p.is_gate)
            or self._fold_variants()
            or self._fold_best(lambda p: p.is_group)
            or self._fold_best(lambda p: p.is_repeated)
            or self._fold_best(lambda p: True)
        )

    def _bodies(self) -> Iterator[Sequence]:
        for chain in (*self.chains, *(b.body for b in self.blocks.values())):
            yield from walk_sequences(chain)

    def _map(self, change: Callable[[Sequence], Sequence]) -> None:
        """Changes every sequence, innermost first."""
        self.chains = [map_sequences(c, change) for c in self.chains]
        for name, block in self.blocks.items():
            self.blocks[name] = replace(block, body=map_sequences(block.body, change))

    def _fold_units(self) -> None:
        """Makes blocks of products with the normalisations and activations behind them."""
        found: dict[Key, list[Sequence]] = {}
        for sequence in self._bodies():
            for start, end in itertools.pairwise(group_starts(sequence)):
                part = sequence[start:end]
                if len(part) > 1 and all(is_unit_layer(layer_name(i)) for i in part):
                    found.setdefault(sequence_key(part), []).append(part)
        for key, occurrences in found.items():
            if len(occurrences) > 1:
                occurrences, unified = self._select(occurrences, False)
                if _gain(occurrences, unified) > 0:
                    self._apply({key}, occurrences, unified)

    def _fold_variants(self) -> bool:
        """Makes one block of residual units that differ in their shortcut."""
        sequences = list(self._bodies())
        for variants in (*projected_units(sequences), *residual_chains(sequences)):
            if not all(self._is_plain(i) for v in variants for i in v.items):
                continue
            found = self._unify_variants(variants)
            if found is not None and found[2] >= _MIN_GAIN:
                parts, unified, _ = found
                self._apply({sequence_key(p) for p in parts}, parts, unified)
                return True
        return False

    def _unify_variants(
        self, variants: list[Variant]
    ) -> tuple[list[Sequence], Unified, float] | None:
        """The sequences of variants with their block and what it saves, without those that have no
        sum and cost more words than they save."""
        best = self._try_variants(variants)
        for other in variants if best and len(variants) <= _MAX_SELECTED else ():
            fewer = [v for v in variants if v is not other]
            if other.is_residual or all(v.is_residual for v in fewer):
                continue
            smaller = self._try_variants(fewer)
            if (
                smaller
                and best
                and len(smaller[1].params) < len(best[1].params)
                and smaller[2] > best[2]
            ):
                return self._unify_variants(fewer)
        return best

    def _try_variants(
        self, variants: list[Variant]
    ) -> tuple[list[Sequence], Unified, float] | None:
        unified = unify_variants(variants, self.blocks)
        parts = [v.items for v in variants]
        return (parts, unified, _gain(parts, unified)) if unified else None

    def _fold_best(self, is_wanted: Callable[[_Pattern], bool]) -> bool:
        """Makes a block of what saves most: of single groups first, the innermost ones."""
        best: tuple[tuple[float, ...], _Pattern] | None = None
        for pattern in self._patterns():
            if len(pattern.occurrences) < 2 or pattern.is_trivial or not is_wanted(pattern):
                continue
            unified = unify(pattern.occurrences, self.blocks)
            gain = _gain(pattern.occurrences, unified)
            is_unit = pattern.is_group or pattern.is_repeated
            if gain < (_MIN_GAIN if is_unit else _MIN_CHAIN_GAIN):
                continue
            if not pattern.is_group and len(unified.params) > _MAX_CHAIN_PARAMS:
                continue
            depth = -height(pattern.occurrences[0]) if pattern.is_group else -math.inf
            if best is None or (depth, gain) > best[0]:
                best = ((depth, gain), pattern)
        if best is None:
            return False
        key, occurrences = best[1].key, best[1].occurrences
        self._apply({key}, *self._select(occurrences))
        return True

    def _select(
        self, occurrences: list[Sequence], reads_input: bool = True
    ) -> tuple[list[Sequence], Unified]:
        """The occurrences without those that cost more words than they save, and their body."""
        unified = unify(occurrences, self.blocks, reads_input)
        gain = _gain(occurrences, unified)
        for other in occurrences if 2 < len(occurrences) <= _MAX_SELECTED else ():
            fewer = [o for o in occurrences if o is not other]
            if len(fewer) < 2:
                break
            smaller = unify(fewer, self.blocks, reads_input)
            if len(smaller.params) < len(unified.params) and _gain(fewer, smaller) > gain:
                return self._select(fewer, reads_input)
        return occurrences, unified

    def _patterns(self) -> Iterator[_Pattern]:
        """Runs of groups without labels, by their keys; those of one key do not overlap."""
        found: dict[Key, _Pattern] = {}
        repeated = {
            sequence_key(i.body)
            for sequence in self._bodies()
            for i in sequence
            if isinstance(i, RepeatItem)
        }
        for sequence in self._bodies():
            keys = [item_key(i) for i in sequence]
            is_plain = [self._is_plain(i) for i in sequence]
            starts = group_starts(sequence)
            ends: dict[Key, int] = {}
            for i, start in enumerate(starts):
                for n, end in enumerate(starts[i + 1 : i + 1 + _MAX_PATTERN], 1):
                    if not all(is_plain[starts[i + n - 1] : end]):
                        break
                    key = tuple(keys[start:end])
                    is_part = end - start < len(sequence)
                    if is_part and is_pool(sequence[start]) and n > 1:
                        continue  # a pooling ends a part
                    if ends.get(key, 0) <= start:
                        ends[key] = end
                        pattern = found.setdefault(key, _Pattern(key, n, [], key in repeated))
                        pattern.occurrences.append(sequence[start:end])
        return iter(found.values())

    def _is_plain(self, item: Item) -> bool:
        """Whether an item can be in a block."""
        return not any(
            isinstance(i, LabelItem | LoopItem | IfItem)
            or (isinstance(i, CallItem) and (i.name in self.fixed or i.name == "input"))
            for i in walk_items((item,))
        )

    def _apply(
        self, keys: Container[Key], occurrences: SequenceOf[Sequence], unified: Unified
    ) -> None:
        """Makes a block of a pattern and calls it at each of its occurrences."""
        name = f"block {len(self.blocks)}"
        rows = {(o, item_nodes(o)): r for o, r in zip(occurrences, unified.rows, strict=True)}
        lengths = sorted({len(o) for o in occurrences}, reverse=True)

        def change(sequence: Sequence) -> Sequence:
            found: list[Item] = []
            last = 0
            for start, end in spans_of(sequence, lengths):
                part = sequence[start:end]
                if start < last or sequence_key(part) not in keys:
                    continue
                nodes = item_nodes(part)
                if (part, nodes) in rows:
                    call = CallItem(name, rows[part, nodes], None, nodes, part[0].channels)
                    found += [*sequence[last:start], call]
                    last = end
            return (*found, *sequence[last:])

        self._map(change)
        self.blocks[name] = BlockItem(name, unified.params, unified.body)


def _gain(occurrences: SequenceOf[Sequence], unified: Unified) -> float:
    """The words that a block saves; many parameters count as words."""
    optional = {p.name for p in unified.params if p.is_optional}
    calls = sum(2 + sum(2 if name in optional else 1 for name, _ in row) for row in unified.rows)
    many = max(0, len(unified.params) - _FREE_PARAMS) * (2 if height(unified.body) else 5)
    block = _BLOCK_COST + len(unified.params) + size(unified.body) + many
    return sum(map(size, occurrences)) - calls - block
