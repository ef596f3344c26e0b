"""Matches the modules of another program, named as a tree, with the layers of a net in the order in
which they run.

What is in one branch of the tree lies in one stretch of the net, siblings whose names differ in
their numbers alone follow each other as these do, and states have the same shapes. Among the
assignments that obey this, the better ones are those in which more of these siblings read each
other's results (`conv2` reads what `conv1` gives, so a shortcut is not `conv3`), then those in
which more branches of the tree are blocks of the net, then those whose names have more words in
common (`branch_pool` is what reads a pooling).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from netdsl.errors import NetError, fail
from netdsl.interchange.weights.module_tree import ForeignModule, ModuleNode
from netdsl.interchange.weights.torch_layout import ModuleForm
from netdsl.language.network import LayerInfo, Network

MAX_SEARCH_STEPS = 300_000
MAX_RUNS = 300
"""Children of one node whose names differ in more than numbers."""
_MAX_TIES, MAX_AMBIGUITIES = 24, 200
_Score = tuple[int, int, int]
"""Siblings that read each other, containers that are blocks of the net, words in common."""
_Pairs = tuple[tuple[int, ForeignModule], ...]
_ZERO: _Score = (0, 0, 0)
_SYNONYMS = {
    **dict.fromkeys(("downsample", "skip", "proj", "residual"), "shortcut"),
    **dict.fromkeys(("maxpool", "avgpool", "globalavgpool", "globalmaxpool"), "pool"),
    **dict.fromkeys(("auxlogits", "aux_logits", "auxiliary"), "aux"),
    **dict.fromkeys(("classifier", "fc", "logits"), "head"),
}
"""Words of module names that say the same; they only choose among what fits equally well."""


@dataclass(frozen=True)
class Ambiguity:
    """Two assignments between which neither shapes nor names decide, from index `first` on."""

    chosen: _Pairs
    other: _Pairs


@dataclass(frozen=True)
class Assignment:
    """The module of each layer with states, by the layer's index; and what was left open."""

    pairs: _Pairs
    ambiguities: tuple[Ambiguity, ...] = ()


@dataclass(frozen=True)
class _Solution:
    """The best assignments of a part of the tree to the layers from some index on; `is_cut` if
    there are more than were kept."""

    score: _Score
    pairs: _Pairs
    ambiguities: tuple[Ambiguity, ...] = ()
    is_cut: bool = False


def match_modules(
    network: Network, forms: Sequence[ModuleForm], tree: ModuleNode
) -> Assignment | int:
    """Assigns a module to each of `forms`. Modules that the net does not use may be whole
    branches at the top of the tree, such as an auxiliary classifier. If there is no assignment,
    returns how many of the first layers have one. Raises NetError if the search is too long."""
    search = _Search(forms, _Dataflow(network, forms), tree.size - len(forms))
    solution = search.solve(_unwrap(tree), 0, is_top=True) if search.spare >= 0 else None
    if solution is None:
        return search.deepest
    if solution.is_cut:
        raise _search_error()
    return Assignment(solution.pairs, solution.ambiguities)


def _unwrap(tree: ModuleNode) -> ModuleNode:
    """Leaves out containers around everything, such as `module.` or `backbone.`."""
    while len(tree.runs) == 1 and len(tree.runs[0]) == 1:
        tree = tree.runs[0][0]
    return tree


class _Dataflow:
    """Which layers read, directly or not, the results of which; and the words of their names."""

    def __init__(self, network: Network, forms: Sequence[ModuleForm]) -> None:
        indices = {f.path: i for i, f in enumerate(forms)}
        upstream: dict[str, int] = {n.name: 0 for n in network.graph.inputs}
        self.upstream = [0] * len(forms)
        self.words = [_words(f.path) for f in forms]
        self.blocks = _block_ranges(forms)
        types = {x.path: x.layer_type for x in network.layers}
        for layer in network.layers:
            above = 0
            for path in layer.input_paths:
                above |= upstream[path]
            for i in {indices[p] for p in (layer.path, layer.weight_path) if p in indices}:
                self.upstream[i] |= above
                self.words[i] |= _input_words(layer, types)
                above |= 1 << i
            upstream[layer.path] = above

    def reads(self, index: int, first: int, size: int) -> bool:
        """Whether a layer depends on one of `size` layers from `first` on."""
        return bool(self.upstream[index] >> first & ((1 << size) - 1))


