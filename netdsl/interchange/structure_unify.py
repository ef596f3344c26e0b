"""Anti-unification: one body with parameters for several sequences that differ in arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from netdsl.interchange.structure_calls import layer_defaults, layer_signature
from netdsl.interchange.structure_tree import (
    IN_CHANNELS,
    BlockItem,
    BlockParameter,
    CallItem,
    Item,
    LabelItem,
    LoopItem,
    RepeatItem,
    Scaled,
    Sequence,
    Term,
)

Blocks = Mapping[str, BlockItem]
COUNT = "*"
"""The name of a repeat's count among the arguments of a sequence."""
_WIDTHS = ("channels", "units", "c", "n")
_SHORT_NAMES = {"channels": "c", "units": "c", "kernel": "k", COUNT: "n"}
_FACTORS = range(2, 9)
_MIN_ROWS = 3
"""Different rows that must agree before one parameter is written as a multiple of another."""


def sequence_key(items: Sequence) -> tuple[Hashable, ...]:
    """What items must have in common to be uses of one block: all but the arguments."""
    return tuple(map(item_key, items))


def item_key(item: Item) -> Hashable:
    match item:
        case CallItem(name=name, branches=None):
            return name
        case CallItem(name=name, branches=tuple(branches)):
            return (name, *map(sequence_key, branches))
        case RepeatItem(body=body):
            return (COUNT, sequence_key(body))
        case LabelItem(node=node):
            return ("label", node)
    return ("loop", item)


def term_defaults(name: str, blocks: Blocks) -> Mapping[str, Term]:
    """The defaults of the parameters of a layer or block."""
    if name in blocks:
        return {p.name: p.default for p in blocks[name].params if p.is_optional}
    return layer_defaults(name)


@dataclass(frozen=True)
class Unified:
    """A body with its parameters, and the arguments of each of the sequences it came from."""

    body: Sequence
    params: tuple[BlockParameter, ...]
    rows: tuple[tuple[tuple[str, Term], ...], ...]


@dataclass
class _Parameter:
    name: str
    values: tuple[Term, ...]
    role: str
    is_optional: bool
    fallback: Term


def unify(occurrences: SequenceOf[Sequence], blocks: Blocks) -> Unified:
    """One body for sequences of one key."""
    calls = [list(_calls(o)) for o in occurrences]
    channels = tuple(o[0].channels for o in occurrences)
    uses_input = not any(c.name == "add" for c in calls[0] if isinstance(c, CallItem))
    chooser = _Chooser(channels if uses_input else (None,) * len(occurrences))
    new_args = [
        _unify_calls([column[i] for column in calls], blocks, chooser) for i in range(len(calls[0]))
    ]
    body = _rebuild(occurrences[0], iter(new_args))
    required = [p for p in chooser.params if not p.is_optional]
    optional = [p for p in chooser.params if p.is_optional]
    defaults = {p.name: _best_default(p) for p in optional}
    params = [BlockParameter(p.name) for p in required]
    params += [BlockParameter(name, True, value) for name, value in defaults.items()]
    values = {p.name: p.values for p in chooser.params}
    rows = tuple(
        tuple(
            (p.name, values[p.name][i])
            for p in params
            if p.name not in defaults or values[p.name][i] != defaults[p.name]
        )
        for i in range(len(occurrences))
    )
    return Unified(body, tuple(params), rows)


def _best_default(p: _Parameter) -> Term:
    """The most frequent value; of several the usual one."""
    counts = Counter(v for v in p.values if not isinstance(v, Scaled))
    most = max(counts.values(), default=0)
    if counts[p.fallback] == most:
        return p.fallback
    return next(v for v in p.values if counts[v] == most)


def _calls(items: Sequence) -> Iterator[CallItem | RepeatItem]:
    for item in items:
        match item:
            case CallItem(branches=branches):
                for branch in branches or ():
                    yield from _calls(branch)
                yield item
            case RepeatItem(body=body):
                yield from _calls(body)
                yield item
            case LoopItem() | LabelItem():
                raise AssertionError("labels and loops are in no block")


