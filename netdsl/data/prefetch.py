"""Batches made ready in the background, while the step before them is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
AHEAD = 4
_END = object()


def prefetched(items: Iterator[T], ahead: int = AHEAD) -> Generator[T, None, None]:
    """The same items in the same order, at most `ahead` of them made in advance by a thread. What
    goes wrong there is raised here; the thread ends when nobody asks any more."""
    ready: queue.Queue[object] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
        except BaseException as e:
            put(_Failed(e))
        else:
            put(_END)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.cause
            yield item  # type: ignore[misc]  # what `work` put there came out of `items`
    finally:
        stopped.set()
        thread.join()


class _Failed:
    """What went wrong in the background."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