def _block_ranges(forms: Sequence[ModuleForm]) -> set[tuple[int, int]]:
    """The begins and ends of the layers below each label and block of the net."""
    found: dict[str, tuple[int, int]] = {}
    for i, form in enumerate(forms):
        parts = form.path.split(".")
        for k in range(1, len(parts)):
            path = ".".join(parts[:k])
            found[path] = (found.get(path, (i, i))[0], i + 1)
    return set(found.values())


def _input_words(layer: LayerInfo, types: Mapping[str, str]) -> set[str]:
    """The word `pool` for a layer that reads a pooling."""
    found: set[str] = set()
    for path in layer.input_paths:
        found |= _words(types.get(path, "")) & {"pool"}
    return found


def _words(path: str) -> set[str]:
    words = re.findall("[a-z]+", path.lower().replace("_", "."))
    return {_SYNONYMS.get(w, w) for w in words}


@dataclass
class _Search:
    """Searches for the best assignments of parts of the tree to stretches of layers."""

    forms: Sequence[ModuleForm]
    dataflow: _Dataflow
    spare: int
    """How many modules the net does not use."""
    deepest: int = 0
    steps: int = 0
    _found: dict[tuple[int, int], _Solution | None] = field(default_factory=dict)

    def solve(self, node: ModuleNode, first: int, is_top: bool = False) -> _Solution | None:
        key = (id(node), first)
        if key not in self._found:
            self._found[key] = (
                self._fit_leaf(node.module, first)
                if node.module is not None
                else _Arrangement(self, node, first, is_top).best()
            )
        return self._found[key]

    def _fit_leaf(self, module: ForeignModule, index: int) -> _Solution | None:
        if index >= len(self.forms) or not self.forms[index].fits(module.shapes):
            return None
        self.deepest = max(self.deepest, index + 1)
        common = len(self.dataflow.words[index] & _words(module.path))
        return _Solution((0, 0, common), ((index, module),))

    def spend_step(self) -> None:
        self.steps += 1
        if self.steps > MAX_SEARCH_STEPS:
            raise _search_error()


def _search_error() -> NetError:
    return fail(
        "the names leave too many ways to assign the weights",
        help="consecutive siblings need numbers in their names: conv1, conv2",
    )


@dataclass(frozen=True)
class _Placement:
    """How far the children of a node are placed: how many of each run, where the last one of each
    run begins, the index of the next layer, and how many modules are left out."""

    counts: tuple[int, ...]
    begins: tuple[int, ...]
    index: int
    skipped: int = 0


@dataclass(frozen=True)
class _Way:
    """One way to place some children: their solutions, last first, as a linked list."""

    score: _Score
    last: _Solution | None = None
    before: _Way | None = None
    is_cut: bool = False

    def then(self, chain: int, solution: _Solution) -> _Way:
        score = _add_scores(self.score, solution.score, (chain, 0, 0))
        return _Way(score, solution, self, self.is_cut or solution.is_cut)

    def solutions(self) -> Iterator[_Solution]:
        way: _Way | None = self
        found = []
        while way is not None and way.last is not None:
            found.append(way.last)
            way = way.before
        return reversed(found)


