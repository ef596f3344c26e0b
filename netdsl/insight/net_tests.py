"""The `test` sections: expected numbers in the file, compared with the actual ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from netdsl.errors import NetError, Span, fail, suggest_name, suggest_spelling
from netdsl.insight import trial
from netdsl.insight.gradcheck import GRADCHECK_SETTINGS, LayerCheck, gradcheck
from netdsl.insight.published_accuracy import (
    PUBLISHED_SIGNATURE,
    PublishedAccuracy,
    is_published,
    read_published_accuracies,
)
from netdsl.insight.receptive_field import receptive_field
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors
from netdsl.language.elaborate import elaborate
from netdsl.language.evaluate import Scope, evaluate, evaluate_arguments, is_equal
from netdsl.language.network import Network
from netdsl.language.program import CHOICE_OF_TEST, Program
from netdsl.language.shrink import ShrinkError
from netdsl.language.unparse import expression_text
from netdsl.parameter_types import Boolean, Float, QuotedText
from netdsl.signature import Param, Signature
from netdsl.training.metrics.table import METRIC_NAMES, METRICS
from netdsl.types import dims
from netdsl.values import Call, Size, Symbol, Value, format_value

RELATIVE_TOLERANCE = 0.01
"""The relative tolerance of `~`: one per cent."""


@dataclass(frozen=True)
class ExpectationOutcome:
    """One expectation: as written, whether it holds, and what was found, as a sentence and as a
    value: a number, or the dimensions of a shape. The value is the left side of a comparison, the
    largest difference for `equal` (NaN if it compares nothing), and the largest error for
    `gradients` (None if there are none, or if the net cannot be shrunk)."""

    text: str
    ok: bool
    found: str
    value: float | tuple[int, ...] | None


@dataclass(frozen=True)
class TestResult:
    """The expectations of one `test` section, and the published accuracies of its net."""

    name: str
    outcomes: tuple[ExpectationOutcome, ...]
    published_accuracies: tuple[PublishedAccuracy, ...] = ()

    @property
    def ok(self) -> bool:
        return all(o.ok for o in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        """As `test --json` has it; `published` holds the shares of the first published accuracy."""
        first = self.published_accuracies[0].shares if self.published_accuracies else {}
        return {
            "name": self.name,
            "ok": self.ok,
            "expectations": [asdict(o) for o in self.outcomes],
            "published": first,
            "published_accuracies": [asdict(a) for a in self.published_accuracies],
        }


_FACTS: dict[str, Callable[[Network], Value]] = {
    "params": lambda n: n.params,
    "macs": lambda n: n.macs,
    "activations": lambda n: n.activations,
}


@dataclass(frozen=True)
class QueryContext:
    """The net that a test is about; if `is_dry_run`, nothing costly is run."""

    program: Program
    network: Network
    is_dry_run: bool
    budget: Budget

    def scope(self, facts: Mapping[str, Value] | None = None) -> Scope:
        return self.program.top_level.scope(self.budget, facts)

    def run_trial(self, measure: Callable[..., float], *places: str, training: bool) -> float:
        """The result of a trial of the net; 0 in a dry run."""
        self.spend(trial.BATCH, times=3)
        return (
            0.0 if self.is_dry_run else measure(self.program, self.network.name, *places, training)
        )

    def spend(self, batch: int, times: int) -> None:
        """Charges the budget for a trial that runs the net `times` times at a batch size; a net's
        gradients have about twice as many values as the net."""
        network = self.network
        values = sum(n.type.size for n in network.graph.nodes.values())
        macs = network.macs + network.side_macs
        nodes = len(network.graph.nodes)
        self.budget.spend_trial(nodes, 3 * batch * values, batch * macs, times, None)


@dataclass(frozen=True)
class Query:
    """A query about places of a net: `compute(context, **arguments)`."""

    signature: Signature
    compute: Callable[..., Value]
    doc: str
    needs_graph_walk: bool = False
    """Whether it visits every operator of the net."""

    def count_steps(self, network: Network) -> int:
        return 1 + self.needs_graph_walk * len(network.graph.nodes)


def _query_shape(context: QueryContext, place: str) -> Value:
    return context.network.find_node(place).type.shape[1:]


def _query_receptive_field(context: QueryContext, place: str) -> Value:
    return receptive_field(context.network.graph, context.network.find_node(place))


def _make_trial_query(measure: Callable[..., float]) -> Callable[..., Value]:
    def query(asked: QueryContext, place: str, training: bool) -> Value:
        asked.network.find_node(place)
        return asked.run_trial(measure, place, training=training)

    return query


_PLACE = Param("place", QuotedText())
_TRAINING = Param("training", Boolean(), False)
QUERIES = {
    q.signature.name: q
    for q in (
        Query(Signature("shape", (_PLACE,)), _query_shape, "height x width x channels at a place"),
        Query(
            Signature("receptive_field", (_PLACE,)),
            _query_receptive_field,
            "height and width, in input pixels, of the region on which one value at a place "
            "depends",
            needs_graph_walk=True,
        ),
        Query(
            Signature("deviation", (_PLACE, _TRAINING)),
            _make_trial_query(trial.deviation),
            "standard deviation of the output at a place, for white noise of deviation 1 as input",
        ),
        Query(
            Signature("gradient", (_PLACE, _TRAINING)),
            _make_trial_query(trial.gradient),
            "standard deviation of the gradient at a place, for white noise of deviation 1 as "
            "the gradient of the net's output",
        ),
    )
}
_WITHIN = Param("within", Float(0), 1e-6)
EQUAL_SIGNATURE = Signature(
    "equal", (Param("a", QuotedText()), Param("b", QuotedText()), _TRAINING, _WITHIN)
)
_KNOWN_NAMES = [*_FACTS, *QUERIES, "gradients", "equal"]


def run_test(program: Program, test: s.Test, budget: Budget | None = None) -> TestResult:
    """The result of a `test` section. Raises NetError if it refers to something that does not
    exist."""
    return _evaluate_test(program, test, budget or Budget(), is_dry_run=False)


def check_test(program: Program, test: s.Test, budget: Budget) -> TestResult:
    """The result of a dry run; outcomes of costly checks in it mean nothing. Raises NetError if a
    test refers to something that does not exist."""
    return _evaluate_test(program, test, budget, is_dry_run=True)


def run_shrunk_test(program: Program, test: s.Test, factor: int) -> TestResult:
    """Checks the gradients of a test's net, with its channels divided by `factor` and its images as
    small as possible. Its counts differ from those of the whole net, and are not compared. A net
    that cannot be shrunk fails."""
    name = program.resolve_net_name(test.net, test.span, CHOICE_OF_TEST)
    try:
        outcome = _judge_gradients("gradients", gradcheck(program, name, shrink=factor))
    except ShrinkError as e:
        failure = f"it cannot be shrunk by {factor}: {e.diagnostics[0].message}"
        outcome = ExpectationOutcome("gradients", False, failure, None)
    return TestResult(name, (outcome,), read_published_accuracies(program, test))


def _evaluate_test(program: Program, test: s.Test, budget: Budget, is_dry_run: bool) -> TestResult:
    name = program.resolve_net_name(test.net, test.span, CHOICE_OF_TEST)
    context = QueryContext(program, elaborate(program, name, budget=budget), is_dry_run, budget)
    errors, outcomes = Errors(), []
    accuracies: tuple[PublishedAccuracy, ...] = ()
    try:
        accuracies = read_published_accuracies(program, test, budget)
    except NetError as e:
        errors.collect(e)
    for expectation in test.expectations:
        if is_published(expectation):
            continue
        try:
            outcomes.append(_evaluate_expectation(context, expectation))
        except NetError as e:
            errors.collect(e.with_default_span(expectation.span))
    errors.raise_if_any()
    return TestResult(name, tuple(outcomes), accuracies)


def _evaluate_expectation(context: QueryContext, e: s.Expression) -> ExpectationOutcome:
    is_negated = isinstance(e, s.UnaryExpr) and e.op == "not"
    operand = e.operand if isinstance(e, s.UnaryExpr) else e
    if isinstance(operand, s.CallExpr) and operand.name == "equal":
        return _check_equality(context, e, operand, is_negated)
    if isinstance(e, s.Name) and e.name == "gradients":
        return _check_gradients(context, e)
    if isinstance(e, s.NaryExpr) and len(e.rest) == 1 and e.rest[0][0] in _COMPARISONS:
        return _check_comparison(context, e)
    if isinstance(e, s.NumberLiteral) and (grouped_number := _find_comma_grouped_number(e.span)):
        number, number_span = grouped_number
        help = f"write `{number.replace(',', '_')}`"
        raise fail("a comma ends an expectation; group thousands with `_`", number_span, help=help)
    help = "write a comparison: `params == 61_706`, `macs ~ 1.8e9`; or write `gradients`, "
    help += '`equal("a", "b")` or `not equal("a", "b")`'
    if isinstance(e, s.NaryExpr) and {op for op, _ in e.rest} == {"and"}:
        parts = (e.first, *(x for _, x in e.rest))
        help = f"each line or entry is one expectation: `{', '.join(map(expression_text, parts))}`"
    if isinstance(operand, s.CallExpr | s.Name):
        names = ("gradients", EQUAL_SIGNATURE.name, PUBLISHED_SIGNATURE.name)
        help = suggest_spelling(operand.name, names) or help
    raise fail(f"`{expression_text(e)}` is not an expectation", e.span, help=help)


def _find_comma_grouped_number(span: Span) -> tuple[str, Span] | None:
    """The comma-grouped number that has one of its groups at `span`."""
    for m in re.finditer(r"\d{1,3}(?:,\d{3})+(?![\w.])", span.source.text):
        if m.start() < span.start < m.end():
            return m[0], Span(span.source, m.start(), m.end())
    return None


_GRADCHECK_RUNS = 20
"""Approximately how many times a gradient check runs every layer."""


def _check_gradients(context: QueryContext, e: s.Expression) -> ExpectationOutcome:
    context.spend(GRADCHECK_SETTINGS.batch, times=_GRADCHECK_RUNS)
    checks = () if context.is_dry_run else gradcheck(context.program, context.network.name)
    return _judge_gradients(expression_text(e), checks)


def _judge_gradients(text: str, checks: Iterable[LayerCheck]) -> ExpectationOutcome:
    """Whether all gradients are right: the layers with wrong ones, else the largest error."""
    rows = tuple(checks)
    if not rows:
        return ExpectationOutcome(text, True, "nothing in it has a gradient", None)
    worst = max(rows, key=lambda x: x.error)
    failures = ", ".join(f"{x.name} off by {x.error:.1e}" for x in rows if not x.ok)
    found = failures or f"the largest error is {worst.error:.1e}, of {worst.name}"
    return ExpectationOutcome(text, not failures, found, worst.error)


def _check_equality(
    context: QueryContext, e: s.Expression, call: s.CallExpr, is_negated: bool
) -> ExpectationOutcome:
    """Whether two places give the same values, within a fraction `within` of the largest."""
    bound = EQUAL_SIGNATURE.bind(evaluate_arguments(call.args, context.scope()), call.span)
    places = bound["a"], bound["b"]
    a, b = (context.network.find_node(p).type.shape[1:] for p in places)
    if a != b:
        raise fail(
            f"`{places[0]}` gives {dims(a)} and `{places[1]}` {dims(b)}, which can never be equal",
            e.span,
            help="both places must have the same shape; `slice` takes a part",
        )
    error = context.run_trial(trial.max_difference, *places, training=bound["training"])
    text = expression_text(e)
    if math.isnan(error):
        return ExpectationOutcome(text, False, "both are zero or NaN everywhere", error)
    found = f"they differ by {error:.1e} of the largest value" if error else "they are the same"
    return ExpectationOutcome(text, (error <= bound["within"]) != is_negated, found, error)


def _check_comparison(context: QueryContext, e: s.NaryExpr) -> ExpectationOutcome:
    text = expression_text(e)
    op, right = e.rest[0]
    a, b = _evaluate_operand(context, e.first), _evaluate_operand(context, right)
    try:
        ok = _COMPARISONS[op](a, b)
    except TypeError:
        raise fail(
            f"`{text}` compares values of different kinds",
            e.span,
            help="compare a size with a size, such as `3x3`, and a number with a number",
        ) from None
    found = f"it is {_format_value(a)}"
    if not isinstance(right, s.NumberLiteral | s.SizeLiteral):
        found += f", the other side {_format_value(b)}"
    return ExpectationOutcome(text, ok, found, a)


def _evaluate_operand(context: QueryContext, e: s.Expression) -> Any:
    facts = {k: f(context.network) for k, f in _FACTS.items()}
    value = evaluate(e, context.scope(facts))
    if isinstance(value, Call) and value.name in QUERIES:
        query = QUERIES[value.name]
        context.budget.spend_steps(query.count_steps(context.network), e.span)
        try:
            return query.compute(context, **query.signature.bind(value.arguments, e.span))
        except NetError as error:
            raise error.with_default_span(e.span) from None
    if isinstance(value, Call | Symbol):
        if value.name in METRIC_NAMES or value.name in METRICS:
            message = f"`{value.name}` is known only after training"
            recipe = "`train { expect test_accuracy >= 0.9 }`"
            raise fail(
                message, value.span, help=f"the goals of a run belong in its recipe: {recipe}"
            )
        help = (
            f"it needs a place: `{QUERIES[value.name].signature}`"
            if value.name in QUERIES
            else suggest_name(value.name, _KNOWN_NAMES, kinds=["fact"])
        )
        raise fail(f"unknown name `{value.name}` in a test", e.span, help=help)
    return value.dims if isinstance(value, Size) else value


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return str(Size(value))
    return (
        f"{value:_}"
        if isinstance(value, int) and not isinstance(value, bool)
        else format_value(value)
    )


def _is_close(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= RELATIVE_TOLERANCE * abs(b))


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": is_equal,
    "!=": lambda a, b: not is_equal(a, b),
    "~": _is_close,
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
