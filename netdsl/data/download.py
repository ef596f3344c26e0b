"""Downloads the files of a data set once into the cache directory and verifies their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

from netdsl.errors import fail

_TIMEOUT = 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A downloadable file and its expected checksum."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(remote: RemoteFile, folder: Path) -> Path:
    """The file in `folder`, downloaded if it is not there. Raises NetError if the download fails or
    the checksum differs; no partial file is left behind."""
    target = folder / remote.name
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".netdsl-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as f:
                _download_to(remote, f)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, HTTPException, ValueError) as e:
        reason = getattr(e, "reason", None) or getattr(e, "strerror", None) or e
        raise fail(
            f"cannot fetch {remote.url}: {reason}",
            help=f"download it on a machine with network access and put it into {folder}",
        ) from None
    return target


def _download_to(remote: RemoteFile, out: IO[bytes]) -> None:
    request = urllib.request.Request(remote.url, headers={"User-Agent": "netdsl"})
    digest = hashlib.sha256()
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != remote.sha256:
        raise fail(
            f"{remote.url} returned a file other than the expected one: its sha256 is "
            f"{digest.hexdigest()}, not {remote.sha256}",
            help="was the download cut off, or did a proxy send something else?",
        )


def unpack(archive: Path, names: tuple[str, ...], folder: Path) -> None:
    """Extracts the files of these names from a tar archive, from any directory in it, into
    `folder`."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                source = tar.extractfile(member) if name in names and member.isfile() else None
                if source is not None:
                    _unpack_member(source, folder / name)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as e:
        raise fail(f"cannot unpack {archive}: {e}", help="remove it to download it again") from None


def _unpack_member(source: IO[bytes], target: Path) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".netdsl-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as f:
            shutil.copyfileobj(source, f)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
