"""Processes that are killed, disks that take no more: the real thing, and what is left of it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.errors import NetError
from netdsl.training.store import checkpoint
from tests.processes import NETDSL, NO_OUTPUT, TIME_LIMIT, run_process, start_process, wait_for
from tests.test_resume import NET, go_on, kept, run


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 100 kB; a function that lets nothing more be written to it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or run_process(*mount).returncode:
        pytest.skip("no small disk can be mounted here")
    yield disk, lambda: run_process("mount", "-o", "remount,ro", str(disk))
    assert run_process("umount", str(disk)).returncode == 0


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


_NET = """
net small {
  input(8x8x1)
  conv(4, 3x3, pad=same, stride=2) -> batchnorm -> relu -> dropout(0.2) -> fc(10)
}
data { source = digits, batch = 64, augment = [hflip, random_crop(1)] }
"""
_TRAIN = "optimizer = adam(lr=0.01), schedule = cosine(warmup=1), keep_every = 5"


@dataclass(frozen=True)
class Kind:
    """A kind of run: its recipes, for a number of epochs, and its options."""

    recipes: Callable[[int], str]
    options: tuple[str, ...] = ()


KINDS = {
    "plain": Kind(lambda n: f"train {{ {_TRAIN}, epochs = {n} }}"),
    "staged": Kind(
        lambda n: (
            f'train early {{ {_TRAIN}, epochs = {n // 3 + 1}, freeze = "conv1.*" }}\n'
            f"train middle {{ after = early, {_TRAIN}, epochs = {n // 3 + 1} }}\n"
            f"train late {{ after = middle, {_TRAIN}, epochs = {n // 3 + 1}, ema = 0.9 }}"
        )
    ),
    "accumulating": Kind(lambda n: f"train {{ {_TRAIN}, epochs = {n}, accumulate = 3, clip = 1 }}"),
    "saving": Kind(
        lambda n: (
            f"train {{ {_TRAIN}, epochs = {n}, save_every = steps(7), validate_every = 3, "
            "lr_rule = linear(16, warmup=0) }"
        )
    ),
    "ema": Kind(lambda n: f"train {{ {_TRAIN}, epochs = {n}, ema = 0.99 }}"),
    "watched": Kind(
        lambda n: f"train {{ {_TRAIN}, epochs = {n} }}",
        ("--watch", "gradients,activations", "--watch-every", "3"),
    ),
}


def command(*args: str) -> tuple[str, ...]:
    return (*NETDSL, "train", *args, "--device", "reference")


def ended(*args: str) -> int:
    """The exit code of a run that nobody ends."""
    return run_process(*command(*args), limit=300).returncode


def last_change(out: Path) -> int:
    """When one of its files was written last, in nanoseconds; 0 where there is none."""
    times = [0]
    with suppress(FileNotFoundError):  # a file may be renamed while they are listed
        times += [p.stat().st_mtime_ns for p in out.rglob("*.*")]
    return max(times)


def kill_at_random(process: subprocess.Popen[bytes], out: Path, rng: random.Random) -> None:
    """While it starts, or behind one of the first changes in its directory."""
    deadline = time.monotonic() + 60
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 1))
    else:
        for _ in range(rng.randint(1, 8)):
            before = last_change(out)
            while last_change(out) == before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
        time.sleep(rng.choice((0, rng.uniform(0, 0.02), rng.uniform(0, 0.3))))
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it was over before it was killed"


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        *(("staged", 1), ("watched", 1)),
        *(pytest.param(kind, 20, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_a_run_killed_at_random_ends_with_the_same_bits(
    tmp_path: Path, kind: str, kills: int
) -> None:
    """The real thing: processes that are killed with signal 9 at moments drawn at random."""
    file, whole, out = tmp_path / "small.net", tmp_path / "whole", tmp_path / "out"
    file.write_text(_NET + KINDS[kind].recipes(12 * kills))
    options = KINDS[kind].options
    assert ended(str(file), "--out", str(whole), *options) == 0
    rng = random.Random(f"{kind} {kills}")

    def args() -> tuple[str, ...]:
        has_begun = any(out.rglob("recipe.net"))
        place = ("--resume",) if has_begun else (str(file), "--out")
        return (*place, str(out), *options)

    for _ in range(kills):
        with start_process(*command(*args()), **NO_OUTPUT) as process:
            kill_at_random(process, out, rng)
    assert ended(*args()) == 0
    assert kept(out) == kept(whole)


def test_ctrl_c_saves_and_resume_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    file = tmp_path / "small.net"
    file.write_text(NET.replace("epochs = 3", "epochs = 300").replace("patience = 2", ""))
    out = tmp_path / "out"
    with start_process(*command(str(file), "--out", str(out)), **NO_OUTPUT) as process:
        wait_for(out / "last.safetensors", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIME_LIMIT) == 130
    saved = checkpoint.load(out / "last.safetensors")
    epochs = saved.progress["epoch"] + 1
    args = ("--set", f"train.epochs={epochs}")
    assert ended("--resume", str(out), *args) == 0
    file.write_text(file.read_text().replace("epochs = 300", f"epochs = {epochs}"))
    assert ended(str(file), "--out", str(tmp_path / "whole")) == 0
    a, b = (checkpoint.load(d / "best.safetensors").states for d in (out, tmp_path / "whole"))
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])
