"""Decodes every picture once in the background, to find bad ones before they are needed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from netdsl.data.pictures import BadPicture, Pictures, decoder_version
from netdsl.data.preprocessing import Preprocessing
from netdsl.disk_cache import IMAGE_CACHE, make_key
from netdsl.errors import NetError

MIN_SECONDS_TO_CACHE = 2.0
"""Verification that takes longer than this caches which pictures are good."""
Stamp = tuple[int, int]


class Verification:
    """A thread that decodes pictures as evaluation does, and keeps no pixels. Pictures found to be
    good are remembered by size and modification time, and not decoded again."""

    def __init__(self, parts: Sequence[Pictures], preprocess: Preprocessing) -> None:
        self._parts, self._preprocess = parts, preprocess
        self._error: BadPicture | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, name="verification", daemon=True)

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
        """Raises BadPicture if one has been found so far, unless bad ones are skipped."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        for pictures in self._parts:
            verified, start = (
                _VerifiedPictures(pictures.folder, self._preprocess),
                time.perf_counter(),
            )
            for name, path in zip(pictures.names, pictures.paths, strict=True):
                if self._stop.is_set() or self._error is not None:
                    break
                self._verify(pictures, str(name), path, verified)
            if time.perf_counter() - start > MIN_SECONDS_TO_CACHE:
                verified.save()

    def _verify(
        self, pictures: Pictures, name: str, path: Path, verified: _VerifiedPictures
    ) -> None:
        stamp = _read_stamp(path)
        if stamp is None or not verified.has_stamp(name, stamp):
            try:
                self._preprocess.check_picture(path)
            except BadPicture as e:
                if pictures.skipped_pictures is None:
                    self._error = e
                else:
                    pictures.skipped_pictures.add(path, e)
            except (NetError, OSError, MemoryError):
                return  # the run will hit the same error where it can be reported
            else:
                verified.add(name, stamp)


def _read_stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class _VerifiedPictures:
    """The good pictures of a folder, by size and modification time, as cached for the next run."""

    def __init__(self, folder: Path, preprocess: Preprocessing) -> None:
        self._key = make_key(str(folder.resolve()), str(preprocess), decoder_version())
        self._stamps = self._load()

    def _load(self) -> dict[str, Stamp]:
        try:
            found = json.loads(IMAGE_CACHE.load(self._key) or b"{}")
        except (ValueError, RecursionError):
            return {}  # a damaged cache entry counts as empty
        if not isinstance(found, dict):
            return {}
        return {k: (v[0], v[1]) for k, v in found.items() if _is_stamp(v)}

    def has_stamp(self, name: str, stamp: Stamp) -> bool:
        return self._stamps.get(name) == stamp

    def add(self, name: str, stamp: Stamp | None) -> None:
        if stamp is not None:
            self._stamps[name] = stamp

    def save(self) -> None:
        """Keeps what another rank has saved in the meantime."""
        IMAGE_CACHE.store(self._key, json.dumps(self._load() | self._stamps).encode())


def _is_stamp(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    )
