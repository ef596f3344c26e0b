"""NETDSL_DUMP=DIR: writes the compiler's intermediate results to that directory, numbered in
order."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path

from netdsl.file_io import write_atomically

_stage_counters: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
"""The number of the next stage to be written, by directory."""


def dump_stage(stage: str, text: Callable[[], str]) -> None:
    """Writes the result of a stage, such as `003-fold.txt`, if NETDSL_DUMP is set. An empty text is
    not written. Raises NetError if the directory is not writable."""
    folder = os.environ.get("NETDSL_DUMP")
    content = text() if folder else ""
    if folder and content:
        path = Path(folder) / f"{next(_stage_counters[folder]):03}-{stage}.txt"
        write_atomically(path, content.encode())