class _Arrangement:
    """The orders in which the children of a node fill the layers from `first` on."""

    def __init__(self, search: _Search, node: ModuleNode, first: int, is_top: bool) -> None:
        self.search, self.node, self.first = search, node, first
        self.end = len(search.forms) if is_top else first + node.size
        self.spare = search.spare if is_top else 0

    def best(self) -> _Solution | None:
        if self.end > len(self.search.forms):
            return None
        count = len(self.node.runs)
        if count > MAX_RUNS:
            raise _search_error()
        ways = {_Placement((0,) * count, (-1,) * count, self.first): [_Way(_ZERO)]}
        for _ in range(sum(map(len, self.node.runs))):
            ways = self._place_one_more(ways)
        complete = (w for at, found in ways.items() if at.index == self.end for w in found)
        choices = _best_ways(complete)
        if not choices:
            return None
        ambiguities = tuple(islice(_ambiguities(choices), MAX_AMBIGUITIES + 1))
        is_cut = len(ambiguities) > MAX_AMBIGUITIES or any(w.is_cut for w in choices)
        is_block = (self.first, self.end) in self.search.dataflow.blocks
        score = _add_scores(choices[0].score, (0, int(is_block), 0))
        pairs = _join_pairs(choices[0].solutions())
        return _Solution(score, pairs, ambiguities[:MAX_AMBIGUITIES], is_cut)

    def _place_one_more(
        self, ways: Mapping[_Placement, Sequence[_Way]]
    ) -> dict[_Placement, list[_Way]]:
        found: dict[_Placement, list[_Way]] = {}
        for at, before in ways.items():
            for after, way in self._next_ways(at, before):
                found.setdefault(after, []).append(way)
        return {at: _best_ways(several) for at, several in found.items()}

    def _next_ways(self, at: _Placement, ways: Sequence[_Way]) -> Iterator[tuple[_Placement, _Way]]:
        for run, count in enumerate(at.counts):
            if count == len(self.node.runs[run]):
                continue
            self.search.spend_step()
            child = self.node.runs[run][count]
            solution = None
            if at.index + child.size <= self.end:
                solution = self.search.solve(child, at.index)
            if solution is not None:
                after, chain = _advance(at, run, at.index, child.size), self._chain(at, run)
                yield from ((after, way.then(chain, solution)) for way in ways)
            if at.skipped + child.size <= self.spare:
                skipped = _advance(at, run, at.begins[run], 0, child.size)
                yield from ((skipped, way) for way in ways)

    def _chain(self, at: _Placement, run: int) -> int:
        """Whether the next layer reads what the run's child before it gives."""
        begin = at.begins[run]
        if begin < 0:
            return 0
        size = self.node.runs[run][at.counts[run] - 1].size
        return int(self.search.dataflow.reads(at.index, begin, size))


def _best_ways(ways: Iterable[_Way]) -> list[_Way]:
    """Those of the highest score, a few of them, each once."""
    found = list(ways)
    top = max((w.score for w in found), default=_ZERO)
    best = [w for w in found if w.score == top]
    if len(best) > 1:  # modules that are left out can be so at several moments
        best = list({tuple(map(id, w.solutions())): w for w in best}.values())
    if len(best) > _MAX_TIES:
        return [replace(w, is_cut=True) for w in best[:_MAX_TIES]]
    return best


def _add_scores(*scores: _Score) -> _Score:
    chains, blocks, words = map(sum, zip(*scores, strict=True))
    return chains, blocks, words


def _ambiguities(choices: Sequence[_Way]) -> Iterator[Ambiguity]:
    """What the first of several equal ways leaves open: what its parts do, the other ways, and what
    their parts leave open."""
    pairs = _join_pairs(choices[0].solutions())
    yield from (a for s in choices[0].solutions() for a in s.ambiguities)
    for way in choices[1:]:
        others = _join_pairs(way.solutions())
        yield Ambiguity(pairs, others)
        for solution in way.solutions():
            for inner in solution.ambiguities:
                yield Ambiguity(pairs, tuple((dict(others) | dict(inner.other)).items()))


def _advance(at: _Placement, run: int, begin: int, size: int, skipped: int = 0) -> _Placement:
    counts = tuple(n + (i == run) for i, n in enumerate(at.counts))
    begins = tuple(begin if i == run else n for i, n in enumerate(at.begins))
    return _Placement(counts, begins, at.index + size, at.skipped + skipped)


def _join_pairs(solutions: Iterable[_Solution]) -> _Pairs:
    return tuple(pair for s in solutions for pair in s.pairs)
