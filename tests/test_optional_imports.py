"""A package that is missing is said to be missing; one that cannot be loaded is said not to load,
and why."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netdsl import backends, optional_imports
from netdsl.backends import open_backend
from netdsl.backends.cuda import libraries
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
from netdsl.ops.dtypes import dtype_of
from netdsl.optional_imports import NotInstalledError
from tests.conftest import ROOT

USERS: dict[str, Callable[[], Any]] = {
    "sklearn": lambda: SOURCES["digits"].load(None),
    "ml_dtypes": lambda: dtype_of("bfloat16"),
    "numba": lambda: open_backend("cpu"),
    "llvmlite": lambda: open_backend("cpu"),
    "cupy": lambda: open_backend("cuda"),
    "cudnn": libraries.load_cudnn.__wrapped__,
    "cuda": lambda: libraries.load_nvidia_library("nvrtc"),
}
BROKEN = {
    'raise ImportError("libx.so: failed to map segment")': "libx.so: failed to map segment",
    "import quite_another_module": "No module named 'quite_another_module'",
    'raise OSError("libx.so: too large")': "libx.so: too large",
    "raise ImportError": "ImportError",
    (
        "try:\n    open('/nowhere/x.so')\n"
        "except OSError:\n    raise ImportError('not found, or something else')"
    ): "No such file or directory",
}


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("package", USERS)
def test_what_is_missing_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, package)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotInstalledError, match="which is not installed") as e:
        USERS[package]()
    assert "pip install" in (e.value.diagnostics[0].help or "")


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("package", USERS)
def test_what_is_broken_is_not_said_to_be_missing(
    package: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(text)
    forget(monkeypatch, package)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetError, match="installed but cannot be loaded: ") as e:
        USERS[package]()
    assert not isinstance(e.value, NotInstalledError)
    assert BROKEN[text] in e.value.diagnostics[0].message


def test_the_reference_runs_only_where_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise NetError

    monkeypatch.setattr(backends, "_open_cuda", broken)
    with monkeypatch.context() as m:
        forget(m, "numba")
        m.setitem(sys.modules, "numba", None)
        assert open_backend("auto").name == "reference"
    monkeypatch.setattr(backends, "_open_cpu", broken)
    with pytest.raises(NetError):
        open_backend("auto")


def test_a_command_says_why_a_package_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text('raise ImportError("libx.so: no room")')
    command = [sys.executable, "-m", "netdsl", "train", ROOT / "models" / "digits.net", "--dry-run"]
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    env = {**os.environ, "PYTHONPATH": path}
    found = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert found.returncode == 2
    assert "is installed but cannot be loaded: libx.so: no room" in found.stderr
    assert found.stderr.count("\n") == 2


def test_a_library_that_there_is_no_room_for_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sklearn.py").write_text("raise AssertionError('tried')")
    forget(monkeypatch, "sklearn")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(optional_imports, "can_allocate", lambda nbytes: False)
    with pytest.raises(NetError, match="too little memory to load it") as e:
        USERS["sklearn"]()
    assert not isinstance(e.value, NotInstalledError)


LITTLE = re.compile(
    r"error: netdsl cannot be loaded: there is too little memory \(`ulimit -v`\)\n"
    r"|error: .*and there is too little memory to load it\nhelp: `ulimit -v` .*\n"
    r"|error: this needs more memory than is available\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
@pytest.mark.parametrize(
    ("command", "size"),
    [
        ("check", 100),
        ("check", 250),
        ("train", 250),
        ("train", 500),
        *(
            pytest.param(command, size, marks=pytest.mark.slow)
            for command in ("check", "summary", "gradcheck", "time", "train")
            for size in (80, 150, 200, 300, 400, 600, 700, 800, 1000, 1500, 2500)
        ),
    ],
)
def test_little_memory_is_said_to_be_little(command: str, size: int, tmp_path: Path) -> None:
    """So many MB of addresses: the command does its work, or one sentence says what is missing."""
    words = ["--dry-run"] if command == "train" else []
    line = [sys.executable, "-m", "netdsl", command, str(ROOT / "models" / "digits.net"), *words]
    script = f"ulimit -v {1000 * size}; exec {shlex.join(line)}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120
    )
    if found.returncode != 0:
        assert (found.returncode, found.stdout) == (2, "")
        assert LITTLE.fullmatch(found.stderr), found.stderr
    elif command == "check":
        assert "no warnings" in found.stderr
    known = {("check", 100): 2, ("check", 250): 0, ("train", 250): 2, ("train", 500): 2}
    assert found.returncode == known.get((command, size), found.returncode)
