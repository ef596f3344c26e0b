"""Compilation without runs of the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Disables the garbage collector. A graph consists of thousands of small dicts that all stay
    alive, and none of the compiler's own structures is cyclic, so collections would free
    nothing."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
