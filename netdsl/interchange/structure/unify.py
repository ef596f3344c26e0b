"""Anti-unification: one body with parameters for several sequences that differ in arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from netdsl.interchange.structure.calls import layer_defaults, layer_signature
from netdsl.interchange.structure.tree import (
    IN_CHANNELS,
    BlockItem,
    BlockParameter,
    CallItem,
    Item,
    LabelItem,
    RepeatItem,
    Scaled,
    Sequence,
    Term,
)
from netdsl.layers import LAYERS

Blocks = Mapping[str, BlockItem]
Terms = tuple[tuple[str, Term], ...]
Key = tuple[Hashable, ...]
COUNT = "*"
"""The name of a repeat's count among the arguments of a sequence."""
_SHORT_NAMES = {"channels": "c", "units": "c", "kernel": "k", COUNT: "n"}
_USUAL = ("stride", "dilation", "groups", "multiplier", "bias")
"""Parameters whose defaults a reader knows."""
_FACTORS = range(2, 9)
_MIN_ROWS = 3
"""Different rows that must agree before one parameter is written as a multiple of another."""


def sequence_key(items: Sequence) -> Key:
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
    return ("fixed", item)


def is_width(name: str) -> bool:
    """Whether a parameter counts channels, by its name: `channels`, `c`, `c2`, ..."""
    return name in ("channels", "units") or name.rstrip("0123456789") == "c"


def term_defaults(name: str, blocks: Blocks) -> dict[str, Term]:
    """The defaults of the parameters of a layer, block or repeat."""
    if name in blocks:
        return {p.name: p.default for p in blocks[name].params if p.is_optional}
    return dict(layer_defaults(name)) if name in LAYERS else {}


@dataclass(frozen=True)
class Unified:
    """A body with its parameters, and the arguments of each of the sequences it came from."""

    body: Sequence
    params: tuple[BlockParameter, ...]
    rows: tuple[Terms, ...]


def unify(occurrences: SequenceOf[Sequence], blocks: Blocks, reads_input: bool = True) -> Unified:
    """One body for sequences of one key; it `reads_input` if it may speak of `in.channels`."""
    return Unifier(occurrences, blocks, reads_input).result()


