"""Folds what recurs in a tree into repeats and blocks, as long as the text gets shorter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from netdsl.interchange.structure.groups import (
    group_starts,
    height,
    is_pool,
    is_unit_layer,
    layer_name,
    size,
    spans_of,
)
from netdsl.interchange.structure.inline import inline_blocks
from netdsl.interchange.structure.runs import fold_runs
from netdsl.interchange.structure.tree import (
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
from netdsl.interchange.structure.unify import Key, Unified, item_key, sequence_key, unify
from netdsl.interchange.structure.variants import (
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


T = TypeVar("T")


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


@dataclass(frozen=True)
class _Candidate:
    """A block and the sequences that it can stand for."""

    occurrences: list[Sequence]
    unified: Unified

    @cached_property
    def gain(self) -> float:
        """The words that the block saves; many parameters count as words."""
        params, body = self.unified.params, self.unified.body
        optional = {p.name for p in params if p.is_optional}
        words = (2 if name in optional else 1 for row in self.unified.rows for name, _ in row)
        calls = 2 * len(self.occurrences) + sum(words)
        many = max(0, len(params) - _FREE_PARAMS) * (2 if height(body) else 5)
        block = _BLOCK_COST + len(params) + size(body) + many
        return sum(map(size, self.occurrences)) - calls - block


def _without_costly(
    found: list[T],
    attempt: Callable[[list[T]], _Candidate | None],
    can_spare: Callable[[T, list[T]], bool],
) -> _Candidate | None:
    """The block of what is found, without what costs a parameter and more words than it saves."""
    whole = attempt(found)
    for other in found if whole and len(found) <= _MAX_SELECTED else ():
        fewer = [x for x in found if x is not other]
        part = attempt(fewer) if can_spare(other, fewer) else None
        if not whole or not part or part.gain <= whole.gain:
            continue
        if len(part.unified.params) < len(whole.unified.params):
            return _without_costly(fewer, attempt, can_spare)
    return whole


def _can_spare(other: Variant, fewer: list[Variant]) -> bool:
    """Whether a variant may stay outside: a chain without a sum, if there are others."""
    return not other.is_residual and not all(v.is_residual for v in fewer)


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
        for occurrences in found.values():
            if len(occurrences) > 1:
                found_block = self._select(occurrences, False)
                if found_block.gain > 0:
                    self._apply(found_block)

    def _fold_variants(self) -> bool:
        """Makes one block of residual units that differ in their shortcut."""
        sequences = list(self._bodies())
        for variants in (*projected_units(sequences), *residual_chains(sequences)):
            if all(self._is_plain(i) for v in variants for i in v.items):
                found = _without_costly(variants, self._unify_variants, _can_spare)
                if found is not None and found.gain >= _MIN_GAIN:
                    self._apply(found)
                    return True
        return False

    def _unify_variants(self, variants: list[Variant]) -> _Candidate | None:
        unified = unify_variants(variants, self.blocks)
        return _Candidate([v.items for v in variants], unified) if unified else None

    def _fold_best(self, is_wanted: Callable[[_Pattern], bool]) -> bool:
        """Makes a block of what saves most: of single groups first, the innermost ones."""
        best: tuple[tuple[float, ...], _Pattern] | None = None
        for pattern in self._patterns():
            if len(pattern.occurrences) < 2 or pattern.is_trivial or not is_wanted(pattern):
                continue
            unified = unify(pattern.occurrences, self.blocks)
            gain = _Candidate(pattern.occurrences, unified).gain
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
        self._apply(self._select(best[1].occurrences))
        return True

    def _select(self, occurrences: list[Sequence], reads_input: bool = True) -> _Candidate:
        """The block of the occurrences without the costly ones."""

        def attempt(chosen: list[Sequence]) -> _Candidate:
            return _Candidate(chosen, unify(chosen, self.blocks, reads_input))

        found = _without_costly(occurrences, attempt, lambda _, fewer: len(fewer) > 1)
        return found or attempt(occurrences)

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

    def _apply(self, found: _Candidate) -> None:
        """Makes a block of a pattern and calls it at each of its occurrences."""
        occurrences, unified = found.occurrences, found.unified
        keys = {sequence_key(o) for o in occurrences}
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
