"""Compiling without the garbage collector's passes over all that the compiler holds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Within, the garbage collector does not run. A graph is made of thousands of small dicts
    that all stay, and none of the compiler's own structures is a cycle: every pass over them
    would be in vain."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
