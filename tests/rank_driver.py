"""The command line on one of several ranks, with a fault on one of them after some updates.

mpiexec -n 3 python -m tests.rank_driver ACTION RANK UPDATE train FILE ...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from netdsl.__main__ import main
from netdsl.errors import fail
from netdsl.training.run.stepper import Stepper


def raise_bug() -> None:
    raise ZeroDivisionError("planted")


def raise_error() -> None:
    raise fail("a planted error", help="none")


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


ACTIONS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "bug": raise_bug,
    "error": raise_error,
    "sleep": lambda: time.sleep(100),
    "kill": send(signal.SIGKILL),
    "terminate": send(signal.SIGTERM),
    "preempt": send(signal.SIGUSR1),
}


def plant(action: str, rank: str, update: str) -> None:
    """Acts on one rank, just before one of its updates."""
    if os.environ["PMI_RANK"] != rank:
        return
    original = Stepper.update
    count = 0

    def update_or_fail(self: Stepper, group: Any) -> None:
        nonlocal count
        count += 1
        if count == int(update):
            ACTIONS[action]()
        original(self, group)

    Stepper.update = update_or_fail  # type: ignore[method-assign]


if __name__ == "__main__":
    _, action, rank, update, *arguments = sys.argv
    plant(action, rank, update)
    sys.argv = ["netdsl", *arguments]
    main()
