"""NETDSL_DUMP=DIR: what the compiler makes on the way is written there, numbered in order."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path

from netdsl.file_io import write_atomically

_stage_counters: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
"""By folder: the next stage that is written there."""


def dump_stage(stage: str, text: Callable[[], str]) -> None:
    """Writes what a stage has made, where that is asked for: `003-fold.txt`. Nothing is written of
    an empty text. Raises NetError where the folder cannot be written."""
    folder = os.environ.get("NETDSL_DUMP")
    content = text() if folder else ""
    if folder and content:
        path = Path(folder) / f"{next(_stage_counters[folder]):03}-{stage}.txt"
        write_atomically(path, content.encode())
