"""Pictures decoded in the background, each once, so that a bad one is known before it is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from netdsl.data.pictures import BadPicture, Pictures, decoder
from netdsl.data.preparation import Preparation
from netdsl.disk_cache import IMAGE_CACHE, make_key
from netdsl.errors import NetError

WORTH_KEEPING = 2.0
"""Seconds from which on it is kept which pictures are good."""
Stamp = tuple[int, int]


class Verification:
    """A thread that decodes pictures as they are going to be judged by, and keeps no pixel. Those
    that were found good are known by size and time, and not decoded again."""

    def __init__(self, parts: Sequence[Pictures], prepare: Preparation) -> None:
        self._parts, self._prepare = parts, prepare
        self._found: BadPicture | None = None
        self._stop = Event()
        self._thread = Thread(target=self._work, name="verification", daemon=True)

    def __enter__(self) -> Verification:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self) -> None:
        """Waits until all pictures are decoded."""
        self._thread.join()

    def check(self) -> None:
        """Raises BadPicture where one was found by now, unless such are skipped."""
        if self._found is not None:
            raise self._found

    def _work(self) -> None:
        for pictures in self._parts:
            known, began = _Known(pictures.folder, self._prepare), time.perf_counter()
            for name, path in zip(pictures.names, pictures.paths, strict=True):
                if self._stop.is_set() or self._found is not None:
                    break
                self._verify(pictures, str(name), path, known)
            if time.perf_counter() - began > WORTH_KEEPING:
                known.keep()

    def _verify(self, pictures: Pictures, name: str, path: Path, known: _Known) -> None:
        stamp = _stamp(path)
        if stamp is None or not known.holds(name, stamp):
            try:
                self._prepare.check(path)
            except BadPicture as e:
                if pictures.skipped is None:
                    self._found = e
                else:
                    pictures.skipped.add(path, e)
            except (NetError, OSError, MemoryError):
                return  # whatever it is, the run will meet it where it can be told
            else:
                known.add(name, stamp)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class _Known:
    """The good pictures of a folder, by size and time, as they are kept for the next run."""

    def __init__(self, folder: Path, prepare: Preparation) -> None:
        self._key = make_key(str(folder.resolve()), str(prepare), decoder())
        self._stamps = self._read()

    def _read(self) -> dict[str, Stamp]:
        try:
            found = json.loads(IMAGE_CACHE.load(self._key) or b"{}")
        except (ValueError, RecursionError):
            return {}  # nothing is known where it is damaged
        if not isinstance(found, dict):
            return {}
        return {k: (v[0], v[1]) for k, v in found.items() if _is_stamp(v)}

    def holds(self, name: str, stamp: Stamp) -> bool:
        return self._stamps.get(name) == stamp

    def add(self, name: str, stamp: Stamp | None) -> None:
        if stamp is not None:
            self._stamps[name] = stamp

    def keep(self) -> None:
        IMAGE_CACHE.store(self._key, json.dumps(self._stamps).encode())


def _is_stamp(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    )
