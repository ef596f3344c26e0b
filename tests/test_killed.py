"""Processes that are killed, disks that take no more: the real thing, and what is left of it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.errors import NetError
from netdsl.train import checkpoint
from tests.test_resume import NET, go_on, kept, run


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 100 kB; a function that lets nothing more be written to it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_no_more(small_disk: Any, tmp_path: Path, how: str) -> None:
    disk, close = small_disk
    out = disk / "run"
    whole = tmp_path / "whole"
    count = 0

    def watch() -> None:
        nonlocal count
        count += 1
        if how == "full":
            with suppress(OSError), (disk / "other").open("ab") as f:
                f.write(bytes(5000))
        elif count == 25:
            close()

    with pytest.raises(NetError, match=r"cannot write .*(No space left|Read-only)"):
        run(out, watch)
    saved = checkpoint.load(out / "last.safetensors")
    assert checkpoint.load(out / "best.safetensors").progress["epoch"] <= saved.progress["epoch"]
    assert not list(out.glob(".netdsl-*"))
    shutil.copytree(out, tmp_path / "copy")
    go_on(tmp_path / "copy")
    run(whole)
    assert kept(tmp_path / "copy") == kept(whole)


def command(out: Path, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "netdsl", "train", *args, "--device", "reference"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def under_way(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until a file is written anew, or the process is over."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None:
        if path.exists() and path.stat().st_mtime_ns != before:
            return
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_ten_times_at_random(tmp_path: Path, seed: int) -> None:
    """The real thing: processes that are killed with signal 9 at moments drawn at random."""
    text = NET.replace("epochs = 3", "epochs = 120").replace(", patience = 2", "")
    file, whole, out = tmp_path / "small.net", tmp_path / "whole", tmp_path / "out"
    file.write_text(text.replace("keep_every = 2", "keep_every = 5"))
    assert command(whole, str(file), "--out", str(whole)).wait(120) == 0
    rng = random.Random(seed)
    for _ in range(10):
        going = (out / "recipe.net").exists()
        args = ("--resume", str(out)) if going else (str(file), "--out", str(out))
        process = command(out, *args)
        under_way(out / rng.choice(("recipe.net", "last.safetensors")), process)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert command(out, "--resume", str(out)).wait(120) == 0
    assert kept(out) == kept(whole)


def test_ctrl_c_saves_and_resume_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    file = tmp_path / "small.net"
    file.write_text(NET.replace("epochs = 3", "epochs = 300").replace("patience = 2", ""))
    out = tmp_path / "out"
    process = command(out, str(file), "--out", str(out))
    for _ in range(200):
        if (out / "last.safetensors").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    saved = checkpoint.load(out / "last.safetensors")
    epochs = saved.progress["epoch"] + 1
    args = ("--set", f"train.epochs={epochs}")
    assert command(out, "--resume", str(out), *args).wait(60) == 0
    file.write_text(file.read_text().replace("epochs = 300", f"epochs = {epochs}"))
    assert command(out, str(file), "--out", str(tmp_path / "whole")).wait(60) == 0
    a, b = (checkpoint.load(d / "best.safetensors").states for d in (out, tmp_path / "whole"))
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])
