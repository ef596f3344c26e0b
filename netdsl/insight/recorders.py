"""What follows a run, after each epoch: its plot, its event files. None of it can end the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from netdsl.errors import NetError


class Recorder(Protocol):
    """Follows a run: `update` is called after each epoch, `close` when the run ends, however."""

    def update(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def follow_run(
    recorders: Mapping[str, Recorder], warn: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Yields what to call after each epoch. Whatever fails in a recorder, the run continues:
    `warn` is called with the name and the first failure of each, and later ones are not
    mentioned."""
    failed: set[str] = set()

    def attempt(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as e:  # a picture is worth less than a run
            if name not in failed:
                reason = e.message if isinstance(e, NetError) else f"{type(e).__name__}: {e}"
                warn(f"warning: {name} failed, but the run continues: {reason}")
            failed.add(name)

    def update() -> None:
        for name, recorder in recorders.items():
            attempt(name, recorder.update)

    try:
        yield update
    finally:
        for name, recorder in recorders.items():
            attempt(name, recorder.close)
