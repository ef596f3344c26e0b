"""Budgets and limits for processing one text, and the collection of its errors."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from netdsl.errors import Diagnostic, NetError, Span
from netdsl.limits import (
    MAX_CALL_DEPTH,
    MAX_ELABORATION_STEPS,
    MAX_ERRORS,
    MAX_EXPRESSION_DEPTH,
    MAX_EXPRESSION_VALUES,
    MAX_LIST_LENGTH,
    MAX_NESTING_DEPTH,
    MAX_TOKENS,
    MAX_TRIAL_SIZE,
    MAX_TRIAL_WORK,
)
from netdsl.values import Call, Size, Value

_CHARACTERS_PER_VALUE = 64
"""Characters of a string that count as one value."""
_MACS_PER_NODE = 100_000
"""Multiply-accumulates that take as long as creating and calling one node."""
_MIN_RECURSION_LIMIT = 10_000
"""Several times the Python frames that the deepest permitted text needs."""


class LimitError(NetError):
    """A limit was exceeded. It aborts processing: continuing would only take more time."""


def limit_error(message: str, span: Span | None, help: str) -> LimitError:
    return LimitError(Diagnostic(message, span, help))


def ensure_recursion_limit() -> None:
    """Raises Python's recursion limit to what the deepest permitted text needs."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _MIN_RECURSION_LIMIT))


@dataclass
class Budget:
    """The steps and values that one command has spent on a text: a single budget for all nets,
    sections and tests. Raises LimitError if a limit of `netdsl.limits` is exceeded."""

    tokens: int = 0
    steps: int = 0
    leaves: int = 0
    work: int = 0
    depth: int = 0

    def spend_tokens(self, count: int, span: Span | None) -> None:
        """Counts the tokens of a file and of the files that it uses."""
        self.tokens += count
        if self.tokens > MAX_TOKENS:
            message = f"the files used here have over {MAX_TOKENS:,} tokens"
            raise limit_error(message, span, "use only the files that are needed")

    def spend_steps(self, count: int, span: Span | None) -> None:
        """Counts layers, operators, loop iterations and calls of functions."""
        self.steps += count
        if self.steps > MAX_ELABORATION_STEPS:
            raise limit_error(
                f"the layers and loops here take more than {MAX_ELABORATION_STEPS:,} steps",
                span,
                "use fewer repeats; `FILE:NET` selects a single net of a file",
            )

    def enter_expression(self, span: Span | None) -> None:
        """Counts an expression that is being evaluated, until `leave_expression`."""
        if self.depth == MAX_EXPRESSION_DEPTH:
            message = f"expressions are nested more than {MAX_EXPRESSION_DEPTH:,} deep"
            raise limit_error(message, span, "does a function call itself endlessly?")
        self.depth += 1

    def leave_expression(self) -> None:
        self.depth -= 1

    def spend_value(self, value: Value, span: Span | None) -> None:
        """Counts the value of an expression, including each of its entries."""
        leaves = _count_leaves(value, span, 0)
        if leaves > MAX_LIST_LENGTH:
            raise limit_error(
                f"a list has at most {MAX_LIST_LENGTH:,} entries, including those of nested lists",
                span,
                "does each `let` contain the previous one twice?",
            )
        self.spend_leaves(leaves, span)

    def spend_leaves(self, count: int, span: Span | None) -> None:
        """Counts values that are created or copied."""
        self.leaves += count
        if self.leaves > MAX_EXPRESSION_VALUES:
            raise limit_error(
                f"the expressions here have more than {MAX_EXPRESSION_VALUES:,} values",
                span,
                "shorten the lists, or the loops and functions that compute them",
            )

    def spend_trial(self, nodes: int, values: int, macs: int, runs: int, span: Span | None) -> None:
        """Counts `runs` executions of a network on random images; `nodes`, `values` and `macs` are
        the cost of one."""
        help = "`netdsl test --shrink 8` tries a small version; `netdsl gradcheck` has no limit"
        if values > MAX_TRIAL_SIZE:
            message = f"testing this net computes {values:,} values, more than {MAX_TRIAL_SIZE:,}"
            raise limit_error(message, span, help)
        self.work += (macs + 10 * values + _MACS_PER_NODE * nodes) * runs
        if self.work > MAX_TRIAL_WORK:
            message = f"the tests here take more than {MAX_TRIAL_WORK:,} multiplications"
            raise limit_error(message, span, help)


def nesting_error(context: str, span: Span | None) -> LimitError:
    """The error for blocks, groups and repeats that are nested too deep."""
    message = f"blocks and groups are nested more than {MAX_CALL_DEPTH} deep: {context} in ..."
    return limit_error(message, span, "does a block call itself endlessly?")


def _count_leaves(value: Value, span: Span | None, depth: int) -> int:
    """Counts the elements of a value, including nested ones."""
    if isinstance(value, str):
        return 1 + len(value) // _CHARACTERS_PER_VALUE
    if isinstance(value, Size):
        return len(value.dims)
    if isinstance(value, tuple):
        parts = value
    elif isinstance(value, Call):
        parts = tuple(a.value for a in value.arguments)
    else:
        return 1
    if depth > MAX_NESTING_DEPTH:
        message = f"lists are nested more than {MAX_NESTING_DEPTH} deep"
        raise limit_error(message, span, "`a + b` joins two lists")
    return max(1, sum(_count_leaves(part, span, depth + 1) for part in parts))


class Errors:
    """The errors of one text, without duplicates. Raises LimitError when there are too many."""

    def __init__(self) -> None:
        self._diagnostics: dict[tuple[str, str, int, int], Diagnostic] = {}
        self._has_failed = False

    def __bool__(self) -> bool:
        """Whether anything failed; an error without diagnostics is a consequence of a known one."""
        return self._has_failed

    def add(self, *diagnostics: Diagnostic) -> None:
        self._has_failed = True
        for d in diagnostics:
            self._diagnostics.setdefault(_key(d), d)
            if len(self._diagnostics) >= MAX_ERRORS:
                raise LimitError(*self.sorted_diagnostics())

    def collect(self, error: NetError) -> None:
        """Adds the errors of a part. A LimitError is raised again, preceded by the errors found
        before it."""
        if isinstance(error, LimitError):
            known = {_key(d) for d in error.diagnostics}
            earlier_errors = [d for d in self.sorted_diagnostics() if _key(d) not in known]
            kept = earlier_errors[: MAX_ERRORS - len(error.diagnostics)]
            raise LimitError(*kept, *error.diagnostics)
        self.add(*error.diagnostics)

    def sorted_diagnostics(self) -> list[Diagnostic]:
        """Returns the diagnostics in source order."""
        return sorted(self._diagnostics.values(), key=_sort_key)

    def raise_if_any(self) -> None:
        """Raises NetError if anything failed."""
        if self._has_failed:
            raise NetError(*self.sorted_diagnostics())


def _key(d: Diagnostic) -> tuple[str, str, int, int]:
    """What two diagnostics of one error have in common."""
    position = (d.span.source.name, d.span.start, d.span.end) if d.span else ("", 0, 0)
    return d.message, *position


def _sort_key(d: Diagnostic) -> tuple[str, int]:
    return (d.span.source.name, d.span.start) if d.span else ("", 0)
