"""Which of several ways is the fastest: timed within a budget, and remembered on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from netdsl import disk_cache
from netdsl.errors import NetError

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """A way to compute something. `make` raises an exception where it cannot be taken. What is
    `compiled` takes seconds to make."""

    name: str
    make: Callable[[], T]
    compiled: bool = False


class Choices:
    """Names of what was fastest, by what was chosen for; of one GPU with one set of libraries."""

    def __init__(self, *identity: object) -> None:
        self.key = disk_cache.make_key("choices", *identity)
        self.new: dict[str, str] = {}
        self.known = self._read()

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(disk_cache.CUDA_CACHE.load(self.key) or b"{}")
        except ValueError:
            return {}
        whole = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
        return found if whole else {}

    def get(self, what: object) -> str | None:
        return self.known.get(disk_cache.make_key(what))

    def put(self, what: object, name: str) -> None:
        key = disk_cache.make_key(what)
        self.known[key] = self.new[key] = name

    def save(self) -> None:
        """Adds what is new to what lies there by now."""
        if self.new:
            merged = self._read() | self.new
            disk_cache.CUDA_CACHE.store(self.key, json.dumps(merged, sort_keys=True).encode())
            self.new = {}


@dataclass(frozen=True)
class Plans:
    """Compiled plans, by what they compute; of one GPU with one set of libraries."""

    identity: tuple[object, ...]

    def read(self, what: object) -> bytes | None:
        return disk_cache.CUDA_CACHE.load(disk_cache.make_key("plan", *self.identity, what))

    def keep(self, what: object, plan: bytes) -> None:
        disk_cache.CUDA_CACHE.store(disk_cache.make_key("plan", *self.identity, what), plan)


COMPILING = 25.0
"""Seconds that a process spends on candidates that are compiled, unless told."""


class Tuner:
    """Chooses among candidates, the likeliest first. `seconds` is what all timing may take
    together; None sets no limit. What is left when it is used up takes the first that works, and
    is timed by another process with a budget of its own. So it is with `compiling`, the seconds
    for candidates that are compiled: without any, they are passed over."""

    def __init__(
        self,
        choices: Choices | None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        compiling: float = COMPILING,
    ) -> None:
        self.choices = choices
        self.left = seconds
        self.compiling = compiling
        self._clock = clock

    def fastest(
        self,
        what: object,
        candidates: Iterable[Candidate[T]],
        milliseconds: Callable[[T], float],
        most: int,
    ) -> T:
        """The best of up to `most` candidates that can be made. Raises RuntimeError where none
        can."""
        named: dict[str, Candidate[T]] = {}
        for candidate in candidates:
            named.setdefault(candidate.name, candidate)
        before = self.choices.get(what) if self.choices else None
        ordered = [named[before]] if before in named else []
        ordered += [c for c in named.values() if c.name != before]
        problem, passed_over = "nothing is offered", False
        found: list[tuple[float, int, str, T]] = []
        for candidate in ordered:
            if candidate.compiled and self.compiling <= 0 and candidate.name != before:
                passed_over = True
                continue
            try:
                made = self._made(candidate)
                certain = candidate.name == before or len(ordered) == 1
                if certain or not (found or self._may_go_on()):
                    return made
                found.append((self._timed(made, milliseconds), len(found), candidate.name, made))
            except (MemoryError, NetError):
                raise
            except Exception as e:  # the libraries' own errors have no common type
                problem = str(e)
            if len(found) == most or (found and not self._may_go_on()):
                break
        if not found:
            raise RuntimeError(problem)
        _, _, name, made = min(found, key=lambda row: row[:2])
        if self.choices and self._may_go_on() and not passed_over:
            self.choices.put(what, name)
        return made

    def _made(self, candidate: Candidate[T]) -> T:
        began = self._clock()
        try:
            return candidate.make()
        finally:
            if candidate.compiled:
                self.compiling -= self._clock() - began

    def _may_go_on(self) -> bool:
        return self.left is None or self.left > 0

    def _timed(self, made: T, milliseconds: Callable[[T], float]) -> float:
        began = self._clock()
        found = milliseconds(made)
        if self.left is not None:
            self.left -= self._clock() - began
        return found
