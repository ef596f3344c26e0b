"""The `test` sections: numbers that stand in the file and must come out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netdsl.errors import NetError, Span, fail, suggest_name
from netdsl.insight import trial
from netdsl.insight.gradcheck import SETTINGS, LayerError, gradcheck
from netdsl.insight.published import is_published, published
from netdsl.insight.receptive import receptive_field
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors
from netdsl.language.elaborate import elaborate
from netdsl.language.evaluate import Scope, evaluate, evaluate_arguments, is_equal
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.language.unparse import expression_text
from netdsl.parameter_types import Boolean, Float, QuotedText
from netdsl.signature import Param, Signature
from netdsl.training.recipe.expectations import METRICS
from netdsl.types import dims
from netdsl.values import Call, Size, Symbol, Value, format_value

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


@dataclass(frozen=True)
class Asked:
    """The net that a test asks about; `dry` where nothing costly is to be run."""

    program: Program
    network: Network
    dry: bool
    budget: Budget

    def tried(self, how: Callable[..., float], *places: str, training: bool) -> float:
        """What a trial of the net gives; 0 where it is not run."""
        self.spend(trial.BATCH, times=3)
        return 0.0 if self.dry else how(self.program, self.network.name, *places, training)

    def spend(self, batch: int, times: int) -> None:
        """Counts a trial at a batch size, which runs the net so many times; its gradients have
        about twice the values that it has itself."""
        network = self.network
        values = sum(n.type.size for n in network.graph.nodes.values())
        macs = network.macs + network.side_macs
        nodes = len(network.graph.nodes)
        self.budget.spend_trial(nodes, 3 * batch * values, batch * macs, times, None)


@dataclass(frozen=True)
class Query:
    """What can be asked of places of a net: `find(asked, **arguments)`."""

    signature: Signature
    find: Callable[..., Value]
    doc: str
    walks: bool = False
    """Whether it looks at every operator of the net."""

    def steps(self, network: Network) -> int:
        return 1 + self.walks * len(network.graph.nodes)


def _shape(asked: Asked, place: str) -> Value:
    return asked.network.find_node(place).type.shape[1:]


def _receptive(asked: Asked, place: str) -> Value:
    return receptive_field(asked.network.graph, asked.network.find_node(place))


def _tried(how: Callable[..., float]) -> Callable[..., Value]:
    def find(asked: Asked, place: str, training: bool) -> Value:
        asked.network.find_node(place)
        return asked.tried(how, place, training=training)

    return find


_PLACE = Param("place", QuotedText())
_TRAINING = Param("training", Boolean(), False)
QUERIES = {
    q.signature.name: q
    for q in (
        Query(Signature("shape", (_PLACE,)), _shape, "height x width x channels there"),
        Query(
            Signature("receptive_field", (_PLACE,)),
            _receptive,
            "height and width in pixels of the input that one value there sees",
            walks=True,
        ),
        Query(
            Signature("deviation", (_PLACE, _TRAINING)),
            _tried(trial.deviation),
            "standard deviation of what flows out, where white noise of deviation 1 comes in",
        ),
        Query(
            Signature("gradient", (_PLACE, _TRAINING)),
            _tried(trial.gradient),
            "standard deviation of the gradient that comes back to it, where white noise of "
            "deviation 1 is that of the net's output",
        ),
    )
}
_WITHIN = Param("within", Float(0), 1e-6)
EQUAL = Signature("equal", (Param("a", QuotedText()), Param("b", QuotedText()), _TRAINING, _WITHIN))
_KNOWN = [*_FACTS, *QUERIES, "gradients", "equal"]


def run_test(program: Program, test: s.Test, budget: Budget | None = None) -> TestResult:
    """The outcome of a `test` section. Raises NetError where it asks for what there is not."""
    return _run(program, test, budget or Budget(), dry=False)


def check_test(program: Program, test: s.Test, budget: Budget) -> TestResult:
    """The outcome where nothing costly is run, which says nothing of what that would give. Raises
    NetError where a test asks for what there is not."""
    return _run(program, test, budget, dry=True)


def run_small(program: Program, test: s.Test, by: int) -> TestResult:
    """The gradients of a test's net, its channels divided `by` a number and its images as small as
    they can be; what it counts is not that of the whole net, and is not looked at."""
    name = program.resolve_net_name(test.net, test.span)
    wrong = _wrong(gradcheck(program, name, shrink=by))
    return TestResult(name, (Outcome("gradients", not wrong, wrong),), published(test))


def _run(program: Program, test: s.Test, budget: Budget, dry: bool) -> TestResult:
    name = program.resolve_net_name(test.net, test.span)
    asked = Asked(program, elaborate(program, name, budget=budget), dry, budget)
    errors, outcomes = Errors(), []
    facts: dict[str, float] = {}
    try:
        facts = published(test, budget)
    except NetError as e:
        errors.collect(e)
    for expectation in test.expectations:
        if is_published(expectation):
            continue
        try:
            outcomes.append(_outcome(asked, expectation))
        except NetError as e:
            errors.collect(e.with_default_span(expectation.span))
    errors.raise_if_any()
    return TestResult(name, tuple(outcomes), facts)


def _outcome(asked: Asked, e: s.Expression) -> Outcome:
    negated = isinstance(e, s.UnaryExpr) and e.op == "not"
    claim = e.operand if isinstance(e, s.UnaryExpr) else e
    if isinstance(claim, s.CallExpr) and claim.name == "equal":
        return _equality(asked, e, claim, negated)
    if isinstance(e, s.Name) and e.name == "gradients":
        return _gradients(asked, e)
    if isinstance(e, s.NaryExpr) and len(e.rest) == 1 and e.rest[0][0] in _COMPARE:
        return _comparison(asked, e)
    if isinstance(e, s.NumberLiteral) and (parted := _parted(e.span)):
        number, where = parted
        help = f"write `{number.replace(',', '_')}`"
        raise fail(
            "a comma ends an expectation, thousands are set apart with `_`", where, help=help
        )
    raise fail(
        f"`{expression_text(e)}` is no expectation",
        e.span,
        help="compare something: `params == 61_706`, `macs ~ 1.8e9`; or write `gradients`, "
        '`equal("a", "b")` or `not equal("a", "b")`',
    )


def _parted(span: Span) -> tuple[str, Span] | None:
    """The number whose thousands are set apart by commas, one of which stands at `span`."""
    for m in re.finditer(r"\d{1,3}(?:,\d{3})+(?![\w.])", span.source.text):
        if m.start() < span.start < m.end():
            return m[0], Span(span.source, m.start(), m.end())
    return None


_CHECKED = 20
"""How many times a check of gradients runs every layer, about."""


def _gradients(asked: Asked, e: s.Expression) -> Outcome:
    asked.spend(SETTINGS.batch, times=_CHECKED)
    wrong = "" if asked.dry else _wrong(gradcheck(asked.program, asked.network.name))
    return Outcome(expression_text(e), not wrong, wrong)


def _wrong(rows: Iterable[LayerError]) -> str:
    """The layers whose gradients are off, and by how much."""
    return ", ".join(f"{x.name} off by {x.error:.1e}" for x in rows if not x.ok)


def _equality(asked: Asked, e: s.Expression, claim: s.CallExpr, negated: bool) -> Outcome:
    """Whether two places give the same values, up to a share `within` of the largest."""
    given = EQUAL.bind(evaluate_arguments(claim.args, Scope(budget=asked.budget)), claim.span)
    places = given["a"], given["b"]
    a, b = (asked.network.find_node(p).type.shape[1:] for p in places)
    if a != b:
        raise fail(
            f"`{places[0]}` gives {dims(a)} and `{places[1]}` {dims(b)}, which are never equal",
            e.span,
            help="what flows out of both places must have one shape; `slice` takes a part",
        )
    off = asked.tried(trial.difference, *places, training=given["training"])
    if math.isnan(off):
        return Outcome(expression_text(e), False, "both are zero or no number everywhere")
    found = f"they differ by {off:.1e} of the largest value"
    return Outcome(expression_text(e), (off <= given["within"]) != negated, found)


def _comparison(asked: Asked, e: s.NaryExpr) -> Outcome:
    text = expression_text(e)
    op, right = e.rest[0]
    a, b = _value(asked, e.first), _value(asked, right)
    try:
        ok = _COMPARE[op](a, b)
    except TypeError:
        raise fail(f"`{text}` compares unlike things", e.span) from None
    found = "" if ok else f"it is {_shown(a)}"
    return Outcome(text, ok, found)


def _value(asked: Asked, e: s.Expression) -> Any:
    facts = {k: f(asked.network) for k, f in _FACTS.items()}
    value = evaluate(e, Scope(facts, budget=asked.budget))
    if isinstance(value, Call) and value.name in QUERIES:
        query = QUERIES[value.name]
        asked.budget.spend_steps(query.steps(asked.network), e.span)
        try:
            return query.find(asked, **query.signature.bind(value.arguments, e.span))
        except NetError as error:
            raise error.with_default_span(e.span) from None
    if isinstance(value, Call | Symbol):
        if value.name in METRICS or value.name == "accuracy":
            told = f"`{value.name}` is known when a net is trained"
            recipe = "`train { expect test_accuracy >= 0.9 }`"
            raise fail(
                told, value.span, help=f"what a run must reach stands in its recipe: {recipe}"
            )
        help = suggest_name(value.name, _KNOWN, "known are")
        raise fail(f"a test knows no `{value.name}`", e.span, help=help)
    return value.dims if isinstance(value, Size) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return str(Size(value))
    return (
        f"{value:_}"
        if isinstance(value, int) and not isinstance(value, bool)
        else format_value(value)
    )


def _close(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= CLOSE * abs(b))


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": is_equal,
    "!=": lambda a, b: not is_equal(a, b),
    "~": _close,
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
