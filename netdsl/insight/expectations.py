"""The `test` sections: numbers that stand in the file and must come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netdsl.errors import NetError, fail, nearest
from netdsl.insight.gradcheck import LayerError, gradcheck
from netdsl.insight.published import is_published, published
from netdsl.insight.receptive import receptive_field
from netdsl.language import syntax as s
from netdsl.language.elaborate import elaborate
from netdsl.language.evaluate import Scope, evaluate, same
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.language.unparse import expression
from netdsl.values import Call, Size, Symbol, Value, show

CLOSE = 0.01
"""How near `~` must be: one part in a hundred."""


@dataclass(frozen=True)
class Outcome:
    """One expectation: as written, whether it holds, and what was found where it does not."""

    text: str
    ok: bool
    found: str = ""


@dataclass(frozen=True)
class TestResult:
    """The expectations of one `test` section, and the accuracies that are published of its net."""

    name: str
    outcomes: tuple[Outcome, ...]
    published: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(o.ok for o in self.outcomes)


_FACTS: dict[str, Callable[[Network], Value]] = {
    "params": lambda n: n.params,
    "macs": lambda n: n.macs,
    "activations": lambda n: n.activations,
}


def _shape(network: Network, place: str) -> Value:
    return network.place(place).type.shape[1:]


def _receptive(network: Network, place: str) -> Value:
    return receptive_field(network.graph, network.place(place))


_QUERIES: dict[str, Callable[[Network, str], Value]] = {
    "shape": _shape,
    "receptive_field": _receptive,
}


def run_test(program: Program, test: s.Test) -> TestResult:
    """The outcome of a `test` section. Raises NetError where it asks for what there is not."""
    return _run(program, test, test.expectations)


def check_test(program: Program, test: s.Test) -> None:
    """Raises NetError where a test asks for what there is not; nothing costly is run."""
    _run(program, test, [e for e in test.expectations if not _is_gradients(e)])


def run_small(program: Program, test: s.Test, by: int) -> TestResult:
    """The gradients of a test's net, its channels divided `by` a number and its images as small as
    they can be; what it counts is not that of the whole net, and is not looked at."""
    name = program.net(test.net, test.span)
    wrong = _wrong(gradcheck(program, name, shrink=by))
    return TestResult(name, (Outcome("gradients", not wrong, wrong),), published(test))


def _run(program: Program, test: s.Test, expectations: Sequence[s.Expr]) -> TestResult:
    name = program.net(test.net, test.span)
    network = elaborate(program, name)
    errors, outcomes, facts = [], [], {}
    try:
        facts = published(test)
    except NetError as e:
        errors.append(e)
    for expectation in expectations:
        if is_published(expectation):
            continue
        try:
            outcomes.append(_outcome(program, network, expectation))
        except NetError as e:
            errors.append(e.located(expectation.span))
    if errors:
        raise NetError(*(d for e in errors for d in e.diagnostics))
    return TestResult(name, tuple(outcomes), facts)


def _is_gradients(e: s.Expr) -> bool:
    return isinstance(e, s.Name) and e.name == "gradients"


def _wrong(rows: Iterable[LayerError]) -> str:
    """The layers whose gradients are off, and by how much."""
    return ", ".join(f"{x.name} off by {x.error:.1e}" for x in rows if not x.ok)


def _outcome(program: Program, network: Network, e: s.Expr) -> Outcome:
    text = expression(e)
    if _is_gradients(e):
        wrong = _wrong(gradcheck(program, network.name))
        return Outcome(text, not wrong, wrong)
    if not isinstance(e, s.Flat) or len(e.rest) != 1 or e.rest[0][0] not in _COMPARE:
        raise fail(
            f"`{text}` is no expectation",
            e.span,
            help="compare something: `params == 61_706`, `macs ~ 1.8e9`; or write `gradients`",
        )
    op, right = e.rest[0]
    a, b = _value(network, e.first), _value(network, right)
    try:
        ok = _COMPARE[op](a, b)
    except TypeError:
        raise fail(f"`{text}` compares unlike things", e.span) from None
    found = "" if ok else f"it is {_shown(a)}"
    return Outcome(text, ok, found)


def _value(network: Network, e: s.Expr) -> Any:
    value = evaluate(e, Scope({k: f(network) for k, f in _FACTS.items()}))
    if isinstance(value, Call) and value.name in _QUERIES:
        places = [a.value for a in value.arguments]
        if len(places) != 1 or not isinstance(places[0], str):
            raise fail(f'`{value.name}` takes one place: `{value.name}("conv1")`', e.span)
        try:
            return _QUERIES[value.name](network, places[0])
        except NetError as error:
            raise error.located(e.span) from None
    if isinstance(value, Call | Symbol):
        help = nearest(value.name, [*_FACTS, *_QUERIES, "gradients"], "known are")
        raise fail(f"a test knows no `{value.name}`", e.span, help=help)
    return value.dims if isinstance(value, Size) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return str(Size(value))
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else show(value)


def _close(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= CLOSE * abs(b))


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": same,
    "!=": lambda a, b: not same(a, b),
    "~": _close,
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
