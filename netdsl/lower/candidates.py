"""Kernel selection: candidates that may compute a problem, and the choice of the cheapest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Problem = TypeVar("Problem")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Candidate(Generic[Problem, Result]):
    """One way to compute a kind of problem.

    `applies` returns the reason why it cannot compute a problem, or None if it can. `cost`
    estimates the time it takes, lower is better; all candidates of a table use the same unit, and
    infinity means that anything else is better. `launch` returns what computes the problem.
    `cost` and `launch` are called only where the candidate applies, and do not fail there.
    """

    name: str
    applies: Callable[[Problem], str | None]
    cost: Callable[[Problem], float]
    launch: Callable[[Problem], Result]


@dataclass(frozen=True)
class Assessment:
    """What is known of one candidate for a problem: the `reason` why it does not apply, or its
    `cost`. Neither is known of a candidate that applies and must be timed on the device."""

    name: str
    reason: str | None = None
    cost: float | None = None


@dataclass(frozen=True)
class CandidateChoice(Generic[Problem, Result]):
    """The candidate that computes a problem, None if there is none, and why: an assessment of each
    candidate, in the order of the table."""

    taken: Candidate[Problem, Result] | None = None
    assessments: tuple[Assessment, ...] = ()
    unit: str = ""
    """Of the costs."""


def choose(
    candidates: Sequence[Candidate[Problem, Result]], problem: Problem, unit: str = ""
) -> CandidateChoice[Problem, Result]:
    """Assesses all candidates and takes the cheapest that applies; of equal ones, the first."""
    taken, lowest = None, 0.0
    assessments = []
    for candidate in candidates:
        reason = candidate.applies(problem)
        if reason is not None:
            assessments.append(Assessment(candidate.name, reason=reason))
            continue
        cost = candidate.cost(problem)
        assessments.append(Assessment(candidate.name, cost=cost))
        if taken is None or cost < lowest:
            taken, lowest = candidate, cost
    return CandidateChoice(taken, tuple(assessments), unit)
