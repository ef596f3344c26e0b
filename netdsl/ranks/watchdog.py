"""The watchdog: asks all ranks where they are when one has waited for the others for long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netdsl.environment import read_integer
from netdsl.ranks.activity import Activity
from netdsl.ranks.rank_names import name_ranks

TIMEOUT_VARIABLE = "NETDSL_RANK_TIMEOUT"
_DEFAULT_TIMEOUT = 1800
_MAX_TIMEOUT = 10**7
_MAX_NAMED = 8


@dataclass(frozen=True)
class Patience:
    """How long a rank waits for others, in seconds: before it asks where they are, for their
    answers, and before it ends the job."""

    report: float
    answer: float
    limit: float


def read_patience() -> Patience:
    """Reads NETDSL_RANK_TIMEOUT: the seconds after which the job ends, by default half an hour.
    There is a report every minute, or three until then. Raises NetError if it is no number."""
    limit = read_integer(TIMEOUT_VARIABLE, _MAX_TIMEOUT, "number of seconds") or _DEFAULT_TIMEOUT
    return make_patience(limit)


def make_patience(limit: float) -> Patience:
    return Patience(min(60.0, limit / 3), min(5.0, limit / 12), limit)


@dataclass(frozen=True)
class RankPlace:
    """Where a rank is: how many collectives it has entered, how long it has waited for one, and
    what it does."""

    entered: int
    waited: float
    phase: str


def find_place(activity: Activity) -> RankPlace:
    """Returns where this rank is."""
    return RankPlace(activity.entered, activity.waited(), activity.phase)


class Watchdog:
    """When a rank asks the others, and what it says of their answers.

    The ranks that wait would all ask at the same time, so each waits a little longer than the one
    before it, and one that has been asked does not ask for a while: rank 0 asks, or the first one
    that is able to.
    """

    def __init__(
        self, rank: int, hosts: Sequence[str], activity: Activity, patience: Patience
    ) -> None:
        self.patience = patience
        self._rank, self._hosts, self._activity = rank, hosts, activity
        self._delay = rank * patience.answer
        self._not_before = float("-inf")
        self._answers: dict[int, RankPlace] = {}
        self._deadline: float | None = None

    def is_due(self, now: float) -> bool:
        """Whether this rank is to ask the others now."""
        waited = self._activity.waited() >= self.patience.report + self._delay
        return waited and self._deadline is None and now >= self._not_before

    def start(self, now: float) -> None:
        """The others are being asked."""
        self._deadline = now + self.patience.answer
        self._answers = {self._rank: find_place(self._activity)}
        self._not_before = now + self.patience.report

    def postpone(self, now: float) -> None:
        """Another rank asks."""
        self._not_before = now + self.patience.report + self._delay

    def add_answer(self, rank: int, place: RankPlace) -> None:
        self._answers[rank] = place

    def take_answers(self, now: float) -> Mapping[int, RankPlace] | None:
        """Returns the answers once they are complete or late, else None."""
        if self._deadline is None:
            return None
        if len(self._answers) < len(self._hosts) and now < self._deadline:
            return None
        self._deadline = None
        return self._answers

    def is_over(self, places: Mapping[int, RankPlace]) -> bool:
        """Whether the wait has been too long."""
        return not self._activity.is_idle and places[self._rank].waited >= self.patience.limit

    def describe(self, places: Mapping[int, RankPlace]) -> str:
        """Says whom the ranks wait for, and for how long they do."""
        waited = f"after {places[self._rank].waited:.0f} s"
        silent = [r for r in range(len(self._hosts)) if r not in places]
        latest = max(p.entered for p in places.values())
        late = [r for r, p in sorted(places.items()) if p.entered < latest]
        parts = [f"{self._name(r)}, which is {places[r].phase}" for r in late[:_MAX_NAMED]]
        if len(late) > _MAX_NAMED:
            parts.append(f"{len(late) - _MAX_NAMED:,} more")
        if silent:
            parts.append(f"{name_ranks(self._hosts, silent)}, without an answer")
        if not parts:
            return f"{waited}, the ranks still exchange values: the network is slow or stuck"
        return f"{waited}, the ranks wait for " + "; ".join(parts)

    def _name(self, rank: int) -> str:
        return name_ranks(self._hosts, [rank])
