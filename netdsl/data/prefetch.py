"""Prepares batches in the background while the previous step is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
PREFETCH_DEPTH = 4
_END = object()


def prefetch(items: Iterator[T], depth: int = PREFETCH_DEPTH) -> Generator[T, None, None]:
    """Yields the same items in the same order; a thread produces at most `depth` of them in
    advance. Exceptions in the thread are raised here; the thread ends when the generator is
    closed."""
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def fill_queue() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
        except BaseException as e:
            put(_Failure(e))
        else:
            put(_END)

    thread = threading.Thread(target=fill_queue, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.cause
            yield item  # type: ignore[misc]  # what `fill_queue` put there came out of `items`
    finally:
        stop.set()
        thread.join()


class _Failure:
    """An exception raised in the background."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
