"""Signals: what one rank asks for and all ranks do after the same update, such as to stop.

A signal travels with the next update, in the bucket that is reduced last, and costs no collective
of its own.
"""

from __future__ import annotations

import numpy as np

from netdsl.ranks.communicator import Communicator
from netdsl.training.step.rank_reduction import SIGNALS
from netdsl.types import Array


class RankSignals:
    """What this rank asks for, and what the ranks have agreed on. A single rank does at once what
    it asks for."""

    def __init__(self, communicator: Communicator) -> None:
        self._is_alone = communicator.is_alone
        self._asked = np.zeros(len(SIGNALS), np.float32)
        self._agreed = np.zeros(len(SIGNALS), bool)

    def agree(self, signal: str, is_asked: bool) -> bool:
        """Whether all ranks do now what `signal` says, given whether this one asks for it."""
        if self._is_alone:
            return is_asked
        self._asked[SIGNALS.index(signal)] = is_asked
        return bool(self._agreed[SIGNALS.index(signal)])

    def clear(self, signal: str) -> None:
        """What the signal asked for has been done."""
        self._asked[SIGNALS.index(signal)] = 0
        self._agreed[SIGNALS.index(signal)] = False

    @property
    def sent(self) -> Array:
        """What this rank sends with an update."""
        return self._asked

    def receive(self, totals: Array) -> None:
        """Takes the sums over all ranks, which came back with an update."""
        self._agreed |= totals > 0
