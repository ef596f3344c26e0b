"""Residual units that differ in their shortcut: the identity, a projection, or none."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from netdsl.interchange.structure.groups import group_starts, size, spans_of
from netdsl.interchange.structure.tree import (
    IN_CHANNELS,
    CallItem,
    IfItem,
    Scaled,
    Sequence,
    Term,
)
from netdsl.interchange.structure.unify import Blocks, Unified, Unifier, is_width, sequence_key


@dataclass(frozen=True)
class Variant:
    """`items` are what a text has; `common` what all variants have, among them a sum whose shortcut
    is empty, or none at all; `shortcut` is a projection that this one has. `is_residual` says
    whether there is a sum."""

    items: Sequence
    common: Sequence
    shortcut: Sequence = ()
    is_residual: bool = True
    place: int = 1
    """The index of the branch that is the shortcut."""


def projected_units(sequences: SequenceOf[Sequence]) -> Iterator[list[Variant]]:
    """Units whose shortcut is the identity in some and one kind of projection in others."""
    found: dict[Hashable, list[Variant]] = {}
    for sequence in sequences:
        starts = group_starts(sequence)
        for start, end in itertools.pairwise(starts):
            for variant in _unit_variants(sequence[start:end]):
                key = (variant.place, sequence_key(variant.common))
                found.setdefault(key, []).append(variant)
    for variants in found.values():
        kinds = Counter(sequence_key(v.shortcut) for v in variants if v.shortcut)
        if kinds and any(not v.shortcut for v in variants):
            kind = kinds.most_common(1)[0][0]
            yield [v for v in variants if sequence_key(v.shortcut) in ((), kind)]


def _unit_variants(items: Sequence) -> Iterator[Variant]:
    """A sum of two branches, the shorter of which is its shortcut."""
    join = items[0]
    if not isinstance(join, CallItem) or join.name != "add" or len(join.branches or ()) != 2:
        return
    branches = join.branches or ()
    place = min((1, 0), key=lambda i: size(branches[i]))
    if not branches[1 - place]:
        return
    emptied = tuple(b if i != place else () for i, b in enumerate(branches))
    common = (replace(join, branches=emptied), *items[1:])
    yield Variant(items, common, branches[place], True, place)


def residual_chains(sequences: SequenceOf[Sequence]) -> Iterator[list[Variant]]:
    """Chains that stand in some places alone and in others are added to what flows into them."""
    found: dict[Hashable, list[Variant]] = {}
    mains: set[int] = set()
    for sequence in sequences:
        starts = group_starts(sequence)
        for start, end in itertools.pairwise(starts):
            for unit in _unit_variants(sequence[start:end]) if end - start == 1 else ():
                join = unit.items[0]
                assert isinstance(join, CallItem)
                main = (join.branches or ())[1 - unit.place]
                if not unit.shortcut and len(group_starts(main)) > 2:
                    mains.add(id(main))
                    key = sequence_key(main)
                    residual = Variant(unit.items, main, (), True, unit.place)
                    found.setdefault(key, []).append(residual)
    lengths = sorted({len(key) for key in found if isinstance(key, tuple)}, reverse=True)
    for sequence in sequences:
        last = 0
        for start, end in spans_of(sequence, lengths) if id(sequence) not in mains else ():
            key = sequence_key(sequence[start:end])
            if start >= last and key in found:
                part = sequence[start:end]
                found[key].append(Variant(part, part, (), False))
                last = end
    yield from (v for v in found.values() if any(not x.is_residual for x in v))


def unify_variants(variants: SequenceOf[Variant], blocks: Blocks) -> Unified | None:
    """One block for variants; None if no condition tells them apart that a reader expects."""
    unifier = Unifier([v.common for v in variants], blocks)
    if all(v.is_residual for v in variants):
        return _unify_projections(variants, unifier)
    condition = _condition(unifier, [v.is_residual for v in variants], unifier.body, True)
    if condition is None:
        return None
    places = {v.place for v in variants if v.is_residual}
    if len(places) > 1:
        return None
    shortcut = (IfItem(condition),)
    branches = (unifier.body, shortcut) if 1 in places else (shortcut, unifier.body)
    return unifier.result((CallItem("add", (), branches),))


def _unify_projections(variants: SequenceOf[Variant], unifier: Unifier) -> Unified | None:
    shortcut = unifier.optional_part({i: v.shortcut for i, v in enumerate(variants) if v.shortcut})
    if shortcut is None:
        return None
    is_projected = [bool(v.shortcut) for v in variants]
    condition = _condition(unifier, is_projected, shortcut, False)
    if condition is None:
        condition = unifier.add_flag("project", tuple(is_projected))
    join = unifier.body[0]
    assert isinstance(join, CallItem)
    place = variants[0].place
    branch = (IfItem(condition, shortcut),)
    branches = tuple(branch if i == place else b for i, b in enumerate(join.branches or ()))
    return unifier.result((replace(join, branches=branches), *unifier.body[1:]))


def _condition(
    unifier: Unifier, wanted: SequenceOf[bool], part: Sequence, is_same: bool
) -> str | None:
    """A condition on stride and channels that is true in the wanted rows only: that the shape stays
    the same, or that it changes. `part` gives the channels of the result."""
    expected = [w == is_same for w in wanted]  # the shape stays the same
    strides = [(s, unifier.values(Scaled(s))) for s in unifier.parameters("stride")]
    widths = [(w, unifier.values(w)) for w in _widths(part)]
    channels = unifier.values(Scaled(IN_CHANNELS))
    stride_tests = [(s, [v == 1 for v in values]) for s, values in strides if values]
    width_tests = [
        (w, [a == b for a, b in zip(values, channels, strict=True)])
        for w, values in widths
        if values and channels
    ]
    for stride, rows in stride_tests:
        if rows == expected:
            return f"{stride} == 1" if is_same else f"{stride} > 1"
    for width, rows in width_tests:
        if rows == expected:
            return f"in.channels {'==' if is_same else '!='} {width}"
    for stride, first in stride_tests:
        for width, second in width_tests:
            if [a and b for a, b in zip(first, second, strict=True)] == expected:
                if is_same:
                    return f"{stride} == 1 and in.channels == {width}"
                return f"{stride} > 1 or in.channels != {width}"
    return None


def _widths(part: Sequence) -> list[Term]:
    """The channels of the last call that says how many it gives."""
    for item in reversed(part):
        if isinstance(item, CallItem):
            found = [v for name, v in item.args if is_width(name)]
            if found:
                return found
    return []
