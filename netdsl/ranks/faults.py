"""Faults of ranks, which rank 0 reports: an error of all of them once, any other with its rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.ranks.rank_names import name_ranks

GRACE = 2.0
"""Seconds within which an error that all ranks meet has reached rank 0 from each of them."""
_SEVERITY = (70, 2, 130)
"""Exit codes, the one first that the job ends with if ranks have different ones: a bug, bad input,
an interrupt."""


@dataclass(frozen=True)
class RankFault:
    """What ended a rank: the text for people and the exit code. `is_idle` says that the rank has no
    collective waiting, so that MPI can be left in order."""

    text: str
    code: int
    is_idle: bool


class FaultCollector:
    """The faults that have reached rank 0."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._found: dict[int, RankFault] = {}
        self._first = 0.0

    def add(self, rank: int, fault: RankFault, now: float) -> None:
        if not self._found:
            self._first = now
        self._found.setdefault(rank, fault)

    def is_due(self, now: float) -> bool:
        """Whether the faults are to be reported: every rank has one, or the first has been here for
        long enough."""
        return self._is_common or (bool(self._found) and now - self._first >= GRACE)

    @property
    def _is_common(self) -> bool:
        return len(self._found) == len(self._hosts)

    @property
    def is_orderly(self) -> bool:
        """Whether every rank has ended and none waits, so that no abort is needed."""
        return self._is_common and all(f.is_idle for f in self._found.values())

    @property
    def code(self) -> int:
        """The exit code of the job."""
        codes = {f.code for f in self._found.values()}
        return next((c for c in _SEVERITY if c in codes), max(codes))

    def describe(self) -> str:
        """Each error once, with the ranks that met it unless all did."""
        groups: dict[str, list[int]] = {}
        for rank, fault in sorted(self._found.items()):
            groups.setdefault(fault.text, []).append(rank)
        if self._is_common and len(groups) == 1:
            return next(iter(groups))
        parts = (f"{name_ranks(self._hosts, ranks)}: {text}" for text, ranks in groups.items())
        return "\n".join(parts)
