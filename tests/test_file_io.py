"""Files are read only where they are files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from netdsl.errors import NetError
from netdsl.file_io import open_regular_file, read_regular_file


def test_regular_files_are_read_and_links_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "b"):
        assert read_regular_file(tmp_path / name, 7) == b"content"
        with open_regular_file(tmp_path / name) as f:
            assert f.read() == b"content"
    with pytest.raises(NetError, match="has more than 6 bytes"):
        read_regular_file(tmp_path / "a", 6)


def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    os.mkfifo("pipe")
    Path("linked").symlink_to("pipe")
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
        for name, kind in (
            ("pipe", "pipe is a named pipe, not a file"),
            ("linked", "linked is a named pipe, not a file"),
            ("socket", "a socket"),
            ("/dev/zero", "/dev/zero is a device"),
            (".", "a folder"),
            ("gone", "cannot read gone: No such file"),
            ("loop", "cannot read loop"),
            ("a\0b", "cannot read"),
        ):
            with pytest.raises(NetError, match=kind):
                read_regular_file(Path(name), 10)