class Unifier:
    """Unifies sequences of one key, then parts that only some of them have."""

    def __init__(
        self, occurrences: SequenceOf[Sequence], blocks: Blocks, reads_input: bool = True
    ) -> None:
        self.blocks = blocks
        self.channels = tuple(o[0].channels for o in occurrences)
        reads_input &= all(map(_reads_input, _calls(occurrences[0])))
        unknown = (None,) * len(occurrences)
        self.chooser = _Chooser(self.channels if reads_input else unknown)
        self.body = self._unify(occurrences)

    def _unify(self, occurrences: SequenceOf[Sequence]) -> Sequence:
        calls = [list(_calls(o)) for o in occurrences]
        args = [self._unify_calls([row[i] for row in calls]) for i in range(len(calls[0]))]
        return _rebuild(occurrences[0], iter(args))

    def _unify_calls(self, calls: SequenceOf[CallItem | RepeatItem]) -> Terms:
        """The arguments of one call of the body."""
        name = calls[0].name if isinstance(calls[0], CallItem) else COUNT
        defaults = term_defaults(name, self.blocks)
        given = [{COUNT: c.count} if isinstance(c, RepeatItem) else dict(c.args) for c in calls]
        found: list[tuple[str, Term]] = []
        for param in self._parameter_order(name):
            if any(param in g for g in given):
                default = defaults.get(param)
                values = tuple(g.get(param, default) for g in given)
                term = self.chooser.term(param, values, param in defaults, default)
                if param not in defaults or term != default or isinstance(term, Scaled):
                    found.append((param, term))
        return tuple(found)

    def _parameter_order(self, name: str) -> list[str]:
        if name == COUNT:
            return [COUNT]
        params = self.blocks[name].params if name in self.blocks else layer_signature(name).params
        return [p.name for p in params]

    def optional_part(self, parts: Mapping[int, Sequence]) -> Sequence | None:
        """One body for the parts that some occurrences have, by their indices, in terms of the
        parameters that there are; None if they need more."""
        whole = self.chooser
        self.chooser = whole.select(sorted(parts))
        body = self._unify([parts[i] for i in sorted(parts)])
        is_enough = len(self.chooser.params) == len(whole.params)
        self.chooser = whole
        return body if is_enough else None

    def add_flag(self, name: str, values: tuple[bool, ...]) -> str:
        """A parameter that is `yes` or `no`, and its name."""
        name = self.chooser.free_name(name)
        self.chooser.params.append(_Parameter(name, values, name, True, False))
        return name

    def values(self, term: Term) -> tuple[int, ...] | None:
        """The values of a term in every occurrence, if they are known integers."""
        if not isinstance(term, Scaled):
            return (term,) * len(self.channels) if type(term) is int else None
        base: tuple[Term, ...] = self.channels
        if term.name != IN_CHANNELS:
            base = next(p.values for p in self.chooser.params if p.name == term.name)
        whole = [b for b in base if type(b) is int]
        if len(whole) < len(base):
            return None
        return tuple(b * term.factor // term.divisor for b in whole)

    def parameters(self, role: str) -> list[str]:
        return [p.name for p in self.chooser.params if p.role == role]

    def result(self, body: Sequence | None = None) -> Unified:
        found = self.chooser.params
        defaults = {p.name: _best_default(p) for p in found if p.is_optional}
        params = [BlockParameter(p.name) for p in found if not p.is_optional]
        params += [BlockParameter(name, True, value) for name, value in defaults.items()]
        values = {p.name: p.values for p in found}
        rows = tuple(
            tuple(
                (p.name, values[p.name][i])
                for p in params
                if p.name not in defaults or values[p.name][i] != defaults[p.name]
            )
            for i in range(len(self.channels))
        )
        return Unified(self.body if body is None else body, tuple(params), rows)


def _reads_input(call: CallItem | RepeatItem) -> bool:
    """Whether a reader expects `in.channels` beside a call: beside a gate, but not a sum."""
    if isinstance(call, RepeatItem) or call.branches is None:
        return True
    return call.name != "add" and not all(call.branches)


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
            case _:
                raise AssertionError("labels, loops and conditions are in no pattern")


def _rebuild(items: Sequence, args: Iterator[Terms]) -> Sequence:
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


@dataclass(frozen=True)
class _Parameter:
    """A parameter with its value in every row; `fallback` is the default of what it is passed
    to."""

    name: str
    values: tuple[Term, ...]
    role: str
    is_optional: bool
    fallback: Term


def _best_default(p: _Parameter) -> Term:
    """The usual value where it occurs, else the most frequent one."""
    counts: Counter[Term] = Counter(v for v in p.values if not isinstance(v, Scaled))
    most = max(counts.values(), default=0)
    if counts[p.fallback] == most or (p.role in _USUAL and counts[p.fallback]):
        return p.fallback
    return next(v for v in p.values if counts[v] == most)


class _Chooser:
    """Finds a term for each column of values: a constant, a parameter, or a multiple of one."""

    def __init__(self, channels: tuple[int | None, ...], min_rows: int = _MIN_ROWS) -> None:
        self.channels = channels
        self.min_rows = min_rows
        self.params: list[_Parameter] = []

    def select(self, rows: SequenceOf[int]) -> _Chooser:
        """The same parameters with the values of some rows."""
        chosen = _Chooser((None,) * len(rows), 1)
        chosen.params = [replace(p, values=tuple(p.values[i] for i in rows)) for p in self.params]
        return chosen

    def term(self, param: str, values: tuple[Term, ...], is_optional: bool, default: Term) -> Term:
        role = "width" if is_width(param) else param
        alike = [p for p in self.params if p.role == role]
        if len({*values}) == 1 and not isinstance(values[0], Scaled):
            return values[0]
        for p in alike:
            if p.values == values:
                return Scaled(p.name)
        if role == "width" and (scaled := self._multiple(alike, values)):
            return scaled
        name = self.free_name("c" if role == "width" else _SHORT_NAMES.get(param, param))
        is_optional &= role not in _USUAL or default in values
        self.params.append(_Parameter(name, values, role, is_optional, default))
        return Scaled(name)

    def _multiple(self, alike: SequenceOf[_Parameter], values: tuple[Term, ...]) -> Scaled | None:
        if _ratio(self.channels, values) == (1, 1):
            return Scaled(IN_CHANNELS)
        rows = [(p.name, p.values) for p in alike] if len({*values}) >= self.min_rows else []
        for name, others in (*rows, (IN_CHANNELS, self.channels)):
            if ratio := _ratio(others, values):
                return Scaled(name, *ratio)
        return None

    def free_name(self, name: str) -> str:
        names = {p.name for p in self.params}
        n, found = 1, name
        while found in names:
            n += 1
            found = f"{name.rstrip('0123456789')}{n}"
        return found


def _ratio(base: tuple[Term, ...], values: tuple[Term, ...]) -> tuple[int, int] | None:
    """The factor and the divisor, one of which is 1, that turn `base` into `values`."""
    pairs = [
        (b, v)
        for b, v in zip(base, values, strict=True)
        if type(b) is int and type(v) is int and b > 0 and v > 0
    ]
    if len(pairs) < len(values):
        return None
    b, v = pairs[0]
    factor, divisor = (v // b, 1) if v >= b else (1, b // v)
    if max(factor, divisor) > 1 and max(factor, divisor) not in _FACTORS:
        return None
    is_exact = all(b * factor == v * divisor for b, v in pairs)
    return (factor, divisor) if is_exact else None
