"""Chooses the fastest of several candidates by timing within a budget, and caches it on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from netdsl import disk_cache
from netdsl.errors import NetError

T = TypeVar("T")


@dataclass(frozen=True)
class TimedCandidate(Generic[T]):
    """One way to compute something, whose cost is measured instead of estimated. `make` raises an
    exception if it does not work, and takes seconds if it `needs_compilation`."""

    name: str
    make: Callable[[], T]
    needs_compilation: bool = False


class TuningCache:
    """The names of the fastest candidates by task, for one GPU with one set of libraries."""

    def __init__(self, *identity: object) -> None:
        self.key = disk_cache.make_key("choices", *identity)
        self.new_choices: dict[str, str] = {}
        self.known_choices = self._read()

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(disk_cache.CUDA_CACHE.load(self.key) or b"{}")
        except ValueError:
            return {}
        is_valid = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
        return found if is_valid else {}

    def get(self, task_key: object) -> str | None:
        return self.known_choices.get(disk_cache.make_key(task_key))

    def put(self, task_key: object, name: str) -> None:
        key = disk_cache.make_key(task_key)
        self.known_choices[key] = self.new_choices[key] = name

    def save(self) -> None:
        """Adds the new choices to those that are on disk by now."""
        if self.new_choices:
            merged = self._read() | self.new_choices
            disk_cache.CUDA_CACHE.store(self.key, json.dumps(merged, sort_keys=True).encode())
            self.new_choices = {}


@dataclass(frozen=True)
class CudnnPlanCache:
    """Compiled cuDNN plans by task, for one GPU with one set of libraries: on disk, and in `used`
    those of this process."""

    identity: tuple[object, ...]
    used: dict[str, bytes] = field(default_factory=dict)

    def load(self, task_key: object) -> bytes | None:
        key = disk_cache.make_key(task_key)
        found = self.used.get(key) or disk_cache.CUDA_CACHE.load(self._disk_key(task_key))
        if found is not None:
            self.used[key] = found
        return found

    def store(self, task_key: object, plan: bytes) -> None:
        self.used[disk_cache.make_key(task_key)] = plan
        disk_cache.CUDA_CACHE.store(self._disk_key(task_key), plan)

    def _disk_key(self, task_key: object) -> str:
        return disk_cache.make_key("plan", *self.identity, task_key)


DEFAULT_COMPILE_SECONDS = 25.0
"""Seconds that a process spends on candidates that need compilation, by default."""


class Tuner:
    """Chooses among candidates, which come in order of promise. `seconds` limits all timing; None
    is no limit. Once it is used up, tasks take the first candidate that works and are not cached,
    so that another process may time them. `compile_seconds` limits candidates that need
    compilation; once it is used up, they are skipped."""

    def __init__(
        self,
        cache: TuningCache | None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        compile_seconds: float = DEFAULT_COMPILE_SECONDS,
    ) -> None:
        self.cache = cache
        self.remaining_seconds = seconds
        self.compile_seconds = compile_seconds
        self.chosen: dict[str, str] = {}
        """What this process has chosen, by task."""
        self.prescribed: Mapping[str, str] = {}
        """What tasks must take, if anything can: the choices of another rank."""
        self._clock = clock

    def choose_fastest(
        self,
        task_key: object,
        candidates: Iterable[TimedCandidate[T]],
        measure: Callable[[T], float],
        max_candidates: int,
    ) -> T:
        """Returns the fastest of the first `max_candidates` that work. Raises RuntimeError without
        one."""
        named: dict[str, TimedCandidate[T]] = {}
        for candidate in candidates:
            named.setdefault(candidate.name, candidate)
        key = disk_cache.make_key(task_key)
        prescribed_name = self.prescribed.get(key)
        if prescribed_name is not None:
            named = {name: c for name, c in named.items() if name == prescribed_name}
        cached_name = prescribed_name or (self.cache.get(task_key) if self.cache else None)
        ordered = [named[cached_name]] if cached_name in named else []
        ordered += [c for c in named.values() if c.name != cached_name]
        reason, has_skipped = "there are no candidates", False
        found: list[tuple[float, int, str, T]] = []
        for candidate in ordered:
            if (
                candidate.needs_compilation
                and self.compile_seconds <= 0
                and candidate.name != cached_name
            ):
                has_skipped = True
                continue
            try:
                made = self._make(candidate)
                is_decided = candidate.name == cached_name or len(ordered) == 1
                if is_decided or not (found or self._has_time()):
                    self.chosen[key] = candidate.name
                    return made
                found.append((self._measure(made, measure), len(found), candidate.name, made))
            except (MemoryError, NetError):
                raise
            except Exception as e:  # the libraries' errors have no common type
                reason = str(e)
            if len(found) == max_candidates or (found and not self._has_time()):
                break
        if not found:
            raise RuntimeError(reason)
        _, _, name, made = min(found, key=lambda row: row[:2])
        if self.cache and self._has_time() and not has_skipped:
            self.cache.put(task_key, name)
        self.chosen[key] = name
        return made

    def _make(self, candidate: TimedCandidate[T]) -> T:
        start = self._clock()
        try:
            return candidate.make()
        finally:
            if candidate.needs_compilation:
                self.compile_seconds -= self._clock() - start

    def _has_time(self) -> bool:
        return self.remaining_seconds is None or self.remaining_seconds > 0

    def _measure(self, made: T, measure: Callable[[T], float]) -> float:
        start = self._clock()
        found = measure(made)
        if self.remaining_seconds is not None:
            self.remaining_seconds -= self._clock() - start
        return found