def _unify_calls(
    calls: SequenceOf[CallItem | RepeatItem], blocks: Blocks, chooser: _Chooser
) -> tuple[tuple[str, Term], ...]:
    """The arguments of one call of the body."""
    if isinstance(calls[0], RepeatItem):
        counts = tuple(c.count for c in calls if isinstance(c, RepeatItem))
        return ((COUNT, chooser.term(COUNT, counts, False, None)),)
    name = calls[0].name
    defaults = term_defaults(name, blocks)
    given = [dict(c.args) for c in calls if isinstance(c, CallItem)]
    found: list[tuple[str, Term]] = []
    for param in _ordered_names(name, given, blocks):
        values = tuple(g.get(param, defaults.get(param)) for g in given)
        is_optional = param in defaults
        term = chooser.term(param, values, is_optional, defaults.get(param))
        if not is_optional or term != defaults[param] or isinstance(term, Scaled):
            found.append((param, term))
    return tuple(found)


def _ordered_names(
    name: str, given: SequenceOf[Mapping[str, Term]], blocks: Blocks
) -> SequenceOf[str]:
    """The parameters that some of the calls give, in the order of the signature."""
    if name in blocks:
        order = [p.name for p in blocks[name].params]
    else:
        order = parameter_order(name)
    return [p for p in order if any(p in g for g in given)]


def parameter_order(layer: str) -> list[str]:
    return [p.name for p in layer_signature(layer).params]


def _rebuild(items: Sequence, args: Iterator[tuple[tuple[str, Term], ...]]) -> Sequence:
    """The items with other arguments, in the order of `_calls`."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, RepeatItem):
            body = _rebuild(item.body, args)
            found.append(replace(item, body=body, count=next(args)[0][1], channels=None))
        else:
            assert isinstance(item, CallItem)
            branches = item.branches
            if branches is not None:
                branches = tuple(_rebuild(b, args) for b in branches)
            found.append(replace(item, args=next(args), branches=branches, channels=None))
    return tuple(found)


class _Chooser:
    """Finds a term for each column of values: a constant, a parameter, or a multiple of one."""

    def __init__(self, channels: tuple[int | None, ...]) -> None:
        self.channels = channels
        self.params: list[_Parameter] = []

    def term(self, param: str, values: tuple[Term, ...], is_optional: bool, default: Term) -> Term:
        if len({*values}) == 1 and not isinstance(values[0], Scaled):
            return values[0]
        role = "width" if param in _WIDTHS else param
        alike = [p for p in self.params if p.role == role or p.name == param]
        for p in alike:
            if p.values == values:
                return Scaled(p.name)
        if role == "width" and (scaled := self._multiple(alike, values)):
            return scaled
        name = self._free_name(_SHORT_NAMES.get(param, param))
        self.params.append(_Parameter(name, values, role, is_optional, default))
        return Scaled(name)

    def _multiple(self, alike: SequenceOf[_Parameter], values: tuple[Term, ...]) -> Scaled | None:
        if self._ratio(self.channels, values) == (1, 1):
            return Scaled(IN_CHANNELS)
        rows = [(p.name, p.values) for p in alike] if len({*values}) >= _MIN_ROWS else []
        for name, others in (*rows, (IN_CHANNELS, self.channels)):
            if ratio := self._ratio(others, values):
                return Scaled(name, *ratio)
        return None

    def _ratio(self, base: tuple[Term, ...], values: tuple[Term, ...]) -> tuple[int, int] | None:
        """Factor and divisor that turn `base` into `values`."""
        pairs = []
        for b, v in zip(base, values, strict=True):
            if type(b) is not int or type(v) is not int or not b or not v:
                return None
            pairs.append((b, v))
        b, v = pairs[0]
        factor, divisor = (v // b, 1) if v >= b else (1, b // v)
        if max(factor, divisor) > 1 and max(factor, divisor) not in _FACTORS:
            return None
        is_exact = all(b * factor == v * divisor for b, v in pairs)
        return (factor, divisor) if is_exact else None

    def _free_name(self, name: str) -> str:
        names = {p.name for p in self.params}
        n, found = 1, name
        while found in names:
            n += 1
            found = f"{name}{n}"
        return found
