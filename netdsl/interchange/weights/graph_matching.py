"""Matches the units of two nets by structure and shape: colour refinement (Weisfeiler & Leman 1968)
along the order in which they run and against it, then one unit at a time where several remain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netdsl.errors import fail
from netdsl.interchange.weights.graph_units import ColourTable, UnitGraph, UnitSource

MAX_UNITS = 5_000
MAX_MATCHES = 200
_Pairs = tuple[int, ...]
_Marks = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class UnitMatch:
    """The unit of the other net for each unit of this one. `others` are matches that structure and
    shape allow as well, each of which settles one choice in another way."""

    pairs: _Pairs
    others: tuple[_Pairs, ...] = ()


def match_units(here: UnitGraph, there: UnitGraph) -> UnitMatch | int:
    """The match of two nets. If there is none, the first unit here without a counterpart (their
    count if what differs is not a unit). Raises NetError if the nets are too large, or too many of
    their units are alike."""
    if max(len(here.units), len(there.units)) > MAX_UNITS:
        raise fail(f"a net of more than {MAX_UNITS:,} layers with weights is not matched")
    search = _UnitSearch(here, there)
    main = search.complete(())
    if main is None:
        return _first_difference(here, there)
    others = (
        search.complete((*main.marks[:k], (unit, other)))
        for k, ((unit, _), several) in enumerate(zip(main.marks, main.choices, strict=True))
        for other in several
    )
    return UnitMatch(main.pairs, tuple(x.pairs for x in others if x is not None))


@dataclass(frozen=True)
class _Completion:
    """A match, the pairs that were set to be unlike all others, and what else each could be."""

    pairs: _Pairs
    marks: _Marks
    choices: tuple[tuple[int, ...], ...]


class _UnitSearch:
    """Completes matches of two nets; counts how often."""

    def __init__(self, here: UnitGraph, there: UnitGraph) -> None:
        self.graphs = here, there
        self.count = 0
        self.table = ColourTable()

    def complete(self, marks: _Marks) -> _Completion | None:
        """A match that contains the pairs `marks`."""
        choices: list[tuple[int, ...]] = [()] * len(marks)
        while True:
            self.count += 1
            if self.count > MAX_MATCHES:
                raise fail("the net has too many branches that differ only in their weights")
            mine, theirs = (self._colours(k, marks) for k in (0, 1))
            if Counter(mine) != Counter(theirs):
                return None
            alike = _first_group(mine)
            if not alike:
                places = {colour: i for i, colour in enumerate(theirs)}
                return _Completion(tuple(places[c] for c in mine), marks, tuple(choices))
            first, *others = (i for i, colour in enumerate(theirs) if colour == mine[alike[0]])
            marks = (*marks, (alike[0], first))
            choices.append(tuple(others))

    def _colours(self, k: int, marks: _Marks) -> tuple[int, ...]:
        return _refine(self.graphs[k], self.table, {m[k]: i for i, m in enumerate(marks)})


def _first_group(colours: tuple[int, ...]) -> list[int]:
    """The units of the first colour that several have; none if all differ."""
    groups: dict[int, list[int]] = {}
    for i, colour in enumerate(colours):
        groups.setdefault(colour, []).append(i)
    return next((g for g in groups.values() if len(g) > 1), [])


def _refine(graph: UnitGraph, table: ColourTable, marks: Mapping[int, int]) -> tuple[int, ...]:
    """The colours of units: those of one colour have the same shape, and so has everything that
    they read and that reads them. `marks` makes some units unlike all others."""
    ahead = _forward(graph, table, marks)
    readers = _readers(graph)
    colours: dict[int, int] = {}
    for i in reversed(range(len(graph.units))):
        seen = sorted(
            table.number(
                reader if isinstance(reader, str) else colours[reader],
                table.source(source, {k: -1 if k == i else ahead[k] for k in source.units}),
            )
            for reader, source in readers.get(i, ())
        )
        colours[i] = table.number("both", ahead[i], *seen)
    return tuple(colours[i] for i in range(len(graph.units)))


def _readers(graph: UnitGraph) -> dict[int, list[tuple[int | str, UnitSource]]]:
    """The units and outputs that read each unit."""
    found: dict[int, list[tuple[int | str, UnitSource]]] = {}
    for reader, source in _readings(graph):
        for k in source.units:
            found.setdefault(k, []).append((reader, source))
    return found


def _readings(graph: UnitGraph) -> Iterator[tuple[int | str, UnitSource]]:
    yield from ((i, unit.source) for i, unit in enumerate(graph.units))
    yield from graph.outputs.items()


def _forward(graph: UnitGraph, table: ColourTable, marks: Mapping[int, int]) -> list[int]:
    """Colours by all that a unit reads."""
    found: dict[int, int] = {}
    for i, unit in enumerate(graph.units):
        found[i] = table.number(unit.shape, table.source(unit.source, found), marks.get(i, -1))
    return list(found.values())


def find_extra_units(here: UnitGraph, there: UnitGraph) -> list[int]:
    """The units there whose shape, with all that they read, no unit here has."""
    table = ColourTable()
    mine, theirs = (_forward(graph, table, {}) for graph in (here, there))
    known = set(mine)
    return [i for i, colour in enumerate(theirs) if colour not in known]


def _first_difference(here: UnitGraph, there: UnitGraph) -> int:
    """The first unit here whose shape, with all that it reads, occurs more often than there."""
    table = ColourTable()
    mine, theirs = (_forward(graph, table, {}) for graph in (here, there))
    left = Counter(theirs)
    for i, colour in enumerate(mine):
        left[colour] -= 1
        if left[colour] < 0:
            return i
    return len(mine)
