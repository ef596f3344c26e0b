"""A command on one of several ranks: rank 0 prints for all of them, and they end together."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout

from netdsl.cli.app import BAD_INPUT, Outcome, echo_stderr
from netdsl.errors import NetError
from netdsl.ranks.launcher import LauncherRank
from netdsl.ranks.world import MpiWorld, join_world

_ROOT_SECONDS = 2.0
"""Seconds within which rank 0 has ended all ranks if it cannot join them either."""


def run_rank(
    launch: LauncherRank, run: Callable[[], Outcome], conclude: Callable[[Outcome], int]
) -> int:
    """Runs a command as one rank, and returns the exit code of the process: that of rank 0, or
    that of an error on any rank. `conclude` prints what is left to be said."""
    try:
        world = join_world(launch)
    except NetError as e:
        if launch.rank == 0:
            echo_stderr(e.render())
        else:
            time.sleep(_ROOT_SECONDS)
            echo_stderr(f"rank {launch.rank} on {socket.gethostname()}: {e.render()}")
        return BAD_INPUT
    with ExitStack() as streams:
        if launch.rank > 0:
            nowhere = streams.enter_context(open(os.devnull, "w", encoding="utf-8"))
            streams.enter_context(redirect_stdout(nowhere))
            streams.enter_context(redirect_stderr(nowhere))
        return _end(world, run(), conclude)


def _end(world: MpiWorld, outcome: Outcome, conclude: Callable[[Outcome], int]) -> int:
    if outcome.message is None or outcome.is_agreed:
        return world.leave(conclude(outcome))
    sys.stdout.flush()
    return world.fail(outcome.message, int(outcome.exit_code))
